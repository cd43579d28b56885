"""A stand-in for vLLM that has the recorded names and no others, and does by them what vLLM was read to do.

It refuses what vLLM refuses for diffusion models, gives out whole canvases cut at stop tokens and max_tokens, and dies
of `prompt_logprobs`. What it cannot show is that vLLM decodes: that takes a GPU.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from easel.engine.vllm.interface import Interface

RECORD: dict[str, Any] = json.loads((Path(__file__).parent / "vllm-0.32.0.json").read_text())
NEUTRAL: dict[str, Any] = {
    "temperature": 1.0,
    "min_p": 0.0,
    "seed": None,
    "min_tokens": 0,
    "logit_bias": None,
    "bad_words": None,
    "allowed_token_ids": None,
}
"""Defaults of the parameters that the record says are refused."""
Script = Callable[[tuple[int, ...]], list[int]]
"""Prompt to the answer's tokens, the stop token included; more than max_tokens are cut."""


class ClientError(Exception):
    """vLLM's VLLMClientError."""


class DeadError(Exception):
    """vLLM's EngineDeadError."""


class RecordedLLM:
    """vLLM's AsyncLLM. `seats` are what vLLM would hold in its engine."""

    started: list[RecordedLLM]

    def __init__(self, arguments: Any, canvas_length: int, script: Script, together: int) -> None:
        self.arguments = arguments
        self.canvas_length, self.script, self.together = canvas_length, script, together
        self.params: list[Any] = []
        self.active: set[str] = set()
        self.most_active = 0
        self.aborted: list[str] = []
        self.errored = False
        self.down = False
        self.hold: asyncio.Event | None = None
        """Where set, no canvas comes before it is."""

    async def generate(self, prompt: Any, sampling_params: Any, request_id: str, **keywords: Any) -> AsyncIterator[Any]:
        known = RECORD["callables"]["AsyncLLM.generate"]["keyword_only"]
        assert set(keywords) <= set(known), keywords
        if self.errored:
            raise DeadError("EngineCore encountered an issue.")
        self._check(sampling_params)
        self.params.append(sampling_params)
        self.active.add(request_id)
        self.most_active = max(self.most_active, len(self.active))
        try:
            async for output in self._outputs(tuple(prompt["prompt_token_ids"]), sampling_params):
                yield output
        except (asyncio.CancelledError, GeneratorExit):
            self.aborted.append(request_id)
            raise
        finally:
            self.active.discard(request_id)

    def shutdown(self, timeout: float | None = None) -> None:
        assert not self.active, "requests were left behind"
        self.down = self.errored = True

    def _check(self, params: Any) -> None:
        for name in RECORD["refused_for_diffusion"]:
            if getattr(params, name) != NEUTRAL[name]:
                raise ClientError(f"{name} is not yet supported with diffusion models.")
        if params.prompt_logprobs is not None:
            self.errored = True
            raise DeadError("EngineCore encountered an issue.")
        extra = set(params.extra_args or {})
        if not extra <= set(RECORD["diffusion_extra_args"]):
            raise ClientError(f"extra_args: {sorted(extra)}")

    async def _outputs(self, prompt: tuple[int, ...], params: Any) -> AsyncIterator[Any]:
        answer, finish = self.script(prompt)[: params.max_tokens], None
        for index, token in enumerate(answer):
            if token in params.stop_token_ids:
                answer, finish = answer[: index + 1], "stop"
                break
        else:
            finish = "length"
            assert len(answer) == params.max_tokens, "a script goes on, or ends in a stop token"
        size = self.canvas_length * self.together
        pieces = [answer[start : start + size] for start in range(0, len(answer), size)]
        for index, piece in enumerate(pieces):
            for _ in range(3):
                await asyncio.sleep(0)
            if self.hold is not None:
                await self.hold.wait()
            if self.errored:
                raise DeadError("EngineCore encountered an issue.")
            last = index == len(pieces) - 1
            yield _output(piece, params.logprobs, finish if last else None)


def _output(tokens: list[int], logprobs: int | None, finish: str | None) -> Any:
    """A `RequestOutput` of kind DELTA, with recorded fields only."""
    entries = None
    if logprobs is not None:
        entries = [
            {
                other: SimpleNamespace(logprob=-0.1 - rank, rank=rank + 1, decoded_token=None)
                for rank, other in enumerate((token, *(token + 1 + k for k in range(max(0, logprobs - 1)))))
            }
            for token in tokens
        ]
    stop_reason = tokens[-1] if finish == "stop" else None
    completion = {"index": 0, "text": "", "token_ids": tokens, "cumulative_logprob": None, "logprobs": entries,
                  "finish_reason": finish, "stop_reason": stop_reason}  # fmt: skip
    assert set(completion) <= set(RECORD["fields"]["CompletionOutput"])
    assert finish is None or finish in RECORD["constants"]["FINISH_REASON_STRINGS"]
    output = {"outputs": [SimpleNamespace(**completion)], "finished": finish is not None, "num_cached_tokens": 0}
    assert set(output) <= set(RECORD["callables"]["RequestOutput.__init__"]["positional"])
    return SimpleNamespace(**output)


def _of_fields(name: str, *more: str) -> Callable[..., Any]:
    known = {field for one in (name, *more) for field in RECORD["fields"][one]}

    def make(**values: Any) -> Any:
        unknown = set(values) - known
        if unknown:
            raise TypeError(f"{name}.__init__() got an unexpected keyword argument {sorted(unknown)[0]!r}")
        return SimpleNamespace(**{**dict.fromkeys(known), **NEUTRAL, **values})

    return make


def recorded(canvas_length: int, script: Script, together: int = 1) -> Callable[[], Interface]:
    """What `load_interface` is where vLLM is installed. `together`: canvases in one output, as when nobody reads."""
    RecordedLLM.started = []

    def from_engine_args(arguments: Any) -> RecordedLLM:
        llm = RecordedLLM(arguments, canvas_length, script, together)
        RecordedLLM.started.append(llm)
        return llm

    kinds = SimpleNamespace(**{name: name for name in RECORD["fields"]["RequestOutputKind"]})

    def load() -> Interface:
        return Interface(
            AsyncLLM=SimpleNamespace(from_engine_args=from_engine_args),
            AsyncEngineArgs=_of_fields("AsyncEngineArgs", "EngineArgs"),
            SamplingParams=_of_fields("SamplingParams"),
            RequestOutputKind=kinds,
            TokensPrompt=dict,
            ClientError=ClientError,
            DeadError=DeadError,
        )

    return load

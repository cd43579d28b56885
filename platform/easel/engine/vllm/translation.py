"""From our words to vLLM's and back, without importing it.

Owns: which settings and request fields become which of vLLM's, and how its outputs become canvases. Refuses to know:
the order of things in time (`engine`).

vLLM gives out whole canvases, several in one output where nobody read in between, each without the denoising steps it
took and without why it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from easel.engine.native.rules import MOST_LOGPROBS
from easel.engine.native.sequence import Rules
from easel.engine.unused_settings import refuse_unused
from easel.errors import ConfigurationError
from easel.protocol import (
    GROUP_ROWS,
    CanvasCommitted,
    CanvasStop,
    FinishReason,
    GenerationRequest,
    TokenLogprob,
    Usage,
    canvas_work,
    prefill_work,
)
from easel.settings import EngineSettings

EXPECTED_STEPS = 20.0
"""Denoising steps that a canvas is taken to have cost, since vLLM does not say: published means are 15 to 27."""

UNUSED = {
    "compile_cache": "vLLM keeps what it compiles where its own variables say",
    "deterministic": "vLLM's diffusion models promise nothing of the kind",
    "kv_tokens": "vLLM sizes its cache by the memory that is left",
    "kv_block_tokens": "vLLM chooses its block size by the attention backend",
    "step_timeout_s": "vLLM watches its engine process itself",
    "threads": "vLLM decodes on GPUs",
}
"""Settings of ours that mean nothing to vLLM."""


def engine_args(folder: Path, settings: EngineSettings, canvas_length: int, context_tokens: int) -> dict[str, Any]:
    """Arguments of `AsyncEngineArgs`. Raises `ConfigurationError` for settings that would be ignored."""
    refuse_unused(settings, "vllm", UNUSED)
    if settings.device == "cpu":
        raise ConfigurationError("the vllm engine runs on GPUs alone: device is cpu", "device")
    return {
        "model": str(folder),
        "skip_tokenizer_init": True,  # token ids go in and come out
        "language_model_only": True,  # no images
        "dtype": settings.dtype,
        "max_model_len": context_tokens,
        "max_num_seqs": settings.slots,
        # A step holds a canvas of every sequence, and prompt tokens on top.
        "max_num_batched_tokens": settings.slots * canvas_length + settings.prefill_tokens_per_step,
        "enable_prefix_caching": settings.prefix_cache,
        "gpu_memory_utilization": settings.gpu_memory_fraction,
        "max_logprobs": MOST_LOGPROBS,
        "enable_log_requests": False,  # prompts are never logged
        "disable_log_stats": True,
    }


def sampling_fields(request: GenerationRequest, rules: Rules) -> dict[str, Any]:
    """Arguments of `SamplingParams`, but for the kind of output.

    The request has passed `capabilities.ensure_supported`: what vLLM refuses for diffusion (temperature, min_p, seed,
    min_tokens, logit_bias) has its neutral value. `prompt_logprobs`, which ends vLLM's engine process with a diffusion
    model, is never set: the protocol has no such field. End tokens are named one by one, so that they are ours.
    """
    sampling = request.sampling
    return {
        "n": 1,
        "max_tokens": request.max_tokens,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "logprobs": sampling.logprobs,
        "stop_token_ids": sorted(rules.stop_tokens),
        "ignore_eos": True,
        "detokenize": False,
        "extra_args": {"diffusion_max_steps": rules.max_steps},
    }


def expected_steps(rules: Rules) -> float:
    """Denoising steps that a canvas of this request is taken to cost."""
    return min(EXPECTED_STEPS, rules.max_steps)


@dataclass(slots=True)
class Canvases:
    """The outputs of one request as canvases and usage."""

    request: GenerationRequest
    rules: Rules
    began_at: float
    """Unix time at which the canvas in the works began, as far as can be seen from here."""
    cached_tokens: int = 0
    tokens: int = 0
    canvases: int = 0
    reason: FinishReason | None = None
    """Why vLLM ended the request, once it has."""
    stop_token: int | None = None
    _pending: list[int] = field(default_factory=list)
    _logprobs: list[TokenLogprob] = field(default_factory=list)

    def take(self, output: Any, now: float) -> list[CanvasCommitted]:
        """Canvases that a `RequestOutput` of kind DELTA completes. Sets `reason` with the last.

        Raises `ValueError` for an output that is not as recorded: what it means could only be guessed.
        """
        if output.num_cached_tokens is not None:
            self.cached_tokens = output.num_cached_tokens
        if len(output.outputs) != 1:
            raise ValueError(f"vLLM gave {len(output.outputs)} outputs of one choice")
        [completion] = output.outputs
        tokens = list(completion.token_ids)
        self._pending += tokens
        if self.request.sampling.logprobs is not None and tokens:
            self._logprobs += token_logprobs(tokens, completion.logprobs, self.request.sampling.logprobs)
        if output.finished:
            self._end(completion.finish_reason)
        committed, length = [], self.rules.canvas_length
        while len(self._pending) >= length:
            committed.append(self._commit(length, now))
        if self.reason is not None and (self._pending or self._ends_in_empty_canvas):
            committed.append(self._commit(len(self._pending), now))
        return committed

    def usage(self) -> Usage:
        """What is known, and `work` as far as it can be told without the steps."""
        length = self.rules.canvas_length
        last_commit = length / GROUP_ROWS if self.canvases else 0.0  # it never happens
        return Usage(
            prompt_tokens=len(self.request.prompt),
            cached_tokens=self.cached_tokens,
            completion_tokens=self.tokens,
            canvases=self.canvases,
            denoising_steps=0,
            work=prefill_work(len(self.request.prompt) - self.cached_tokens)
            + self.canvases * canvas_work(length, expected_steps(self.rules))
            - last_commit,
        )

    def _end(self, reason: str | None) -> None:
        if reason == "stop":
            # The token that ended it is the last of the output, and no part of the answer.
            if not self._pending or self._pending[-1] not in self.rules.stop_tokens:
                raise ValueError("vLLM stopped at a token that is not one of the request's stop tokens")
            self.stop_token = self._pending.pop()
            del self._logprobs[len(self._pending) :]
            self.reason = "stop"
        elif reason == "length":
            self.reason = "length"
        elif reason == "abort":
            self.reason = "cancelled"
        else:
            raise ValueError(f"vLLM ended the request with {reason!r}")

    @property
    def _ends_in_empty_canvas(self) -> bool:
        """The stop token was the first of its canvas: that canvas was denoised and is empty."""
        return self.reason == "stop" and self.tokens == self.canvases * self.rules.canvas_length

    def _commit(self, count: int, now: float) -> CanvasCommitted:
        tokens, self._pending = tuple(self._pending[:count]), self._pending[count:]
        logprobs = None
        if self.request.sampling.logprobs is not None:
            logprobs, self._logprobs = tuple(self._logprobs[:count]), self._logprobs[count:]
        event = CanvasCommitted(self.canvases, tokens, 0, CanvasStop.UNKNOWN, self.began_at, now, logprobs)
        self.canvases += 1
        self.tokens += len(tokens)
        self.began_at = now
        return event


def token_logprobs(
    tokens: Sequence[int], given: Sequence[Mapping[int, Any]] | None, alternatives: int
) -> list[TokenLogprob]:
    """vLLM's mappings of token id to `Logprob`, one for each token: its own, and the likeliest by rank.

    Raises `ValueError` where they do not go with the tokens.
    """
    if given is None or len(given) != len(tokens):
        raise ValueError(f"vLLM gave log-probabilities of {0 if given is None else len(given)} of {len(tokens)} tokens")
    found = []
    for token, there in zip(tokens, given, strict=True):
        ranked = sorted(there.items(), key=lambda entry: -entry[1].logprob)
        top = tuple((other, entry.logprob) for other, entry in ranked[:alternatives])
        found.append(TokenLogprob(there[token].logprob, top))
    return found

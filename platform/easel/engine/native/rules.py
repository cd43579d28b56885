"""From a request to the rules it is decoded by, or a refusal that names the field.

The last check before the loop: after it, nothing a request holds can raise in a step that others share. Refuses to
know: what the API calls these fields, and whether there is a seat.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from easel.engine.native.config import GenerationDefaults, ModelConfig
from easel.engine.native.kv_cache import KvCache
from easel.engine.native.sequence import Rules, Sequence
from easel.errors import ContextLengthExceeded, InvalidRequest, UnsupportedParameter
from easel.protocol import MOST_BIASED, MOST_STOPS, GenerationRequest

MOST_LOGPROBS = 64

MOST_TEMPERATURE = 1e4
"""Draws are even long before. One that is infinite in fp32 makes no number of a token that must not be."""
MOST_BIAS = 1e4
"""Of one token's bias or penalty, either way. More does nothing else, and much more is infinite in fp32."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class RuleBook:
    """What all requests are held to."""

    config: ModelConfig
    defaults: GenerationDefaults
    context_tokens: int
    """Most tokens of prompt and output together."""
    most_written: int
    """Most tokens that one sequence encodes in a step."""

    def sequence(
        self, request: GenerationRequest, kv: KvCache | None, step_cap: int | None, arrived_at: float, order: int
    ) -> Sequence:
        """The sequence for `request`. Raises `InvalidRequest` or one of its kind, with `param`.

        `kv`: read for its size alone, so from any thread; None where the cache is somebody else's. `step_cap`: the
        engine's bound on denoising steps.
        """
        self._check_supported(request)
        self._check_tokens(request)
        self._check_sampling(request)
        rules = self._rules(request, step_cap)
        sequence = Sequence(request, rules, arrived_at, order)
        total = len(request.prompt) + request.max_tokens
        asked = f"The prompt has {len(request.prompt)} tokens, max_tokens is {request.max_tokens}: "
        if total > self.context_tokens:
            raise ContextLengthExceeded(
                f"{asked}{total} in all, and the context holds {self.context_tokens}.", param="max_tokens"
            )
        most = sequence.most_encoded()
        if kv is not None and not kv.fits(most, self.most_written):
            raise ContextLengthExceeded(
                f"{asked}{most} are kept for the last canvas, and the KV cache holds {kv.tokens}.", param="max_tokens"
            )
        return sequence

    def _rules(self, request: GenerationRequest, step_cap: int | None) -> Rules:
        wishes, defaults = request.denoising, self.defaults
        steps = _given(wishes.max_steps, defaults.max_steps)
        bound = _given(wishes.entropy_bound, defaults.entropy_bound)
        stability = _given(wishes.stability, defaults.stability)
        confidence = _given(wishes.confidence, defaults.confidence)
        for name, value, least in (
            ("max_steps", steps, 1),
            ("entropy_bound", bound, 0),
            ("stability", stability, 0),
            ("confidence", confidence, 0),
        ):
            if not value >= least:
                raise InvalidRequest(f"{name}: {value} is below {least}", param=name)
        own = () if request.ignore_eos else defaults.eos_token_ids
        return Rules(
            canvas_length=self.config.canvas_length,
            max_steps=steps if step_cap is None else min(steps, step_cap),
            entropy_bound=bound,
            stability=stability,
            confidence=confidence,
            stop_tokens=frozenset(own) | frozenset(request.stop_token_ids),
            bounded_at=_given(wishes.deadline_at, float("inf")),
        )

    def _check_supported(self, request: GenerationRequest) -> None:
        sampling = request.sampling
        for name, differs in (
            ("grammar", sampling.grammar is not None),
            ("canvas_length", request.denoising.canvas_length not in (None, self.config.canvas_length)),
        ):
            if differs:
                raise UnsupportedParameter(f"{name} is not supported by this engine", param=name)
        if request.denoising.stop_scope not in ("canvas", "reachable"):
            raise InvalidRequest(f"stop_scope: {request.denoising.stop_scope!r} is not one of canvas, reachable",
                                 param="stop_scope")  # fmt: skip

    def _check_tokens(self, request: GenerationRequest) -> None:
        length, vocab = self.config.canvas_length, self.config.vocab
        biased = tuple(token for token, _ in request.sampling.logit_bias)
        pinned = tuple(token for _, token in request.pinned)
        for name, tokens in (
            ("prompt", request.prompt),
            ("resume", request.resume),
            ("stop_token_ids", request.stop_token_ids),
            ("logit_bias", biased),
            ("pinned", pinned),
        ):
            if tokens and not (min(tokens) >= 0 and max(tokens) < vocab):
                raise InvalidRequest(f"{name}: token ids go from 0 to {vocab - 1}", param=name)
        if len(biased) > MOST_BIASED:
            raise InvalidRequest(f"logit_bias: at most {MOST_BIASED} tokens, not {len(biased)}", param="logit_bias")
        if len({*request.stop_token_ids, *self.defaults.eos_token_ids}) > MOST_STOPS:
            raise InvalidRequest(
                f"stop_token_ids: at most {MOST_STOPS} with the checkpoint's own", param="stop_token_ids"
            )
        if len(request.resume) % length:
            raise InvalidRequest(
                f"resume: whole canvases of {length} tokens are needed, not {len(request.resume)} tokens",
                param="resume",
            )
        if request.max_tokens <= len(request.resume):
            raise InvalidRequest("max_tokens: resume already holds as many tokens", param="max_tokens")
        if not 0 <= request.min_tokens <= request.max_tokens:
            raise InvalidRequest("min_tokens: from 0 to max_tokens", param="min_tokens")
        if any(position < 0 for position, _ in request.pinned):
            raise InvalidRequest("pinned: positions begin at 0", param="pinned")

    def _check_sampling(self, request: GenerationRequest) -> None:
        sampling, hertz = request.sampling, request.progress_hz
        for name, allowed, rule in (
            ("temperature", 0.0 <= sampling.temperature <= MOST_TEMPERATURE, f"from 0 to {MOST_TEMPERATURE:g}"),
            ("top_p", 0.0 < sampling.top_p <= 1.0, "above 0, up to 1"),
            ("min_p", 0.0 <= sampling.min_p <= 1.0, "from 0 to 1"),
            ("top_k", sampling.top_k >= 0, "from 0"),
            *((name, all(abs(value) <= MOST_BIAS for value in values), f"from -{MOST_BIAS:g} to {MOST_BIAS:g}")
              for name, values in (("presence_penalty", [sampling.presence_penalty]),
                                   ("frequency_penalty", [sampling.frequency_penalty]),
                                   ("logit_bias", [bias for _, bias in sampling.logit_bias]))),
            ("logprobs", sampling.logprobs is None or 0 <= sampling.logprobs <= self._most_logprobs,
             f"from 0 to {self._most_logprobs}"),
            ("progress_hz", hertz is None or hertz > 0.0, "above 0"),
        ):  # fmt: skip
            if not allowed:
                raise InvalidRequest(f"{name}: {rule}", param=name)

    @property
    def _most_logprobs(self) -> int:
        return min(MOST_LOGPROBS, self.config.vocab)


def _given(value: _T | None, default: _T) -> _T:
    return default if value is None else value

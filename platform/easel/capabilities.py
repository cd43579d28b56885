"""What each engine does with each parameter of a request: one table, for engines, the API and docs/engines.md.

An engine that honours a parameter `WORKS`, or `means` something of its own by it; everything else it refuses, and the
table says why. The API looks here before a request leaves it (`api.unsupported` says what happens then), an engine once
more before it begins, so that nothing is silently ignored on either way. Parameters are named as the protocol's fields;
what a client calls them is in `ASKED_AS`.

Owns: this table and how a request is held against it. Refuses to know: HTTP, and how an engine does what it can.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from easel.errors import UnsupportedParameter
from easel.protocol import Denoising, GenerationRequest, Sampling

EngineKind = Literal["native", "reference", "vllm", "fake"]
ENGINES: tuple[EngineKind, ...] = ("native", "reference", "vllm", "fake")


@dataclasses.dataclass(frozen=True, slots=True)
class Support:
    """What one engine makes of one parameter."""

    works: bool
    words: str = ""
    """How it differs from what docs/api.md says, or why it is refused."""


WORKS = Support(True)


def means(words: str) -> Support:
    """Honoured, in a way of its own."""
    return Support(True, words)


def refuses(why: str) -> Support:
    """Not honoured."""
    return Support(False, why)


_SCHEDULE_ONLY = "transformers draws from the checkpoint's schedule and nothing else"
_NO_PINS = "transformers' generate cannot hold a position"
_WHOLE_SERVER = "vLLM reads it from the checkpoint, once for the whole server"
_VLLM_REFUSES = "vLLM answers 400 for diffusion models"
_SHORT_SCHEDULE = means("cuts the schedule short: the temperature falls over the checkpoint's own number of steps")
_OWN_LENGTH = means("the checkpoint's own number only")
_SCRIPTED = means("taken, and changes nothing: answers are scripted")
_REMASKED = means("of draws and of what is committed: vLLM masks the logits of each step")

Row = Mapping[EngineKind, Support]


def _row(reference: Support, vllm: Support, fake: Support, native: Support = WORKS) -> Row:
    return {"native": native, "reference": reference, "vllm": vllm, "fake": fake}


TABLE: Mapping[str, Row] = {
    "seed": _row(
        means("keys torch's own generator, as `torch.manual_seed` before `generate` does"),
        refuses(_VLLM_REFUSES),
        WORKS,
    ),
    "temperature": _row(refuses(_SCHEDULE_ONLY), refuses(_VLLM_REFUSES), _SCRIPTED),
    "top_p": _row(refuses(_SCHEDULE_ONLY), _REMASKED, _SCRIPTED),
    "top_k": _row(refuses(_SCHEDULE_ONLY), _REMASKED, _SCRIPTED),
    "min_p": _row(refuses(_SCHEDULE_ONLY), refuses(_VLLM_REFUSES), _SCRIPTED),
    "logit_bias": _row(WORKS, refuses(_VLLM_REFUSES), means("100 forces a token, -100 bans it, less does nothing")),
    "presence_penalty": _row(WORKS, refuses("vLLM's diffusion sampler drops it with a warning"), _SCRIPTED),
    "frequency_penalty": _row(WORKS, refuses("vLLM's diffusion sampler drops it with a warning"), _SCRIPTED),
    "logprobs": _row(
        WORKS, means("after top_k and top_p"), means("made up from the seed: falling, and the same each time")
    ),
    "grammar": _row(
        refuses("guided decoding is not built yet"),
        refuses(_VLLM_REFUSES),
        refuses("guided decoding is not built yet"),
        refuses("guided decoding is not built yet"),
    ),
    "min_tokens": _row(
        WORKS, refuses(_VLLM_REFUSES), means("a scripted answer that is shorter goes on in words")
    ),
    "ignore_eos": _row(WORKS, WORKS, means("a scripted answer that is shorter goes on in words, up to max_tokens")),
    "stop_token_ids": _row(WORKS, WORKS, WORKS),
    "resume": _row(
        refuses("the draws come from a generator's state, which cannot be taken up again"),
        refuses("vLLM would draw anew"),
        WORKS,
    ),
    "pinned": _row(refuses(_NO_PINS), refuses("vLLM takes pins for one canvas alone"), refuses("answers are scripted")),
    "max_steps": _row(WORKS, _SHORT_SCHEDULE, WORKS),
    "entropy_bound": _row(means("above 0 only, as transformers has it"), refuses(_WHOLE_SERVER), _SCRIPTED),
    "stability": _row(WORKS, refuses(_WHOLE_SERVER), _SCRIPTED),
    "confidence": _row(WORKS, refuses(_WHOLE_SERVER), _SCRIPTED),
    "canvas_length": _row(_OWN_LENGTH, _OWN_LENGTH, means("the engine's own number only"), _OWN_LENGTH),
    "stop_scope": _row(
        refuses("transformers looks at the whole canvas"), refuses("vLLM looks at the whole canvas"), _SCRIPTED
    ),
    "deadline_at": _row(
        WORKS, means("the canvas in the works is lost: vLLM gives out finished ones only"), WORKS
    ),
    "progress_hz": _row(WORKS, refuses("vLLM shows no canvas before it is finished"), WORKS),
}  # fmt: skip
"""By field of `Sampling`, `Denoising` or `GenerationRequest`. Fields that are not here are no engine's to refuse: who
asks, which choice it is, the prompt and its limit, the place in the queue."""

ASKED_AS: Mapping[str, str] = {
    "max_steps": "easel.max_denoising_steps",
    "entropy_bound": "easel.entropy_bound",
    "stability": "easel.stability",
    "confidence": "easel.confidence",
    "canvas_length": "easel.canvas_length",
    "stop_scope": "easel.stop_scope",
    "deadline_at": "easel.deadline_ms",
    "progress_hz": "stream_options.include_progress",
    "grammar": "response_format",
}
"""What a client calls a field where that is another name than the protocol's."""

_SAMPLING = frozenset(field.name for field in dataclasses.fields(Sampling))
_DENOISING = frozenset(field.name for field in dataclasses.fields(Denoising))
_NEUTRAL = GenerationRequest(id="neutral", prompt=(0,), max_tokens=1)


def asked_as(field: str) -> str:
    """The parameter that a client knows."""
    return ASKED_AS.get(field, field)


def supports(engine: EngineKind) -> frozenset[str]:
    """The fields that this engine honours: what `Engine.supports` is."""
    return frozenset(field for field, row in TABLE.items() if row[engine].works)


def unsupported(request: GenerationRequest, engine: EngineKind) -> tuple[str, ...]:
    """The fields that `request` sets to anything but their default and `engine` does not honour, in the table's
    order."""
    return tuple(
        field
        for field, row in TABLE.items()
        if not row[engine].works and _value(request, field) != _value(_NEUTRAL, field)
    )


def without(request: GenerationRequest, fields: Iterable[str]) -> GenerationRequest:
    """`request` with these fields at their defaults."""
    dropped = frozenset(fields)
    sampling = {field: _value(_NEUTRAL, field) for field in dropped & _SAMPLING}
    denoising = {field: _value(_NEUTRAL, field) for field in dropped & _DENOISING}
    rest = {field: _value(_NEUTRAL, field) for field in dropped - _SAMPLING - _DENOISING}
    return dataclasses.replace(
        request,
        sampling=dataclasses.replace(request.sampling, **sampling),
        denoising=dataclasses.replace(request.denoising, **denoising),
        **rest,
    )


def refusal(engine: EngineKind, field: str, param: str | None = None) -> UnsupportedParameter:
    """What is answered: it names the engine, the parameter and the reason. `param`: where the client set it, if that
    is not the parameter itself."""
    name = asked_as(field)
    return UnsupportedParameter(
        f"Unsupported parameter: '{name}' is not supported by the {engine} engine: {TABLE[field][engine].words}.",
        param or name,
    )


def ensure_supported(request: GenerationRequest, engine: EngineKind) -> None:
    """Raises `UnsupportedParameter` for the first field that `engine` does not honour, named as the protocol has it:
    whoever hands requests to an engine past the API speaks that."""
    for field in unsupported(request, engine):
        raise refusal(engine, field, field)


def _value(request: GenerationRequest, field: str) -> Any:
    part = request.sampling if field in _SAMPLING else request.denoising if field in _DENOISING else request
    return getattr(part, field)

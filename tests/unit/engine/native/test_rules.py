"""What a request may ask for, and what it is told when it may not."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from easel.engine.native.config import GenerationDefaults
from easel.engine.native.kv_cache import KvCache
from easel.engine.native.model import Model
from easel.engine.native.rules import RuleBook
from easel.engine.native.sequence import Sequence
from easel.errors import ContextLengthExceeded, InvalidRequest, UnsupportedParameter
from easel.protocol import CanvasCommitted, Denoising, GenerationRequest, Sampling
from tests.unit.engine.native.harness import Harness

Native = tuple[Model, GenerationDefaults]


def _sequence(native: Native, cap: int | None = None, blocks: int = 64, context: int = 200, **fields: Any) -> Sequence:
    book = RuleBook(native[0].config, native[1], context, 256)
    request = GenerationRequest(**({"id": "a", "prompt": (5, 6), "max_tokens": 16} | fields))
    return book.sequence(request, KvCache(blocks, blocks, 4, 10), cap, 0.0, 1)


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("prompt", {"prompt": (5, 96)}),
        ("prompt", {"prompt": (-1,)}),
        ("resume", {"resume": (5,) * 7}),
        ("max_tokens", {"resume": (5,) * 16}),
        ("min_tokens", {"min_tokens": 17}),
        ("stop_token_ids", {"stop_token_ids": (96,)}),
        ("pinned", {"pinned": ((0, 96),)}),
        ("pinned", {"pinned": ((-1, 5),)}),
        ("progress_hz", {"progress_hz": 0.0}),
        ("presence_penalty", {"sampling": Sampling(presence_penalty=float("nan"))}),
        ("frequency_penalty", {"sampling": Sampling(frequency_penalty=float("inf"))}),
        ("presence_penalty", {"sampling": Sampling(presence_penalty=-1e39)}),
        ("logit_bias", {"sampling": Sampling(logit_bias=((96, 1.0),))}),
        ("logit_bias", {"sampling": Sampling(logit_bias=((5, float("nan")),))}),
        ("logit_bias", {"sampling": Sampling(logit_bias=((5, 1e39),))}),
        ("logit_bias", {"sampling": Sampling(logit_bias=tuple((5, 1.0) for _ in range(301)))}),
        ("stop_token_ids", {"stop_token_ids": tuple(range(2, 67))}),
        ("temperature", {"sampling": Sampling(temperature=-0.1)}),
        ("temperature", {"sampling": Sampling(temperature=float("nan"))}),
        ("temperature", {"sampling": Sampling(temperature=1e300)}),
        ("top_p", {"sampling": Sampling(top_p=0.0)}),
        ("min_p", {"sampling": Sampling(min_p=1.5)}),
        ("top_k", {"sampling": Sampling(top_k=-1)}),
        ("logprobs", {"sampling": Sampling(logprobs=65)}),
        ("max_steps", {"denoising": Denoising(max_steps=0)}),
        ("entropy_bound", {"denoising": Denoising(entropy_bound=-1.0)}),
        ("stability", {"denoising": Denoising(stability=-1)}),
        ("confidence", {"denoising": Denoising(confidence=float("nan"))}),
        ("stop_scope", {"denoising": Denoising(stop_scope="half")}),  # type: ignore[arg-type]
    ],
)
def test_refuses_by_name(native: Native, param: str, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        _sequence(native, **fields)
    assert caught.value.param == param
    assert param in caught.value.message


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("grammar", {"sampling": Sampling(grammar="root ::= x")}),
        ("canvas_length", {"denoising": Denoising(canvas_length=16)}),
    ],
)
def test_says_what_it_does_not_support(native: Native, param: str, fields: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        _sequence(native, **fields)
    assert caught.value.param == param


def test_refuses_what_the_context_or_the_cache_cannot_hold(native: Native) -> None:
    with pytest.raises(ContextLengthExceeded, match=r"201 in all, and the context holds 200\.$"):
        _sequence(native, max_tokens=199)
    with pytest.raises(ContextLengthExceeded, match=r"10 are kept for the last canvas, and the KV cache holds 8\.$"):
        _sequence(native, blocks=2)
    assert _sequence(native, max_tokens=198).request.max_tokens == 198
    assert _sequence(native, prompt=(5,) * 8, max_tokens=8, blocks=2), "the last canvas needs no blocks"


def test_wishes_go_before_defaults_and_the_engines_bound_before_both(native: Native) -> None:
    assert _sequence(native).rules.max_steps == 48
    wishes = Denoising(max_steps=20, entropy_bound=0.2, stability=2, confidence=0.1, deadline_at=5.0)
    rules = _sequence(native, denoising=wishes).rules
    assert (rules.max_steps, rules.entropy_bound, rules.stability, rules.confidence, rules.bounded_at) == (
        20, 0.2, 2, 0.1, 5.0,
    )  # fmt: skip
    assert _sequence(native, cap=10, denoising=wishes).rules.max_steps == 10


def test_stop_tokens_are_the_checkpoints_and_the_requests(native: Native) -> None:
    assert _sequence(native, stop_token_ids=(7,)).rules.stop_tokens == {1, 7}
    assert _sequence(native, stop_token_ids=(7,), ignore_eos=True).rules.stop_tokens == {7}


VOCAB, HUGE = 96, 10**9
ODD = st.builds(
    GenerationRequest,
    id=st.just("odd"),
    prompt=st.just((5, 6, 7)),
    max_tokens=st.integers(1, 20),
    ignore_eos=st.booleans(),
    stop_token_ids=st.sampled_from([(), (7,), tuple(range(2, 65))]),
    pinned=st.sampled_from([(), ((0, 5), (0, 1)), ((9, 1), (HUGE, 3))]),
    progress_hz=st.sampled_from([None, math.inf, 1e-320]),
    sampling=st.builds(
        Sampling,
        temperature=st.sampled_from([0.0, 1e-320, 1e-40, 1e-4, 0.5, 1.0, 1e4]),
        top_p=st.sampled_from([1e-320, 0.5, 1.0]),
        top_k=st.sampled_from([0, 1, VOCAB - 1, VOCAB, HUGE]),
        min_p=st.sampled_from([0.0, 1e-320, 1.0]),
        logit_bias=st.sampled_from([(), ((3, 100.0), (3, -100.0)), *(
            tuple((token, bias) for token in range(VOCAB)) for bias in (1e4, -1e4))]),
        presence_penalty=st.sampled_from([0.0, -1e4, 1e4]),
        frequency_penalty=st.sampled_from([0.0, 2.0, -1e4]),
        logprobs=st.sampled_from([None, 0, 64]),
    ),
    denoising=st.builds(
        Denoising,
        max_steps=st.sampled_from([3, 1]),
        entropy_bound=st.sampled_from([0.0, 1e-320, math.inf]),
        stability=st.sampled_from([HUGE, 0]),
        confidence=st.sampled_from([0.0, math.inf]),
        stop_scope=st.sampled_from(["canvas", "reachable"]),
    ),
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(request=ODD, share=st.floats(0, 1))
def test_what_is_accepted_fails_no_step(native: Native, request: GenerationRequest, share: float) -> None:
    """At the ends of what each field may be: every token is one of the vocabulary, every entropy a number."""
    harness = Harness(*native)
    harness.add(replace(request, min_tokens=int(share * request.max_tokens)))
    answer = harness.run()["odd"]
    assert answer.finished.reason in ("stop", "length")
    for event in answer.events:
        if isinstance(event, CanvasCommitted):
            assert all(0 <= token < VOCAB for token in event.token_ids)
            assert math.isfinite(event.mean_entropy)

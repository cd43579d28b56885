"""Batched equals single: whatever shares the batch, whoever joins when, the same tokens, exactly."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from easel.engine.native.config import GenerationDefaults
from easel.engine.native.model import Model
from easel.protocol import Denoising, GenerationRequest, Sampling
from tests.unit.engine.native.harness import Harness

Native = tuple[Model, GenerationDefaults]

REQUESTS = st.builds(
    lambda length, tokens, seed, steps, temperature: GenerationRequest(
        id="alone",
        prompt=tuple((7 * i + seed) % 94 + 2 for i in range(length)),
        max_tokens=tokens,
        sampling=Sampling(seed=seed, temperature=temperature),
        denoising=Denoising(max_steps=steps),
    ),
    length=st.sampled_from([1, 9, 33, 290]),
    tokens=st.integers(1, 30),
    seed=st.integers(0, 2**64 - 1),
    steps=st.integers(1, 4),
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
)
_ALONE: dict[GenerationRequest, list[int]] = {}


def _alone(native: Native, request: GenerationRequest) -> list[int]:
    if request not in _ALONE:
        harness = Harness(*native)
        harness.add(request)
        _ALONE[request] = harness.run()["alone"].tokens
    return _ALONE[request]


def _numbered(request: GenerationRequest, number: int) -> GenerationRequest:
    return replace(request, id=str(number))


@settings(max_examples=15, deadline=None)
@given(
    requests=st.lists(REQUESTS, min_size=2, max_size=5),
    pauses=st.lists(st.integers(0, 4), min_size=5, max_size=5),
    slots=st.integers(1, 5),
    workers=st.sampled_from([1, 3]),
    prefill=st.sampled_from([16, 300, 1024]),
)
def test_batched_equals_single_in_any_join_order(
    native: Native, requests: list[GenerationRequest], pauses: list[int], slots: int, workers: int, prefill: int
) -> None:
    harness = Harness(*native, slots=slots, prefill=prefill, workers=workers)
    for number, (request, pause) in enumerate(zip(requests, pauses, strict=False)):
        harness.add(_numbered(request, number))
        for _ in range(pause):
            harness.step()
    answers = harness.run()
    harness.runner.close()
    for number, request in enumerate(requests):
        assert answers[str(number)].tokens == _alone(native, request)


@settings(max_examples=10, deadline=None)
@given(requests=st.lists(REQUESTS, min_size=3, max_size=5), spare=st.integers(0, 12))
def test_preempted_sequences_answer_as_if_nothing_had_happened(
    native: Native, requests: list[GenerationRequest], spare: int
) -> None:
    longest = max(len(request.prompt) + 32 for request in requests)
    harness = Harness(*native, slots=5, blocks=-(-longest // 4) + 1 + spare)
    for number, request in enumerate(requests):
        harness.add(_numbered(request, number))
    answers = harness.run()
    for number, request in enumerate(requests):
        assert answers[str(number)].tokens == _alone(native, request)
    assert all(pool.free == pool.blocks for pool in harness.kv.pools)


def test_blocks_that_run_out_do_preempt(native: Native) -> None:
    harness = Harness(*native, slots=4, blocks=20)  # 80 tokens for 4 * (9 + 32)
    request = GenerationRequest(
        id="alone", prompt=tuple(range(2, 11)), max_tokens=40, ignore_eos=True, denoising=Denoising(max_steps=2)
    )
    for number in range(4):
        harness.add(_numbered(request, number))
    answers = harness.run()
    assert harness.preemptions > 0
    assert {tuple(answer.tokens) for answer in answers.values()} == {tuple(_alone(native, request))}


@pytest.mark.parametrize("committed", [1, 2])
def test_resumed_request_goes_on_as_if_it_had_never_stopped(native: Native, committed: int) -> None:
    request = GenerationRequest(id="alone", prompt=tuple(range(2, 40)), max_tokens=30, sampling=Sampling(seed=11),
                                denoising=Denoising(max_steps=3))  # fmt: skip
    whole = _alone(native, request)
    done = 8 * committed
    harness = Harness(*native)
    harness.add(replace(request, resume=tuple(whole[:done])))
    answer = harness.run()["alone"]
    assert answer.tokens == whole[done:]
    assert answer.finished.usage.completion_tokens == 30


def test_choices_of_one_prompt_differ(native: Native) -> None:
    request = GenerationRequest(id="alone", prompt=tuple(range(2, 12)), max_tokens=16, denoising=Denoising(max_steps=3))
    assert _alone(native, request) != _alone(native, replace(request, choice=1))
    assert _alone(native, request) != _alone(native, replace(request, sampling=Sampling(seed=1)))

"""The commit of a canvas and the first step of the next in one forward: the same tokens as one after the other.

In float64, where the order of a sum does not reach a token: what differs here is seen or written wrongly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from easel.engine.native.config import GenerationDefaults
from easel.engine.native.model import Model
from easel.engine.native.noise import PhiloxNoise
from easel.protocol import CanvasCommitted, Denoising, Finished, GenerationRequest, Preempted, Sampling
from tests.unit.engine.native.harness import Answer, Harness, load_model
from tests.unit.engine.native.reference_loop import decode
from tests.unit.engine.native.tiny import reference, save

SHAPES = {"window over canvas": (8, 10), "canvas over window": (8, 3), "odd": (5, 7)}
"""Canvas length and window."""


@dataclass(frozen=True)
class Built:
    """A model, and transformers' own."""

    native: tuple[Model, GenerationDefaults]
    oracle: Any


@pytest.fixture(scope="module", params=SHAPES, ids=lambda name: name.replace(" ", "-"))
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    length, window = SHAPES[request.param]
    oracle = reference(length, sliding_window=window)
    folder = save(oracle, tmp_path_factory.mktemp("fused"))
    return Built(load_model(folder, torch.float64), oracle)


REQUESTS = st.builds(
    lambda length, tokens, seed, steps, temperature, resume: GenerationRequest(
        id="",
        prompt=tuple((7 * i + seed) % 94 + 2 for i in range(length)),
        max_tokens=tokens,
        ignore_eos=True,
        resume=(9,) * resume,  # canvases, until the length of one is known
        sampling=Sampling(seed=seed, temperature=temperature),
        denoising=Denoising(max_steps=steps),
    ),
    length=st.sampled_from([1, 2, 3, 7, 9, 10, 11, 33, 257]),
    tokens=st.integers(17, 45),
    seed=st.integers(0, 2**64 - 1),
    steps=st.integers(1, 3),
    temperature=st.sampled_from([0.0, 1.0]),
    resume=st.integers(0, 2),
)
MOVES = st.lists(st.tuples(REQUESTS, st.integers(0, 4), st.none() | st.integers(0, 4)), min_size=2, max_size=5)
"""Requests that come one after another, how many steps are done before the next, and which of them leaves then."""


def _play(native: tuple[Model, GenerationDefaults], moves: Any, slots: int, blocks: int, fused: bool) -> Harness:
    harness = Harness(*native, slots=slots, blocks=blocks, exact=False, fused=fused)
    added = []
    for number, (request, steps, leaves) in enumerate(moves):
        resume = request.resume * native[0].config.canvas_length
        added.append(harness.add(replace(request, id=str(number), resume=resume)))
        for _ in range(steps):
            harness.step()
        if leaves is not None and leaves < len(added) and added[leaves] in harness.scheduler.sequences:
            told = harness.scheduler.finish(added[leaves], "cancelled")
            harness.runner.forget(added[leaves])
            harness.answers[str(leaves)].events += [event for _, event in told]
    harness.run()
    return harness


def _story(answer: Answer) -> list[Any]:
    """Everything that was told, but for floating-point numbers."""
    told: list[Any] = []
    for event in answer.events:
        if isinstance(event, CanvasCommitted):
            told.append((event.canvas, event.token_ids, event.steps, event.stop))
        elif isinstance(event, Finished):
            told.append((event.reason, event.usage))
        else:
            told.append(type(event))
    return told


@settings(max_examples=25, deadline=None)
@given(moves=MOVES, slots=st.integers(1, 4), spare=st.integers(0, 30))
def test_fused_equals_one_after_the_other(built: Built, moves: Any, slots: int, spare: int) -> None:
    longest = max(len(request.prompt) + 45 for request, _, _ in moves)
    together, apart = (
        _play(built.native, moves, slots, -(-longest // 4) + 2 + spare, fused) for fused in (True, False)
    )
    for number in together.answers:
        assert _story(together.answers[number]) == _story(apart.answers[number])
    assert all(pool.free == pool.blocks for pool in together.kv.pools)


def test_fused_equals_one_after_the_other_when_blocks_run_out(built: Built) -> None:
    request = GenerationRequest("", tuple(range(2, 11)), 40, ignore_eos=True, denoising=Denoising(max_steps=2))
    moves = [(replace(request, sampling=Sampling(seed=seed)), 1, None) for seed in range(4)]
    together, apart = (_play(built.native, moves, 4, 20, fused) for fused in (True, False))
    assert any(isinstance(event, Preempted) for answer in together.answers.values() for event in answer.events)
    assert together.fused_commits > 0
    assert [_story(answer) for answer in together.answers.values()] == [
        _story(answer) for answer in apart.answers.values()
    ]


@pytest.mark.parametrize("prompt", [1, 9, 30])
def test_fused_equals_the_reference(built: Built, prompt: int) -> None:
    length = built.native[0].config.canvas_length
    request = GenerationRequest("a", tuple(range(5, 5 + prompt)), 4 * length, sampling=Sampling(seed=3),
                                ignore_eos=True, denoising=Denoising(max_steps=3))  # fmt: skip
    theirs = decode(built.oracle, list(request.prompt), PhiloxNoise(), canvases=4, seed=3, max_steps=3, eos=())
    harness = Harness(*built.native, exact=False)
    harness.add(request)
    ours = harness.run()["a"]
    assert (ours.tokens, ours.steps) == (theirs.tokens, theirs.steps)
    assert harness.fused_commits == 3, "each canvas but the last is committed, with the next one's first step"


def test_a_step_for_the_commit_alone_is_never_taken(built: Built) -> None:
    """As many steps as denoising steps: a commit adds rows to one, never a step."""
    length = built.native[0].config.canvas_length
    harness = Harness(*built.native, exact=False)
    harness.add(GenerationRequest("a", (5, 6, 7), 3 * length, ignore_eos=True, denoising=Denoising(max_steps=3)))
    steps = 0
    while harness.scheduler.sequences:
        harness.step()
        steps += 1
    usage = harness.answers["a"].finished.usage
    assert (steps, usage.denoising_steps) == (9, 9)
    assert usage.work == pytest.approx((3 + 2 * length + 9 * length) / 256)

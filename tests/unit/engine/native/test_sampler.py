"""One denoising step: acceptance as the reference has it, draws as the distribution says, and what requests change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
    EntropyBoundSampler,
    EntropyBoundSamplerConfig,
    LinearTemperatureScheduleLogitsProcessor,
)

from easel.engine.native.noise import DrawKey, Draws, PhiloxNoise
from easel.engine.native.sampler import Choice, Sampled, denoise, draw, narrow, schedule

VOCAB, LENGTH = 12, 6


def _logits(seed: int, spread: float, canvases: int = 1) -> torch.Tensor:
    return spread * torch.randn(canvases, LENGTH, VOCAB, generator=torch.Generator().manual_seed(seed))


def _draws(canvases: int = 1) -> Draws:
    return PhiloxNoise().draws([DrawKey(canvas, 0, 0, 1) for canvas in range(canvases)], LENGTH, VOCAB)


def _step(logits: torch.Tensor, **choice: Any) -> Sampled:
    choices = [Choice(**({"schedule_temperature": 0.8, "entropy_bound": 0.5} | choice))] * logits.shape[0]
    return denoise(logits.clone(), choices, _draws(logits.shape[0]))


@given(seed=st.integers(0, 2**32), spread=st.floats(0.1, 20), bound=st.floats(0.001, 10))
def test_acceptance_matches_reference(seed: int, spread: float, bound: float) -> None:
    logits = _logits(seed, spread, canvases=2)
    ours = _step(logits, entropy_bound=bound)
    theirs = EntropyBoundSampler(EntropyBoundSamplerConfig(bound), LENGTH, VOCAB, 48)
    z = logits / 0.8
    theirs.accept_canvas(ours.argmax, ours.argmax, z, 1)
    entropy = torch.distributions.Categorical(logits=z).entropy()
    torch.testing.assert_close(ours.entropy, entropy, atol=1e-5, rtol=1e-5)
    before = entropy.sort(dim=-1).values.cumsum(dim=-1) - entropy.sort(dim=-1).values
    if (before - bound).abs().min() > 1e-4:  # not where the last bit decides
        assert torch.equal(ours.accepted, theirs.accepted_token_mask)
    assert ours.accepted.any(dim=-1).all()


@given(step=st.integers(1, 48))
def test_schedule_matches_reference(step: int) -> None:
    theirs = LinearTemperatureScheduleLogitsProcessor(0.4, 0.8, 48)
    scores = theirs(None, torch.ones(1), cur_step=49 - step)  # the reference counts what remains
    assert schedule(0.4, 0.8, step, 48) == pytest.approx(1 / scores.item())


def test_next_canvas_holds_draws_where_accepted_and_random_tokens_elsewhere() -> None:
    sampled, draws = _step(_logits(0, 2.0), temperature=0.0), _draws()
    assert sampled.accepted.any()
    assert not sampled.accepted.all()
    expected = torch.where(sampled.accepted, sampled.argmax, draws.random_tokens)
    assert torch.equal(sampled.canvas, expected)


def test_temperature_changes_the_draw_and_nothing_else() -> None:
    logits = _logits(1, 1.0)
    runs = [_step(logits, temperature=t, entropy_bound=100.0) for t in (0.0, 1.0, 5.0)]
    for run in runs[1:]:
        assert torch.equal(run.argmax, runs[0].argmax)
        assert torch.equal(run.entropy, runs[0].entropy)
        assert torch.equal(run.chances, runs[0].chances)
    assert torch.equal(runs[0].canvas, runs[0].argmax)
    assert not torch.equal(runs[1].canvas, runs[2].canvas)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_distribution(temperature: float) -> None:
    logs = torch.log_softmax(torch.tensor([2.0, 1.0, 0.0, -1.0, -torch.inf]), dim=-1).expand(20_000, 5)
    uniform = PhiloxNoise().draws([DrawKey(0, 0, 0, 1)], 20_000, 5).uniform[0]
    drawn = draw(logs, logs.exp(), logs.argmax(dim=-1), uniform, Choice(1.0, 1.0, temperature))
    expected = torch.softmax(logs[0] / temperature, dim=-1)
    found = torch.bincount(drawn, minlength=5) / 20_000
    torch.testing.assert_close(found, expected, atol=0.015, rtol=0)
    assert found[4] == 0


def test_largest_uniform_never_draws_a_token_without_a_chance() -> None:
    logs = torch.log_softmax(torch.tensor([[1.0, 2.0, -torch.inf]]), dim=-1)
    uniform = torch.tensor([1 - 2.0**-24])
    assert draw(logs, logs.exp(), torch.tensor([1]), uniform, Choice(1.0, 1.0)).item() == 1


def test_narrowing_keeps_what_it_should() -> None:
    weights = torch.tensor([[0.1, 0.4, 0.2, 0.3]])
    kept = {
        "top_k": narrow(weights, Choice(1.0, 1.0, top_k=2)),
        "top_p": narrow(weights, Choice(1.0, 1.0, top_p=0.65)),
        "min_p": narrow(weights, Choice(1.0, 1.0, min_p=0.6)),
    }
    assert {name: left[0].nonzero().flatten().tolist() for name, left in kept.items()} == {
        "top_k": [1, 3],
        "top_p": [1, 3],
        "min_p": [1, 3],
    }
    assert torch.equal(narrow(weights, Choice(1.0, 1.0)), weights)


def test_banned_tokens_never_come_and_keep_entropy_finite() -> None:
    sampled = _step(torch.zeros(1, LENGTH, VOCAB), banned=tuple(range(10)), entropy_bound=100.0)
    assert sampled.canvas.min() >= 10
    assert sampled.argmax.min() >= 10
    torch.testing.assert_close(sampled.entropy, torch.full((1, LENGTH), 2.0).log())


def test_stop_tokens_wait_for_min_tokens() -> None:
    logits = torch.zeros(1, LENGTH, VOCAB)
    logits[..., 1] = 5.0
    sampled = _step(logits, banned_early=(1,), early=4)
    assert (sampled.argmax[0, :4] != 1).all()
    assert (sampled.argmax[0, 4:] == 1).all()


def test_bias_moves_the_argmax() -> None:
    assert (_step(_logits(2, 1.0), logit_bias=((7, 100.0),)).argmax == 7).all()


def test_pinned_positions_are_given_and_certain() -> None:
    sampled = _step(_logits(3, 0.1), pinned=((2, 5), (4, 9)), entropy_bound=0.0)
    for tokens in (sampled.argmax, sampled.canvas):
        assert tokens[0, [2, 4]].tolist() == [5, 9]
    assert sampled.entropy[0, [2, 4]].abs().max() == 0
    assert sampled.accepted[0, [2, 4]].all()


def test_logprobs_are_of_the_distribution_that_decided() -> None:
    logits = _logits(4, 2.0)
    logprobs = _step(logits, logprobs=3).logprobs[0]
    assert logprobs is not None
    logs = torch.log_softmax(logits[0] / 0.8, dim=-1)
    torch.testing.assert_close(logprobs.chosen, logs.max(dim=-1).values)
    torch.testing.assert_close(logprobs.top, logs.topk(3).values)
    assert torch.equal(logprobs.top_ids, logs.topk(3).indices)
    assert _step(logits).logprobs == (None,)

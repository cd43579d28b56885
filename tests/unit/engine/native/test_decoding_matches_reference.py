"""Whole answers against the reference's loop fed with the same draws: the same tokens after the same steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from easel.engine.native.config import GenerationDefaults
from easel.engine.native.model import Model
from easel.engine.native.noise import PhiloxNoise
from easel.protocol import CanvasCommitted, CanvasStop, Denoising, GenerationRequest, Sampling
from tests.unit.engine.native.harness import Answer, Harness, load_model
from tests.unit.engine.native.reference_loop import ReferenceRun, decode
from tests.unit.engine.native.tiny import EOS, reference, save

Native = tuple[Model, GenerationDefaults]
EASY: dict[str, Any] = {"max_steps": 12, "entropy_bound": 8.0, "confidence": 0.5}
"""Rules under which random weights converge, after a different number of steps for each stability."""


@pytest.fixture(scope="module")
def settled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Native]:
    """A model whose canvases converge: its embedding outweighs its layers, so it believes what it reads."""
    oracle = reference(embedding=1.0)
    return oracle, load_model(save(oracle, tmp_path_factory.mktemp("settled")))


def _ours(native: Native, prompt: list[int], max_tokens: int, seed: int, **denoising: Any) -> Answer:
    harness = Harness(*native)
    harness.add(
        GenerationRequest(
            id="a",
            prompt=tuple(prompt),
            max_tokens=max_tokens,
            sampling=Sampling(seed=seed),
            denoising=Denoising(**denoising),
        )
    )
    return harness.run()["a"]


def _compare(ours: Answer, theirs: ReferenceRun, max_tokens: int) -> None:
    expected = theirs.tokens[:max_tokens]
    if EOS in expected:
        expected = expected[: expected.index(EOS)]
        assert ours.finished.reason == "stop"
        assert ours.finished.stop_token_id == EOS
    else:
        assert ours.finished.reason == "length"
    assert ours.tokens == expected
    assert ours.steps == theirs.steps


@pytest.mark.parametrize("stability", [0, 1, 2])
@pytest.mark.parametrize("seed", [1, 2])
def test_same_tokens_with_early_stops(settled: tuple[Any, Native], stability: int, seed: int) -> None:
    oracle, native = settled
    prompt = list(range(40, 58))
    rules = EASY | {"stability": stability}
    theirs = decode(oracle, prompt, PhiloxNoise(), canvases=3, seed=seed, **rules)
    ours = _ours(native, prompt, 24, seed, **rules)
    _compare(ours, theirs, 24)
    stops = {event.stop for event in ours.events if isinstance(event, CanvasCommitted)}
    if seed == 2:
        assert CanvasStop.CONVERGED in stops, "no canvas stopped early: the case tests nothing"


@pytest.mark.parametrize("max_tokens", [1, 7, 8, 9, 20])
def test_same_tokens_with_max_tokens_left_over(oracle: Any, native: Native, max_tokens: int) -> None:
    prompt = list(range(5, 35))
    theirs = decode(oracle, prompt, PhiloxNoise(), canvases=-(-max_tokens // 8), seed=3, max_steps=4)
    _compare(_ours(native, prompt, max_tokens, 3, max_steps=4), theirs, max_tokens)


def test_same_tokens_until_the_end_token(settled: tuple[Any, Native]) -> None:
    oracle, native = settled
    prompt, ended = list(range(40, 58)), 0
    for seed in range(12):
        theirs = decode(oracle, prompt, PhiloxNoise(), canvases=4, seed=seed, max_steps=3)
        ours = _ours(native, prompt, 32, seed, max_steps=3)
        _compare(ours, theirs, 32)
        ended += ours.finished.reason == "stop"
    assert ended, "no answer ended by itself: the case tests nothing"


def test_same_tokens_with_the_checkpoints_own_defaults(tmp_path: Path) -> None:
    oracle = reference(seed=5)
    schedule = {"max_denoising_steps": 6, "t_min": 0.3, "t_max": 1.2, "stability_threshold": 0,
                "confidence_threshold": 2.5}  # fmt: skip
    folder = save(oracle, tmp_path, sampler_config=_bound(0.7), **schedule)
    native = load_model(folder)
    assert native[1] == GenerationDefaults(6, 0.7, 0.3, 1.2, 0, 2.5, (EOS,))
    theirs = decode(oracle, [9, 8, 7], PhiloxNoise(), canvases=2, max_steps=6, entropy_bound=0.7, t_min=0.3,
                    t_max=1.2, stability=0, confidence=2.5)  # fmt: skip
    _compare(_ours(native, [9, 8, 7], 16, 0), theirs, 16)


def _bound(value: float) -> Any:
    from transformers.models.diffusion_gemma.generation_diffusion_gemma import EntropyBoundSamplerConfig

    return EntropyBoundSamplerConfig(value)


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # torch's own, when it is imported
def test_the_loop_above_is_the_loop_of_generate(settled: tuple[Any, Native], monkeypatch: pytest.MonkeyPatch) -> None:
    """`generate` itself, its two sources of chance replaced by the same draws, agrees with us."""
    oracle, native = settled
    prompt, seed = list(range(40, 58)), 2
    feed = _Feed(seed, vocab=96, length=8)
    monkeypatch.setattr(torch, "randint", feed.randint)
    monkeypatch.setattr(torch, "multinomial", feed.multinomial)
    out = oracle.generate(
        torch.tensor([prompt]),
        max_new_tokens=24,
        max_denoising_steps=EASY["max_steps"],
        stability_threshold=1,
        confidence_threshold=EASY["confidence"],
        sampler_config=_bound(EASY["entropy_bound"]),
        eos_token_id=None,
        pad_token_id=None,
        return_dict_in_generate=False,
    )
    monkeypatch.undo()
    model, defaults = native
    ours = _ours((model, replace(defaults, eos_token_ids=())), prompt, 24, seed, **EASY)
    assert out[0, len(prompt) :].tolist() == ours.tokens
    assert feed.canvas == 2
    assert max(ours.steps) < EASY["max_steps"], "no canvas stopped early: the case tests nothing"


class _Feed:
    """Stands in for `torch.randint` and `torch.multinomial` inside `generate`.

    A step asks for its draws first and for random tokens after; so random tokens asked for without draws before them
    begin a new canvas.
    """

    def __init__(self, seed: int, vocab: int, length: int) -> None:
        self.seed, self.vocab, self.length = seed, vocab, length
        self.canvas, self.step, self.drawn = -1, 0, False
        self.real: Callable[..., torch.Tensor] = torch.randint

    def _draws(self) -> Any:
        from easel.engine.native.noise import DrawKey

        return PhiloxNoise().draws([DrawKey(self.seed, 0, self.canvas, self.step)], self.length, self.vocab)

    def randint(self, *, low: int, high: int, size: tuple[int, ...], device: Any) -> torch.Tensor:
        assert (low, high, tuple(size)) == (0, self.vocab, (1, self.length))
        if not self.drawn:
            self.canvas, self.step = self.canvas + 1, 0
        self.drawn = False
        return self._draws().random_tokens

    def multinomial(self, chances: torch.Tensor, num_samples: int) -> torch.Tensor:
        self.step, self.drawn = self.step + 1, True
        cumulative = chances.cumsum(dim=-1)
        target = self._draws().uniform[0] * cumulative[:, -1]
        return torch.searchsorted(cumulative, target.unsqueeze(-1), right=True).clamp(max=self.vocab - 1)

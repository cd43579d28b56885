"""Draws that a request narrows, and the best tokens, against `sampler.narrow` and a sort: the same kept tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from easel.engine.native.kernels.narrowing import draw_narrowed
from easel.engine.native.sampler import Choice, narrow

VOCAB, N, TOGETHER = 300, 64, 4
TILES = triton.cdiv(VOCAB, N)


@triton.jit
def _draw(masses, largest, uniform, drawn, inverse_temperature, top_k, top_p, min_p, peak, tiles,
          N: tl.constexpr, TOGETHER: tl.constexpr):  # fmt: skip
    place = tl.program_id(0)
    kept = top_k + tl.full([], 0, tl.int32)
    token = draw_narrowed(masses, largest, 0.0, peak + tl.full([], 0.0, tl.float32), tl.load(uniform + place),
                          inverse_temperature, kept, top_p, min_p, tiles, N, TOGETHER)  # fmt: skip
    tl.store(drawn + place, token)


def _masses(seed: int) -> torch.Tensor:
    """Masses as the head rounds them, with many ties and some that are nothing."""
    masses = torch.exp2(4 * torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed)))
    masses = masses.log2().mul(2).round().div(2).exp2()
    masses[::7] = 0.0
    return masses.bfloat16()


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": 0.6},
        {"top_k": 5},
        {"top_k": 290, "temperature": 2.0},
        {"top_p": 0.5},
        {"top_p": 0.97, "temperature": 1.7},
        {"min_p": 0.2},
        {"top_k": 40, "top_p": 0.8, "min_p": 0.05, "temperature": 1.3},
    ],
)
def test_draws_among_what_is_kept(given: dict[str, Any]) -> None:
    """At uniforms all over [0, 1), the draw is the one that inverting the kept tokens' sum gives."""
    choice = Choice(1.0, 1.0, **given)
    masses = _masses(len(given))
    padded = torch.zeros(TILES * N, dtype=torch.bfloat16)
    padded[:VOCAB] = masses
    largest = padded.view(TILES, N).amax(dim=1).float().log2()
    uniform = (torch.arange(6) + 0.5) / 6
    drawn = torch.full((6,), -1, dtype=torch.int32)
    peak = largest.max().item()
    _draw[(6,)](
        padded.view(torch.int16), largest, uniform, drawn, 1.0 / choice.temperature, choice.top_k, choice.top_p,
        choice.min_p, peak, TILES, N=N, TOGETHER=TOGETHER,
    )  # fmt: skip
    weights = (masses.float() / masses.float().max()) ** (1.0 / choice.temperature)
    cumulative = narrow(weights.unsqueeze(0), choice)[0].double().cumsum(dim=0)
    expected = torch.searchsorted(cumulative, uniform.double() * cumulative[-1], right=True)
    near = (cumulative - (uniform.double() * cumulative[-1]).unsqueeze(1)).abs().amin(dim=1) < 1e-5 * cumulative[-1]
    assert (near | (drawn == expected)).all()
    assert near.sum() <= 1

"""Norms, residuals, gate and embedding against the plain model's arithmetic."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import gelu

from easel.engine.native.kernels.embed import embed
from easel.engine.native.kernels.groups import Groups
from easel.engine.native.kernels.routing import Routing
from easel.engine.native.kernels.rows import after_attention, after_feed_forward, gelu_gate, norm
from easel.engine.native.model import unit_rms

EPS, HIDDEN, EACH, TOP_K = 1e-6, 44, 3, 2
GROUPS = Groups(
    start=torch.tensor([4, 0, 0, 9], dtype=torch.int32),
    length=torch.tensor([3, 2, 0, 1], dtype=torch.int32),
    causal=torch.tensor([0, 1, 0, 1], dtype=torch.int32),
)
ROWS = EACH * 4
HOLDS = (torch.arange(EACH) < GROUPS.length[:, None]).flatten()
ENCODES = GROUPS.causal.bool().repeat_interleave(EACH)

both_types = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def _rows(dtype: torch.dtype, count: int) -> list[torch.Tensor]:
    return [(torch.randn(ROWS, HIDDEN) * 3).to(dtype) for _ in range(count)]


def _norms(dtype: torch.dtype, count: int) -> list[torch.Tensor]:
    return [(1 + 0.2 * torch.randn(HIDDEN)).to(dtype) for _ in range(count)]


def _poisoned(dtype: torch.dtype, count: int) -> list[torch.Tensor]:
    return [torch.full((ROWS, HIDDEN), float("nan"), dtype=dtype) for _ in range(count)]


def _normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return (unit_rms(x, EPS) * weight).to(x.dtype)


def _routing() -> Routing:
    """Slots in any order; rows that hold nothing have no expert."""
    routing = Routing.for_rows(ROWS, 4, TOP_K, "cpu")
    routing.weights[:] = torch.where(HOLDS[:, None], torch.rand(ROWS, TOP_K) + 0.1, 0.0)
    routing.index[:] = torch.where(HOLDS[:, None], 1, -1)
    routing.slot[:] = torch.randperm(ROWS * TOP_K).view(ROWS, TOP_K).int()
    return routing


def _close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    near = {"rtol": 1e-5, "atol": 1e-5} if got.dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}
    torch.testing.assert_close(got, wanted, **near)


@both_types
def test_norm(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    (x,), (weight,), (out,) = _rows(dtype, 1), _norms(dtype, 1), _poisoned(dtype, 1)
    norm(x, weight, EPS, out)
    _close(out, _normed(x, weight))


@both_types
def test_gelu_gate(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    x = (torch.randn(ROWS, 2 * HIDDEN) * 4).to(dtype)
    x[0, :4] = torch.tensor([300.0, -300.0, 0.0, -20.0])
    (out,) = _poisoned(dtype, 1)
    gelu_gate(x, out)
    gate, up = x.chunk(2, dim=-1)
    _close(out, gelu(gate, approximate="tanh") * up)


@both_types
def test_after_attention_in_place(dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    (x, mixed), weights = _rows(dtype, 2), _norms(dtype, 4)
    h = x + _normed(mixed, weights[0])
    outs = _poisoned(dtype, 3)
    after_attention(x, mixed, *weights, EPS, x, *outs)
    _close(x, h)
    for out, weight in zip(outs, weights[1:], strict=True):
        _close(out, _normed(h, weight))


@both_types
def test_after_feed_forward(dtype: torch.dtype) -> None:
    torch.manual_seed(4)
    (h, dense), weights = _rows(dtype, 2), _norms(dtype, 4)
    narrow, routing = (torch.randn(ROWS * TOP_K, HIDDEN) * 3).to(dtype), _routing()
    chosen = narrow[routing.slot.long()].float() * routing.weights[..., None]
    routed = chosen.sum(1).to(dtype)
    encode, decode = torch.tensor([0.5], dtype=dtype), torch.tensor([1.25], dtype=dtype)
    wanted = h + _normed(_normed(dense, weights[0]) + _normed(routed, weights[1]), weights[2])
    wanted = wanted * torch.where(ENCODES, encode, decode)[:, None]
    wanted[~HOLDS] = 0.0
    for tensor in (h, dense):
        tensor[~HOLDS] = float("nan")  # never read
    narrow[routing.slot[~HOLDS].flatten().long()] = float("nan")
    routing.slot[~HOLDS] = 1 << 30
    x, normed = _poisoned(dtype, 2)
    after_feed_forward(h, dense, narrow, routing, *weights[:3], encode, decode, GROUPS, weights[3], EPS, x, normed)
    _close(x, wanted)
    _close(normed, _normed(wanted, weights[3]))


@both_types
def test_embed(dtype: torch.dtype) -> None:
    torch.manual_seed(5)
    embedding = (torch.randn(17, HIDDEN) * 0.1).to(dtype)
    tokens = torch.randint(17, (ROWS,), dtype=torch.int32)
    (conditioning,), (weight,) = _rows(dtype, 1), _norms(dtype, 1)
    wanted = embedding[tokens.long()] * torch.tensor(HIDDEN**0.5, dtype=dtype)
    wanted = torch.where(ENCODES[:, None], wanted, unit_rms(wanted + conditioning, EPS).to(dtype))
    wanted[~HOLDS] = 0.0
    conditioning[~HOLDS | ENCODES] = float("nan")  # never read
    tokens[~HOLDS] = 1_000_000
    x, normed = _poisoned(dtype, 2)
    embed(tokens, embedding, conditioning, GROUPS, weight, EPS, x, normed)
    _close(x, wanted)
    _close(normed, _normed(wanted, weight))


def test_shapes_that_differ_are_named() -> None:
    (x,), (weight,) = _rows(torch.float32, 1), _norms(torch.float32, 1)
    with pytest.raises(ValueError, match="out: "):
        norm(x, weight, EPS, x[:, :4])
    with pytest.raises(ValueError, match="x: "):
        gelu_gate(x, x)
    with pytest.raises(ValueError, match="narrow: "):
        after_feed_forward(x, x, x, _routing(), *[weight] * 3, weight, weight, GROUPS, weight, EPS, x, x)
    with pytest.raises(ValueError, match="conditioning: "):
        embed(torch.zeros(ROWS, dtype=torch.int32), x, x[:2], GROUPS, weight, EPS, x, x)

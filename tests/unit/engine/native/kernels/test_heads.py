"""Norms, rotary positions and cache writes against the plain model's."""

from __future__ import annotations

import pytest
import torch

from easel.engine.native.kernels.heads import shape_heads
from easel.engine.native.model import _rotate, unit_rms
from tests.unit.engine.native.kernels.sequences import RAGGED, Case, layer_config, valid

ROWS, EPS = 16, 1e-6


@pytest.mark.parametrize("own_values", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("far", [0, 30000])
def test_heads_and_cache(own_values: bool, dtype: torch.dtype, far: int) -> None:
    torch.manual_seed(4)
    heads, kv_heads, dim = 4, 2, 32
    case = Case(RAGGED, ROWS, 8, None)
    groups, kv, holds = case.groups(), case.pool(kv_heads, dim, dtype), valid(case)
    groups.start.add_(far)  # the same blocks, much later
    kv.first.add_(far)
    rows = len(case.parts) * ROWS
    columns = (heads + kv_heads * (2 if own_values else 1)) * dim
    qkv = torch.randn(rows, columns).to(dtype)
    qk_norm = (1 + 0.1 * torch.randn(heads + kv_heads, dim)).to(dtype)
    frequencies = 1e4 ** (-torch.arange(dim // 2) / (dim // 2))
    positions = (groups.start[:, None] + torch.arange(ROWS)).flatten()

    unit = unit_rms(qkv.view(rows, -1, dim), EPS)
    values = unit[:, -kv_heads:].to(dtype)
    angles = positions[:, None].float() * frequencies
    angles = torch.cat((angles, angles), dim=-1)[:, None]
    turned = _rotate(
        (unit[:, : heads + kv_heads] * qk_norm).to(dtype), (angles.cos().to(dtype), angles.sin().to(dtype))
    )
    plain = case.plain(layer_config("full", heads, kv_heads, dim, None), kv, "full")
    plain.write(0, turned[:, heads:].float(), values.float())

    qkv[~holds] = float("nan")  # never read
    q = torch.full((rows, heads, dim), float("nan"), dtype=dtype)
    k, v = (torch.full((rows, kv_heads, dim), float("nan"), dtype=dtype) for _ in "kv")
    shape_heads(qkv, qk_norm, frequencies, EPS, groups, kv, q, k, v)

    near = {"rtol": 1e-4, "atol": 2e-5} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}
    for got, wanted in ((q, turned[:, :heads]), (k, turned[:, heads:]), (v, values)):
        assert not got[~holds].any()
        torch.testing.assert_close(got[holds], wanted[holds], **near)
    torch.testing.assert_close(kv.keys.float(), plain.kv.keys[0], **near)  # written where it must, nowhere else
    torch.testing.assert_close(kv.values.float(), plain.kv.values[0], **near)


def test_columns_that_do_not_fit_are_refused() -> None:
    case = Case(RAGGED[:1], ROWS, 8, None)
    q, k = torch.zeros(ROWS, 4, 16), torch.zeros(ROWS, 2, 16)
    with pytest.raises(ValueError, match="columns"):
        shape_heads(torch.zeros(ROWS, 7), q[0], q[0, 0], EPS, case.groups(), case.pool(2, 16, q.dtype), q, k, k)

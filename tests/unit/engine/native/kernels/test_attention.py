"""Attention against the plain one: ragged groups, windows, tables that start late, splits, packed heads.

In fp32: the interpreter multiplies bf16 matrices as if they were integers. In bf16: tests/gpu.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from easel.engine.native.kernels.attention import AttentionWorkspace, Tiles, attend
from tests.unit.engine.native.kernels.sequences import RAGGED, Case, Part, layer_config, valid

ROWS = 16
USUAL = Tiles(queries=16, keys=16, warps=4, stages=2)


def run(
    case: Case,
    heads: int,
    kv_heads: int,
    dim: int,
    tiles: Tiles | None,
    parts: torch.dtype = torch.float32,
    dtype: torch.dtype = torch.float32,
    nothing: float = float("nan"),
) -> float:
    """Largest relative error of a row; checks the rows that hold nothing, which are `nothing` in q, k and v."""
    torch.manual_seed(3)
    groups, kv = case.groups(), case.pool(kv_heads, dim, dtype)
    rows = len(case.parts) * case.rows_each
    q = (torch.randn(rows, heads, dim) * 0.3).bfloat16().to(dtype)
    k, v = (torch.randn(rows, kv_heads, dim).bfloat16().to(dtype) for _ in "kv")
    plain = case.plain(
        layer_config("sliding" if case.window else "full", heads, kv_heads, dim, case.window),
        kv,
        "sliding" if case.window else "full",
    )
    plain.write(0, k.float(), v.float())
    kv.keys.copy_(plain.kv.keys[0])
    kv.values.copy_(plain.kv.values[0])
    expected = plain.attend(0, q.float(), k.float(), v.float())
    holds = valid(case)
    for tensor in (q, k, v):
        tensor[~holds] = nothing
    out = torch.full((rows, heads * dim), float("nan"), dtype=dtype)
    space = AttentionWorkspace.for_groups(groups.count, heads, (dim,), "cpu", case.rows_each, dtype)
    if tiles is not None:
        size = tiles.splits * rows * heads
        space = AttentionWorkspace(
            torch.full((size * dim,), float("nan"), dtype=parts), torch.full((size * 2,), float("nan"))
        )
    attend(q, k, v, groups, kv, case.window, out, space, tiles)
    assert not out[~holds].any()
    wrong = (out.float() - expected)[holds].norm(dim=-1) / expected[holds].norm(dim=-1)
    return float(wrong.max())


@pytest.mark.parametrize("window", [None, 7, 24])
@pytest.mark.parametrize("tiles", [USUAL, replace(USUAL, splits=3), replace(USUAL, pack=2, splits=2, cuts=2)])
def test_ragged_groups(window: int | None, tiles: Tiles) -> None:
    case = Case(RAGGED, ROWS, 8, window)
    assert run(case, 4, 2, 16, tiles) < 1e-5


@pytest.mark.parametrize("window", [None, 9])
def test_own_choice_of_tiles(window: int | None) -> None:
    assert run(Case(RAGGED, ROWS, 4, window), 2, 1, 32, None) < 1e-5


def test_parts_in_bf16_cost_one_rounding() -> None:
    # 2 ** -7: the interpreter cuts bits off where a GPU rounds.
    assert run(Case(RAGGED, ROWS, 8, None), 4, 2, 16, replace(USUAL, splits=3), torch.bfloat16) < 2**-7


def test_tables_whose_first_blocks_were_given_back() -> None:
    parts = (Part(0, 40, 16, causal=False), Part(1, 44, 12, causal=True))
    assert run(Case(parts, ROWS, 8, 12, dropped=3), 4, 2, 16, USUAL) < 1e-5


def test_rows_that_are_no_multiple_of_a_tile() -> None:
    parts = (Part(0, 9, 24, causal=False), Part(1, 0, 23, causal=True))
    assert run(Case(parts, 24, 8, None), 2, 2, 16, USUAL) < 1e-5


def test_shapes_that_do_not_fit_are_refused() -> None:
    case = Case(RAGGED[:1], ROWS, 8, None)
    q, k = torch.zeros(ROWS, 4, 16), torch.zeros(ROWS, 2, 16)
    kv, space = case.pool(2, 16, torch.float32), AttentionWorkspace.for_groups(1, 1, (16,), "cpu", 1)
    with pytest.raises(ValueError, match="out"):
        attend(q, k, k, case.groups(), kv, None, torch.zeros(ROWS, 32), space)
    small = AttentionWorkspace(torch.empty(1), torch.empty(1))
    with pytest.raises(ValueError, match="workspace"):
        attend(q, k, k, case.groups(), kv, None, torch.zeros(ROWS, 64), small)

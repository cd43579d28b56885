"""The Hopper attention's program, on CPU tensors: the same sums as the plain one, and no buffer used too early."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from easel.engine.native.kernels import hopper_attention
from easel.engine.native.kernels.attention import Tiles
from tests.unit.engine.native.kernels.gluon_on_cpu import Kernel
from tests.unit.engine.native.kernels.sequences import Case, Part
from tests.unit.engine.native.kernels.test_attention import run

ROWS = 128
"""Rows that hold nothing are 10,000 here: whole blocks are read, and they must weigh nothing."""
PARTS = (
    Part(0, 200, 128, causal=False),
    Part(1, 70, 128, causal=True),
    Part(2, 0, 128, causal=False),
    Part(3, 131, 77, causal=True),
    Part(4, 0, 0, causal=False),
    Part(5, 9, 100, causal=False),
)


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hopper_attention, "attend", Kernel(hopper_attention, "attend"))


def tiles(dim: int, splits: int) -> Tiles:
    return replace(Tiles.of(1000, ROWS, 2, dim, hopper=True), splits=splits)


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize(("dim", "window"), [(256, 100), (256, None), (512, None)])
def test_ragged_groups(dim: int, window: int | None, splits: int) -> None:
    # 2 ** -7: weights and parts are rounded to bf16.
    assert (
        run(Case(PARTS, ROWS, 16, window), 2, 1, dim, tiles(dim, splits), torch.bfloat16, torch.bfloat16, 1e4) < 2**-7
    )


@pytest.mark.parametrize(("dim", "window"), [(256, None), (256, 40), (512, None)])
def test_more_splits_than_tiles(dim: int, window: int | None) -> None:
    parts = (Part(0, 3, 128, causal=False), Part(1, 0, 10, causal=True))
    assert run(Case(parts, ROWS, 8, window), 2, 2, dim, tiles(dim, 8), torch.bfloat16, torch.bfloat16, 1e4) < 2**-7


def test_tables_whose_first_blocks_were_given_back() -> None:
    parts = (Part(0, 240, 128, causal=False), Part(1, 244, 112, causal=True))
    assert (
        run(Case(parts, ROWS, 8, 60, dropped=20), 2, 1, 256, tiles(256, 1), torch.bfloat16, torch.bfloat16, 1e4) < 2**-7
    )


@pytest.mark.parametrize("dim", [256, 512])
def test_a_tile_that_reaches_past_the_table_s_end(dim: int) -> None:
    case = Case((Part(0, 200, 3, causal=False),), ROWS, 16, None)
    assert run(case, 2, 1, dim, tiles(dim, 1), torch.bfloat16, torch.bfloat16, 1e4) < 2**-7


def test_it_takes_the_model_s_heads_only() -> None:
    assert Tiles.of(1, 256, 16, 256, hopper=True) == Tiles(128, 64, 8, 2, splits=4, hopper=True)
    assert Tiles.of(1, 256, 16, 512, hopper=True) == Tiles(128, 64, 8, 2, splits=2, cuts=2, hopper=True)
    assert not Tiles.of(1, 256, 16, 128, hopper=True).hopper
    assert not Tiles.of(1, 64, 16, 256, hopper=True).hopper


def test_blocks_that_make_no_whole_copies_are_left_to_the_other_kernel() -> None:
    found = {size: hopper_attention.fits_blocks(size) for size in (4, 8, 12, 24, 32, 256)}
    assert found == {4: False, 8: True, 12: False, 24: True, 32: True, 256: True}


@pytest.mark.parametrize("block_tokens", [24, 128])
def test_blocks_of_other_sizes_than_a_tile(block_tokens: int) -> None:
    parts = (Part(0, 300, 128, causal=False), Part(1, 131, 77, causal=True))
    case = Case(parts, ROWS, block_tokens, 150)
    assert run(case, 2, 1, 256, tiles(256, 1), torch.bfloat16, torch.bfloat16, 1e4) < 2**-7

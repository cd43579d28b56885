"""Attention kernels at the model's sizes: bf16 against fp32."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytestmark = pytest.mark.gpu

KINDS = pytest.mark.parametrize("kind", ["sliding", "full"])


@KINDS
@pytest.mark.parametrize("which", ["one", "mixed"])
def test_attention(kind: str, which: str) -> None:
    from tests.gpu import attention_cases as cases

    parts = cases.ONE if which == "one" else cases.MIXED
    assert cases.attention_error(parts, cases.SLIDING if kind == "sliding" else cases.FULL) < 1e-2


@KINDS
def test_every_number_of_splits_reads_the_same(kind: str) -> None:
    import torch

    from easel.engine.native.kernels.attention import Tiles
    from tests.gpu import attention_cases as cases

    shape = cases.SLIDING if kind == "sliding" else cases.FULL
    usual = Tiles.of(
        len(cases.MIXED), cases.ROWS, cases.HEADS, shape[1], hopper=torch.cuda.get_device_capability()[0] == 9
    )
    for splits in (1, 3, 8):
        assert cases.attention_error(cases.MIXED, shape, replace(usual, splits=splits)) < 1e-2


@KINDS
@pytest.mark.parametrize("far", [0, 32 * 1000, 32 * 8000])
def test_heads_and_cache(kind: str, far: int) -> None:
    from tests.gpu import attention_cases as cases

    assert cases.heads_error(cases.MIXED, cases.SLIDING if kind == "sliding" else cases.FULL, far) < 1e-2

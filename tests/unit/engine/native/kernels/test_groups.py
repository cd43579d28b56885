"""Groups: how many rows each has."""

from __future__ import annotations

import pytest
import torch

from easel.engine.native.kernels.groups import Groups


def _groups(count: int) -> Groups:
    zeros = torch.zeros(count, dtype=torch.int32)
    return Groups(start=zeros, length=zeros, causal=zeros)


def test_rows_are_shared_out_evenly() -> None:
    assert _groups(3).rows_each(768) == 256


@pytest.mark.parametrize("rows", [0, 2, 7])
def test_rows_that_do_not_divide_are_refused(rows: int) -> None:
    with pytest.raises(ValueError, match=f"{rows} rows do not make 3 groups"):
        _groups(3).rows_each(rows)

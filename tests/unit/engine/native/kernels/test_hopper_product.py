"""The Hopper experts' program, on CPU tensors: the same sums as the plain experts, and no buffer used too early."""

from __future__ import annotations

import pytest

from easel.engine.native.kernels import experts as experts_module
from easel.engine.native.kernels import hopper_product
from easel.engine.native.kernels import routing as routing_module
from easel.engine.native.kernels.hopper_product import HopperShape
from tests.unit.engine.native.kernels.gluon_on_cpu import Kernel
from tests.unit.engine.native.kernels.test_experts import weighted_sum_error


@pytest.mark.parametrize(
    ("tile", "shape"),
    [
        (32, HopperShape(8, 80, 1, stages=6)),
        (80, HopperShape(8, 128, 1, 16, 6)),
        (128, HopperShape(8, 128, 2)),
        (128, HopperShape(16, 128, 2)),
        (64, HopperShape(16, 128, 1, width=32)),
    ],
)
@pytest.mark.parametrize(("hidden", "wide"), [(320, 192), (64, 64)])
def test_weighted_sum_of_experts(
    tile: int, shape: HopperShape, hidden: int, wide: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hopper_product, "grouped", Kernel(hopper_product, "grouped"))
    monkeypatch.setattr(routing_module, "FORCED_TILE", tile)
    monkeypatch.setattr(experts_module, "FORCED_SHAPE", shape)
    assert weighted_sum_error(hidden, wide, [90, 0, 3], 90, skewed=True) <= 4e-3  # two roundings to bfloat16

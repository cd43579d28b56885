"""The Hopper experts' program, on CPU tensors: the same sums as the plain experts, and no buffer used too early."""

from __future__ import annotations

import pytest
import torch

from easel.engine.native.kernels import experts as experts_module
from easel.engine.native.kernels import hopper_down, hopper_product
from easel.engine.native.kernels import routing as routing_module
from easel.engine.native.kernels.experts import Routing, Workspace, route, run_experts
from easel.engine.native.kernels.hopper_product import HopperShape
from tests.unit.engine.native.kernels.gluon_on_cpu import Kernel
from tests.unit.engine.native.kernels.test_experts import layer, reference

EXPERTS, TOP_K = 4, 2


@pytest.mark.parametrize(
    ("tile", "shape"),
    [
        (32, HopperShape(8, 80, 1, stages=6)),
        (80, HopperShape(8, 128, 1, 16, 6)),
        (128, HopperShape(8, 128, 2)),
        (128, HopperShape(16, 128, 2)),
        (64, HopperShape(16, 128, 1, width=32)),
        (32, HopperShape(8, 80, 1, stages=4, shares=1)),
        (80, HopperShape(8, 128, 1, 16, 6, shares=2)),
        (64, HopperShape(16, 128, 2, shares=3)),
    ],
)
@pytest.mark.parametrize(("hidden", "wide"), [(320, 192), (512, 320), (64, 64)])
def test_weighted_sum_of_experts(
    tile: int, shape: HopperShape, hidden: int, wide: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hopper_product, "grouped", Kernel(hopper_product, "grouped"))
    monkeypatch.setattr(hopper_down, "streamed", Kernel(hopper_down, "streamed"))
    monkeypatch.setattr(routing_module, "FORCED_TILE", tile)
    monkeypatch.setattr(experts_module, "FORCED_SHAPE", shape)
    parts, packed = layer(EXPERTS, hidden, wide)
    generator = torch.Generator().manual_seed(7)
    lengths, each = [90, 0, 3], 90
    rows = each * len(lengths)
    logits = torch.randn(rows, EXPERTS, generator=generator)
    logits[:, 2] += 50  # gets every row, and another none
    logits[:, 1] -= 50
    x = torch.randn(rows, hidden, generator=generator).to(torch.bfloat16)
    live = torch.cat([torch.arange(each) < length for length in lengths])
    x[~live] = float("nan")
    routing = Routing.for_rows(rows, EXPERTS, TOP_K, "cpu")
    route(logits, torch.ones(EXPERTS), torch.tensor(lengths, dtype=torch.int32), TOP_K, routing)
    workspace = Workspace.for_rows(rows, TOP_K, wide, hidden, "cpu")
    workspace.wide.fill_(float("nan"))
    workspace.narrow.fill_(float("nan"))
    run_experts(x, routing, packed, workspace)

    out = torch.zeros(rows, hidden)
    for row in torch.nonzero(live).flatten().tolist():
        out[row] = routing.weights[row] @ workspace.narrow[routing.slot[row].long()].float()
    expected = reference(x, routing, parts)
    assert (out - expected).norm() <= 4e-3 * expected.norm()  # two roundings to bfloat16

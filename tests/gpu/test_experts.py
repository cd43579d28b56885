"""The experts' kernels at the published shapes, against fp32 products of the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from easel.engine.native.cuda_model import STEADY_TILE

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def bench() -> Any:
    """The bench's layer and its check, which poisons every buffer first. Imported where there is a GPU: then a bench
    that cannot be imported fails."""
    from ops.benches.kernels import experts

    return experts


@pytest.fixture(scope="module")
def packed(bench: Any) -> Any:
    torch.manual_seed(0)
    return bench.random_layer(0)


@pytest.mark.parametrize(
    ("lengths", "skew"),
    [
        ([256], 0.0),
        ([256, 0, 100, 256], 0.0),
        ([256] * 8, 3.0),
        ([256] * 31 + [1], 0.0),
        ([3], 0.0),
        ([256, 256], 100.0),
    ],
    ids=["one canvas", "an idle group", "skewed", "32 groups", "three rows", "few experts for all"],
)
def test_no_worse_than_products_in_bfloat16(bench: Any, packed: Any, lengths: list[int], skew: float) -> None:
    ours, bf16 = bench.check(packed, 256 * len(lengths), lengths, skew)
    assert ours <= bf16
    assert ours <= 4e-3


def test_a_captured_graph_gives_the_same_bits_every_time_and_follows_its_inputs(bench: Any, packed: Any) -> None:
    case = bench.Case(2, [packed])
    case.all()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        case.all()
    outputs = []
    for _ in range(3):
        case.space.narrow.fill_(float("nan"))
        graph.replay()
        outputs.append(bench.weighted_sum(case.routing[0], case.space.narrow, 512))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    case.length[1] = 7
    graph.replay()
    shorter = bench.weighted_sum(case.routing[0], case.space.narrow, 512)
    assert torch.equal(shorter[:263], outputs[0][:263])
    assert not shorter[263:].any()
    assert outputs[0][263:].any()


def test_a_canvas_has_the_same_bits_in_any_company(bench: Any, packed: Any) -> None:
    """As in a deterministic step: one tile for any number of canvases."""
    found = []
    for canvases in (1, 2, 3, 4, 6, 8, 16, 32):
        case = bench.Case(canvases, [packed], tile=STEADY_TILE)
        generator = torch.Generator("cuda").manual_seed(0)
        case.x[:256] = torch.randn(256, bench.HIDDEN, device="cuda", generator=generator).bfloat16()
        case.logits[0][:256] = torch.randn(256, bench.EXPERTS, device="cuda", generator=generator).bfloat16()
        case.all()
        slots, weights = case.routing[0].slot[:256].long(), case.routing[0].weights[:256]
        found.append((case.space.wide[slots], case.space.narrow[slots], weights.clone()))
    for one in found[1:]:
        assert all(torch.equal(left, right) for left, right in zip(one, found[0], strict=True))

"""The experts' kernels at the published shapes, against fp32 products of the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def bench() -> Any:
    """The bench's layer and its check, which poisons every buffer first."""
    return pytest.importorskip("ops.benches.kernels.experts")


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
        case.out.fill_(float("nan"))
        graph.replay()
        outputs.append(case.out.clone())
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    case.length[1] = 7
    graph.replay()
    assert torch.equal(case.out[:263], outputs[0][:263])
    assert not case.out[263:].any()
    assert outputs[0][263:].any()

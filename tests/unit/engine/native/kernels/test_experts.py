"""The experts' kernels against plain torch on the weights that the format describes."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import gelu

from easel.engine.native.kernels import experts as experts_module
from easel.engine.native.kernels import routing as routing_module
from easel.engine.native.kernels.experts import PackedExperts, Routing, Workspace, route, run_experts
from easel.engine.native.kernels.packing import TILE_ROWS, Nvfp4, pack_experts, unpack_matrix
from easel.engine.native.kernels.routing import route_rows
from easel.engine.native.nvfp4 import dequantise


def projection(experts: int, rows: int, columns: int, seed: int) -> Nvfp4:
    """Random codes; scales of every size, negative ones and zeros among them."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (experts, rows, columns // 2), generator=generator, dtype=torch.uint8)
    scales = torch.randint(0, 256, (experts, rows, columns // 16), generator=generator, dtype=torch.uint8)
    scales = torch.where((scales & 0x7F) == 0x7F, 0, scales).to(torch.uint8)
    tame = 0.03 * torch.rand(experts, generator=generator) + 0.01
    return Nvfp4(codes, scales.view(torch.float8_e4m3fn), tame / columns**0.5)


def plain(part: Nvfp4) -> torch.Tensor:
    """fp32 [experts, rows, columns]."""
    return torch.stack([dequantise(*one) for one in zip(part.codes, part.scales, part.scale_2, strict=True)])


def layer(experts: int, hidden: int, wide: int) -> tuple[tuple[Nvfp4, Nvfp4, Nvfp4], PackedExperts]:
    gate, up = projection(experts, wide, hidden, 1), projection(experts, wide, hidden, 2)
    down = projection(experts, hidden, wide, 3)
    return (gate, up, down), pack_experts(gate, up, down)


def reference(x: torch.Tensor, routing: Routing, parts: tuple[Nvfp4, Nvfp4, Nvfp4]) -> torch.Tensor:
    gate, up, down = (plain(part) for part in parts)
    out = torch.zeros(x.shape, dtype=torch.float32)
    for row, one in enumerate(x.float()):
        for weight, expert in zip(routing.weights[row], routing.index[row], strict=True):
            if expert >= 0:
                between = gelu(gate[expert] @ one, approximate="tanh") * (up[expert] @ one)
                out[row] += weight * (down[expert] @ between)
    return out


def weighted_sum_error(hidden: int, wide: int, lengths: list[int], each: int, skewed: bool) -> float:
    """Of the weighted sum of what the kernels leave, relative to the plain one; 0 where no row is live. What no row may
    read is NaN."""
    experts, top_k, rows = 4, 2, each * len(lengths)
    parts, packed = layer(experts, hidden, wide)
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(rows, experts, generator=generator)
    if skewed:  # one expert gets every row, two tiles of them, and another none
        logits[:, 2] += 50
        logits[:, 1] -= 50
    x = torch.randn(rows, hidden, generator=generator).to(torch.bfloat16)
    live = torch.cat([torch.arange(each) < length for length in lengths])
    x[~live] = float("nan")
    routing = Routing.for_rows(rows, experts, top_k, "cpu")
    route(logits, torch.ones(experts), torch.tensor(lengths, dtype=torch.int32), top_k, routing)
    workspace = Workspace.for_rows(rows, top_k, wide, hidden, "cpu")
    workspace.wide.fill_(float("nan"))
    workspace.narrow.fill_(float("nan"))
    run_experts(x, routing, packed, workspace)

    out = torch.zeros(rows, hidden)
    for row in torch.nonzero(live).flatten().tolist():
        out[row] = routing.weights[row] @ workspace.narrow[routing.slot[row].long()].float()
    expected = reference(x, routing, parts)
    return float((out - expected).norm() / expected.norm().clamp(min=1e-30))


@pytest.mark.parametrize(("rows", "columns"), [(64, 64), (128, 128), (48, 80), (208, 144)])
def test_packed_tiles_hold_exactly_what_the_checkpoint_says(rows: int, columns: int) -> None:
    gate, up = projection(2, rows, columns, 1), projection(2, rows, columns, 2)
    down = projection(2, columns, rows, 3)
    packed = pack_experts(gate, up, down)
    both = unpack_matrix(packed.gate_up)[:, :, :columns]
    tiles = both.view(2, -1, 2, TILE_ROWS // 2, columns)
    assert torch.equal(tiles[:, :, 0].flatten(1, 2)[:, :rows], plain(gate))
    assert torch.equal(tiles[:, :, 1].flatten(1, 2)[:, :rows], plain(up))
    unpacked = unpack_matrix(packed.down)
    assert torch.equal(unpacked[:, :columns, :rows], plain(down))
    assert not unpacked[:, columns:].any()
    assert not unpacked[:, :, rows:].any()


def test_experts_packed_together_are_those_packed_alone() -> None:
    parts, packed = layer(18, 64, 64)
    for expert in (0, 15, 16, 17):
        one = slice(expert, expert + 1)
        alone = pack_experts(*(Nvfp4(part.codes[one], part.scales[one], part.scale_2[one]) for part in parts))
        for many, single in ((packed.gate_up, alone.gate_up), (packed.down, alone.down)):
            assert torch.equal(many.words[one], single.words)
            assert torch.equal(many.scales[one], single.scales)
            assert torch.equal(many.factors[one], single.factors)


def test_what_the_kernel_multiplies_is_exact_in_bfloat16() -> None:
    packed = pack_experts(*(projection(1, 64, 64, seed) for seed in range(3)))
    exact = unpack_matrix(packed.gate_up, wide=False)
    assert torch.equal(exact, exact.to(torch.bfloat16).float())


def test_packed_size_is_four_and_a_half_bits_a_weight() -> None:
    _, packed = layer(2, 128, 64)
    assert packed.nbytes == 2 * 3 * 128 * 64 * 9 // 16 + 2 * 4 * 4


def test_scales_that_are_no_numbers_and_shapes_that_do_not_fit_are_refused() -> None:
    gate, up, down = (projection(1, 64, 64, seed) for seed in range(3))
    broken = gate.scales.view(torch.uint8).clone()
    broken[0, 3, 1] = 0xFF
    with pytest.raises(ValueError, match="not a number"):
        pack_experts(Nvfp4(gate.codes, broken.view(torch.float8_e4m3fn), gate.scale_2), up, down)
    with pytest.raises(ValueError, match="do not belong together"):
        pack_experts(gate, up, projection(1, 64, 128, 4))
    with pytest.raises(ValueError, match="do not fit codes"):
        pack_experts(Nvfp4(gate.codes, gate.scales[:, :, :2], gate.scale_2), up, down)


def test_a_steady_routing_cuts_its_rows_in_the_same_way_for_any_number_of_them() -> None:
    """Sums over a row's experts are added up as threads share them. What that is worth on a GPU: tests/gpu."""
    each = {rows: rows / Routing.for_rows(rows, 8, 2, "cpu", tile=64).counts.shape[0] for rows in (256, 1024, 8192)}
    assert each == dict.fromkeys(each, routing_module.STEADY_ROWS)
    for rows in (64, 128):  # of which a program has 4 otherwise
        routing = Routing.for_rows(256, 8, 2, "cpu", tile=64)
        length = torch.tensor([rows], dtype=torch.int32)
        route(torch.randn(rows, 8), torch.ones(8), length, 2, routing)
        by_program = routing.counts.sum(dim=1).tolist()
        assert by_program[: rows // routing_module.STEADY_ROWS] == [2 * routing_module.STEADY_ROWS] * (
            rows // routing_module.STEADY_ROWS
        )
        assert not any(by_program[rows // routing_module.STEADY_ROWS :])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("lengths", "each", "tile"), [([12], 12, None), ([12], 12, 4), ([5, 0, 8, 1], 8, None), ([0, 0], 6, None)]
)
def test_routing_is_the_plain_one_sorted_by_expert(
    lengths: list[int], each: int, tile: int | None, dtype: torch.dtype
) -> None:
    experts, top_k, rows = 8, 3, each * len(lengths)
    logits = torch.randn(rows, experts, generator=torch.Generator().manual_seed(5)).to(dtype)
    scale = torch.rand(experts, generator=torch.Generator().manual_seed(6)) + 0.5
    live = torch.cat([torch.arange(each) < length for length in lengths])
    logits[~live] = float("nan")
    routing = Routing.for_rows(rows + 4, experts, top_k, "cpu", tile)
    for buffer in (routing.index, routing.slot, routing.row, routing.tiles, routing.used):
        buffer.fill_(-7)
    route(logits, scale, torch.tensor(lengths, dtype=torch.int32), top_k, routing)

    chances, index = torch.topk(torch.softmax(logits.float(), dim=-1), top_k)
    weights = chances / chances.sum(-1, keepdim=True) * scale[index]
    torch.testing.assert_close(routing.weights[:rows][live], weights[live])
    if dtype == torch.float32:  # in bfloat16 two may be equal, and either is right
        assert torch.equal(routing.index[:rows][live], index[live].int())
    assert (routing.index[:rows][~live] == -1).all()
    assert not routing.weights[:rows][~live].any()

    pairs = [(int(expert), row, k) for row in range(rows) for k, expert in enumerate(routing.index[row]) if live[row]]
    by_expert = sorted(pairs)
    assert [int(routing.slot[row, k]) for _, row, k in by_expert] == list(range(len(pairs)))
    assert routing.row[: len(pairs)].tolist() == [row for _, row, _ in by_expert]
    covered = []
    for expert, first, end in routing.tiles[:, : int(routing.used)].T.tolist():
        covered += [(slot, expert) for slot in range(first, min(first + (tile or 32), end))]
    assert covered == [(slot, expert) for slot, (expert, _, _) in enumerate(by_expert)]


@pytest.mark.parametrize("hidden", [128, 200])
def test_routing_of_rows_is_that_of_their_logits(hidden: int) -> None:
    experts, top_k, lengths = 8, 3, (5, 0, 16)
    generator = torch.Generator().manual_seed(8)
    x, router = torch.randn(48, hidden, generator=generator), torch.randn(experts, hidden, generator=generator)
    live = torch.cat([torch.arange(16) < length for length in lengths])
    x[~live] = float("nan")
    scale, length = torch.rand(experts, generator=generator) + 0.5, torch.tensor(lengths, dtype=torch.int32)
    wanted, found = (Routing.for_rows(48, experts, top_k, "cpu") for _ in range(2))
    route(x @ router.T, scale, length, top_k, wanted)
    route_rows(x, router, scale, length, top_k, found)
    torch.testing.assert_close(found.weights, wanted.weights)
    used = int(wanted.used)
    assert int(found.used) == used
    assert torch.equal(found.index, wanted.index)
    assert torch.equal(found.slot[live], wanted.slot[live])
    assert torch.equal(found.tiles[:, :used], wanted.tiles[:, :used])


def test_of_equal_chances_the_lower_index_wins() -> None:
    routing = Routing.for_rows(2, 8, 2, "cpu")
    route(torch.zeros(2, 8), torch.ones(8), torch.tensor([2], dtype=torch.int32), 2, routing)
    assert routing.index.tolist() == [[0, 1], [0, 1]]
    assert routing.weights.tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_routing_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="power of two"):
        Routing.for_rows(4, 6, 2, "cpu")
    routing = Routing.for_rows(4, 8, 2, "cpu")
    with pytest.raises(ValueError, match="does not fit"):
        route(torch.zeros(8, 8), torch.ones(8), torch.tensor([8], dtype=torch.int32), 2, routing)


@pytest.mark.parametrize(("tile", "parts"), [(32, 1), (48, 2), (16, 2), (64, 1)])
@pytest.mark.parametrize(
    ("hidden", "wide", "lengths", "each", "skewed"),
    [(64, 64, [40], 40, True), (80, 48, [3, 0, 5], 6, False), (192, 128, [7], 8, False), (64, 64, [0], 4, False)],
)
def test_weighted_sum_of_experts(
    hidden: int, wide: int, lengths: list[int], each: int, skewed: bool, tile: int, parts: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(routing_module, "FORCED_TILE", tile)
    monkeypatch.setattr(experts_module, "FORCED_SHAPE", experts_module.Shape(4, 3, parts))
    # Two roundings to bfloat16, which the interpreter cuts off instead of rounding.
    assert weighted_sum_error(hidden, wide, lengths, each, skewed) <= 1.2e-2


def test_run_refuses_what_does_not_fit() -> None:
    _, packed = layer(4, 64, 64)
    routing, workspace = Routing.for_rows(4, 4, 2, "cpu"), Workspace.for_rows(4, 2, 64, 64, "cpu")
    x = torch.zeros(4, 64, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="does not fit experts"):
        run_experts(x[:, :32], routing, packed, workspace)
    wide = torch.zeros(8, 64, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="fewer than 8 rows"):
        run_experts(wide, routing, packed, workspace)

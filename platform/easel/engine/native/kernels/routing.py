"""Which experts each row goes to, and the rows in the order of their experts, on the device.

Two launches: the choice, a few rows a program, which also counts its rows by expert; and a counting sort by the same
rows, each program of which adds up the counts of those before it, so that no program waits for another and nothing is
added up in an order that varies. Slots are the (row, k) pairs in order of their expert, then of their row. Rows at or
past their group's length get no slot.

Owns: the choice and the order. Refuses to know: what an expert computes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

BLOCKS = 128
"""Programs that share the rows, about: each reads the counts of all, so they may not be many."""
STEADY_ROWS = 16
"""Rows of a program where a row's weights may not depend on how many rows there are: the order of their sum does, on
how rows and experts are spread over threads."""


@dataclass(frozen=True, slots=True)
class Routing:
    """Static buffers that `route` fills for up to `rows` rows. A call with fewer rows uses the front of each."""

    weights: torch.Tensor
    """fp32 [rows, top_k]; 0 in rows that hold nothing."""
    index: torch.Tensor
    """int32 [rows, top_k]: the expert; -1 in rows that hold nothing."""
    slot: torch.Tensor
    """int32 [rows, top_k]: where the pair lies in the order by expert. Not written in rows that hold nothing."""
    row: torch.Tensor
    """int32 [rows * top_k]: the row of a slot."""
    tiles: torch.Tensor
    """int32 [3, most tiles]: expert, first slot, and the slot after its last, of each tile of slots."""
    used: torch.Tensor
    """int32 [1]: tiles of this call."""
    rank: torch.Tensor
    """int32 [rows, top_k]: how many earlier rows of the same program chose this expert."""
    counts: torch.Tensor
    """int32 [programs, experts]: rows of each program that chose each expert."""
    tile: int | None = None
    """Slots of a tile, whatever the number of rows: products of other tiles round otherwise. None: what is fastest."""

    @classmethod
    def for_rows(
        cls, rows: int, experts: int, top_k: int, device: torch.device | str, tile: int | None = None
    ) -> Routing:
        """Buffers for up to `rows` rows. Raises `ValueError` where the experts' number is no power of two."""
        if experts & (experts - 1) or top_k > experts:
            raise ValueError(f"{top_k} of {experts} experts: a power of two of them is needed, and fewer chosen")

        def ints(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=device)

        weights = torch.zeros(rows, top_k, dtype=torch.float32, device=device)
        most = max(most_tiles(count, experts, top_k, tile) for count in range(256, rows + 256, 256))
        programs = max(triton.cdiv(count, _rows_each(count, tile)) for count in range(256, rows + 256, 256))
        return cls(
            weights, ints(rows, top_k), ints(rows, top_k), ints(rows * top_k), ints(3, -(-most // 16) * 16), ints(1),
            ints(rows, top_k), ints(programs, experts), tile,
        )  # fmt: skip


FORCED_TILE: int | None = None
"""What a bench tries instead."""


def tile_slots(rows: int, experts: int, top_k: int) -> int:
    """Slots of one expert that a program multiplies together: a choice by the number of rows alone.

    A power of two from 16, or the sum of two. What was fastest on an H100: ops/benches/kernels/experts.md.
    """
    if FORCED_TILE is not None:
        return FORCED_TILE
    each = rows * top_k / experts
    if each <= 24:
        return 32
    if each <= 72:
        return 80 if each > 52 else 64
    return 128 if each < 384 else 256


def most_tiles(rows: int, experts: int, top_k: int, tile: int | None = None) -> int:
    """Tiles that the worst routing of `rows` rows makes; `tile`: slots of each, if not what is fastest."""
    pairs = rows * top_k
    return pairs // (tile or tile_slots(rows, experts, top_k)) + min(experts, pairs)


def _rows_each(rows: int, tile: int | None) -> int:
    """Rows of one program; `tile` as in `Routing`."""
    return STEADY_ROWS if tile else min(32, max(4, int(triton.next_power_of_2(-(-rows // BLOCKS)))))


def route_rows(
    x: torch.Tensor,
    router: torch.Tensor,
    per_expert_scale: torch.Tensor,
    length: torch.Tensor,
    top_k: int,
    out: Routing,
) -> None:
    """`route` of the logits `x @ router.T`, rounded to `x`'s type: `x` [rows, hidden], `router` [experts, hidden]."""
    rows, hidden = x.shape
    experts, groups = router.shape[0], length.shape[0]
    if rows % groups or out.weights.shape[0] < rows or out.weights.shape[1] != top_k:
        raise ValueError(f"routing for {list(out.weights.shape)} and {groups} groups does not fit {rows} rows")
    each, tile = max(16, _rows_each(rows, out.tile)), out.tile or tile_slots(rows, experts, top_k)
    grid = (triton.cdiv(rows, each),)
    top_pad = triton.next_power_of_2(top_k)
    _multiply_and_choose[grid](
        x, router, per_expert_scale, length, out.weights, out.index, out.rank, out.counts, rows, x.stride(0),
        rows // groups, HIDDEN=hidden, K=128, EXPERTS=experts, TOP_K=top_k, TOP_PAD=top_pad, ROWS=each,
        WIDE=not x.is_cuda, num_warps=8, num_stages=4,
    )  # fmt: skip
    _sort[grid](
        out.index, out.rank, out.counts, out.slot, out.row, out.tiles, out.used, rows, out.tiles.stride(0),
        EXPERTS=experts, TOP_K=top_k, TOP_PAD=top_pad, TILE=tile, ROWS=each, num_warps=4,
    )  # fmt: skip


def route(
    logits: torch.Tensor,
    per_expert_scale: torch.Tensor,
    length: torch.Tensor,
    top_k: int,
    out: Routing,
) -> None:
    """Fill `out` from `logits` [rows, experts], `per_expert_scale` fp32 [experts] and `length` int32 [groups].

    Softmax in fp32, the `top_k` largest, renormalised, times the experts' scales; of equal ones the lower index.
    Raises `ValueError` for shapes that do not fit.
    """
    rows, experts = logits.shape
    groups = length.shape[0]
    if rows % groups or out.weights.shape[0] < rows or out.weights.shape[1] != top_k:
        raise ValueError(f"routing for {list(out.weights.shape)} and {groups} groups does not fit {rows} rows")
    each, tile = _rows_each(rows, out.tile), out.tile or tile_slots(rows, experts, top_k)
    grid = (triton.cdiv(rows, each),)
    top_pad = triton.next_power_of_2(top_k)
    _choose[grid](
        logits, per_expert_scale, length, out.weights, out.index, out.rank, out.counts, rows, logits.stride(0),
        rows // groups, EXPERTS=experts, TOP_K=top_k, TOP_PAD=top_pad, ROWS=each, num_warps=4,
    )  # fmt: skip
    _sort[grid](
        out.index, out.rank, out.counts, out.slot, out.row, out.tiles, out.used, rows, out.tiles.stride(0),
        EXPERTS=experts, TOP_K=top_k, TOP_PAD=top_pad, TILE=tile, ROWS=each, num_warps=4,
    )  # fmt: skip


@triton.jit
def _choose(
    logits, scale, length, weights, index, rank, counts, rows, stride, group_rows,
    EXPERTS: tl.constexpr, TOP_K: tl.constexpr, TOP_PAD: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    expert = tl.arange(0, EXPERTS)
    live = _live(row, rows, group_rows, length)
    x = tl.load(logits + row[:, None] * stride + expert[None, :], mask=live[:, None], other=0.0).to(tl.float32)
    _best(x, row, live, scale, weights, index, rank, counts, rows, EXPERTS, TOP_K, TOP_PAD, ROWS)


@triton.jit
def _multiply_and_choose(
    x, router, scale, length, weights, index, rank, counts, rows, stride, group_rows,
    HIDDEN: tl.constexpr, K: tl.constexpr, EXPERTS: tl.constexpr, TOP_K: tl.constexpr, TOP_PAD: tl.constexpr,
    ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    expert = tl.arange(0, EXPERTS)
    column = tl.arange(0, K)
    live = _live(row, rows, group_rows, length)
    total = tl.zeros((ROWS, EXPERTS), tl.float32)
    x_at = x + row.to(tl.int64)[:, None] * stride + column[None, :]
    router_at = router + expert[None, :] * HIDDEN + column[:, None]
    for start in range(0, HIDDEN, K):
        if HIDDEN % K == 0:
            some = tl.load(x_at + start, mask=live[:, None], other=0.0)
            by = tl.load(router_at + start)
        else:
            inside = start + column < HIDDEN
            some = tl.load(x_at + start, mask=live[:, None] & inside[None, :], other=0.0)
            by = tl.load(router_at + start, mask=inside[:, None], other=0.0)
        if WIDE:  # the interpreter knows no product of bf16
            some, by = some.to(tl.float32), by.to(tl.float32)
        total = tl.dot(some, by, total)
    logits = total.to(x.dtype.element_ty).to(tl.float32)
    _best(logits, row, live, scale, weights, index, rank, counts, rows, EXPERTS, TOP_K, TOP_PAD, ROWS)


@triton.jit
def _live(row, rows, group_rows, length):
    """Which rows hold something."""
    group = row // group_rows
    there = row < rows
    return there & (row - group * group_rows < tl.load(length + group, mask=there, other=0))


@triton.jit
def _best(
    x, row, live, scale, weights, index, rank, counts, rows,
    EXPERTS: tl.constexpr, TOP_K: tl.constexpr, TOP_PAD: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Write what follows from the logits `x` [ROWS, EXPERTS]."""
    expert = tl.arange(0, EXPERTS)
    x = tl.exp(x - tl.max(x, axis=1)[:, None])
    chance = x / tl.sum(x, axis=1)[:, None]
    place = tl.arange(0, TOP_PAD)
    top = tl.zeros((ROWS, TOP_PAD), tl.float32)
    chosen = tl.zeros((ROWS, TOP_PAD), tl.int32)
    for k in tl.static_range(TOP_K):
        best = tl.max(chance, axis=1)
        # A row that holds no numbers at all still gets experts that exist.
        which = tl.min(tl.where(chance == best[:, None], expert[None, :], EXPERTS - 1), axis=1)
        top = tl.where(place[None, :] == k, best[:, None], top)
        chosen = tl.where(place[None, :] == k, which[:, None], chosen)
        chance = tl.where(expert[None, :] == which[:, None], -1.0, chance)
    top = top / tl.sum(top, axis=1)[:, None] * tl.load(scale + chosen)
    here = row[:, None] * TOP_K + place[None, :]
    inside = (row < rows)[:, None] & (place < TOP_K)[None, :]
    tl.store(weights + here, tl.where(live[:, None], top, 0.0), mask=inside)
    tl.store(index + here, tl.where(live[:, None], chosen, -1), mask=inside)
    # A row takes an expert once at most: whom it took has a chance of -1 by now.
    taken = ((chance < 0.0) & live[:, None]).to(tl.int32)
    tl.store(counts + tl.program_id(0) * EXPERTS + expert, tl.sum(taken, axis=0))
    earlier = tl.cumsum(taken, axis=0) - taken
    tl.store(rank + here, tl.gather(earlier, chosen, 1), mask=inside)


@triton.jit
def _sort(
    index, rank, counts, slot, row, tiles, used, rows, tiles_stride,
    EXPERTS: tl.constexpr, TOP_K: tl.constexpr, TOP_PAD: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    me, programs = tl.program_id(0), tl.num_programs(0)
    expert = tl.arange(0, EXPERTS)
    total, before = tl.zeros((EXPERTS,), tl.int32), tl.zeros((EXPERTS,), tl.int32)
    for start in range(0, programs, 32):
        program = start + tl.arange(0, 32)
        there = (program < programs)[:, None]
        some = tl.load(counts + program[:, None] * EXPERTS + expert[None, :], mask=there, other=0)
        total += tl.sum(some, axis=0)
        before += tl.sum(tl.where((program < me)[:, None], some, 0), axis=0)
    base = tl.cumsum(total, axis=0) - total

    mine = me * ROWS + tl.arange(0, ROWS)
    place = tl.arange(0, TOP_PAD)
    here = mine[:, None] * TOP_K + place[None, :]
    inside = (mine < rows)[:, None] & (place < TOP_K)[None, :]
    chosen = tl.load(index + here, mask=inside, other=-1)
    flat = tl.reshape(tl.maximum(chosen, 0), (ROWS * TOP_PAD,))
    first = tl.reshape(tl.gather(base + before, flat, 0), (ROWS, TOP_PAD))
    live = chosen >= 0
    to = first + tl.load(rank + here, mask=live, other=0)
    tl.store(slot + here, to, mask=live)
    tl.store(row + to, tl.broadcast_to(mine[:, None], (ROWS, TOP_PAD)), mask=live)

    tile_counts = (total + TILE - 1) // TILE
    if me == 0:
        tl.store(used, tl.sum(tile_counts))
    for one in range(me, EXPERTS, programs):
        own = tl.sum(tl.where(expert == one, total, 0))
        start_slot = tl.sum(tl.where(expert == one, base, 0))
        first_tile = tl.sum(tl.where(expert < one, tile_counts, 0))
        for start in range(0, own, TILE * 32):
            at = start + tl.arange(0, 32) * TILE
            tile = tiles + first_tile + at // TILE
            tl.store(tile, tl.zeros((32,), tl.int32) + one, mask=at < own)
            tl.store(tile + tiles_stride, start_slot + at, mask=at < own)
            tl.store(tile + 2 * tiles_stride, start_slot + own, mask=at < own)

"""Which experts each row goes to, and the rows in the order of their experts, on the device.

Two launches: the choice, a few rows a program; and a counting sort with one program an expert, each of which counts
all pairs, so that no program waits for another and nothing is added up in an order that varies. Slots are the (row, k)
pairs in order of their expert, then of their row. Rows at or past their group's length get no slot.

Owns: the choice and the order. Refuses to know: what an expert computes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

CHUNK = 4096
"""Pairs that one program of the sort looks at together, at most."""


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

    @classmethod
    def for_rows(cls, rows: int, experts: int, top_k: int, device: torch.device | str) -> Routing:
        """Buffers for up to `rows` rows. Raises `ValueError` where the experts' number is no power of two."""
        if experts & (experts - 1) or top_k > experts:
            raise ValueError(f"{top_k} of {experts} experts: a power of two of them is needed, and fewer chosen")

        def ints(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=device)

        weights = torch.zeros(rows, top_k, dtype=torch.float32, device=device)
        most = max(most_tiles(count, experts, top_k) for count in range(256, rows + 256, 256))
        return cls(
            weights, ints(rows, top_k), ints(rows, top_k), ints(rows * top_k), ints(3, -(-most // 16) * 16), ints(1)
        )


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
    if each <= 160:
        return 80 if 52 < each <= 72 else 64
    return 128


def most_tiles(rows: int, experts: int, top_k: int) -> int:
    """Tiles that the worst routing of `rows` rows makes."""
    pairs = rows * top_k
    return pairs // tile_slots(rows, experts, top_k) + min(experts, pairs)


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
    each = 4
    _choose[(triton.cdiv(rows, each),)](
        logits, per_expert_scale, length, out.weights, out.index, rows, logits.stride(0), rows // groups,
        EXPERTS=experts, TOP_K=top_k, TOP_PAD=triton.next_power_of_2(top_k), ROWS=each, num_warps=4,
    )  # fmt: skip
    chunk = min(CHUNK, max(256, triton.next_power_of_2(rows * top_k)))
    _sort[(experts,)](
        out.index, out.slot, out.row, out.tiles, out.used, rows * top_k, out.tiles.stride(0),
        EXPERTS=experts, TOP_K=top_k, TILE=tile_slots(rows, experts, top_k), CHUNK=chunk, num_warps=8,
    )  # fmt: skip


@triton.jit
def _choose(
    logits, scale, length, weights, index, rows, stride, group_rows,
    EXPERTS: tl.constexpr, TOP_K: tl.constexpr, TOP_PAD: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    expert = tl.arange(0, EXPERTS)
    group = row // group_rows
    live = row < rows
    live = live & (row - group * group_rows < tl.load(length + group, mask=live, other=0))
    x = tl.load(logits + row[:, None] * stride + expert[None, :], mask=live[:, None], other=0.0).to(tl.float32)
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


@triton.jit
def _sort(
    index, slot, row, tiles, used, pairs, tiles_stride,
    EXPERTS: tl.constexpr, TOP_K: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    me = tl.program_id(0)
    expert = tl.arange(0, EXPERTS)
    lane = tl.arange(0, CHUNK)
    counts = tl.zeros((EXPERTS,), tl.int32)
    for start in range(0, pairs, CHUNK):
        at = start + lane
        chosen = tl.load(index + at, mask=at < pairs, other=-1)
        counts += tl.histogram(tl.maximum(chosen, 0), EXPERTS, mask=chosen >= 0)
    tile_counts = (counts + TILE - 1) // TILE
    base = tl.sum(tl.where(expert < me, counts, 0))
    mine = tl.sum(tl.where(expert == me, counts, 0))
    first_tile = tl.sum(tl.where(expert < me, tile_counts, 0))
    if me == EXPERTS - 1:
        tl.store(used, tl.sum(tile_counts))

    next_slot = base
    for start in range(0, pairs, CHUNK):
        at = start + lane
        hit = (tl.load(index + at, mask=at < pairs, other=-1) == me).to(tl.int32)
        here = next_slot + tl.cumsum(hit, axis=0) - 1
        tl.store(slot + at, here, mask=hit == 1)
        tl.store(row + here, at // TOP_K, mask=hit == 1)
        next_slot += tl.sum(hit)

    for start in range(0, mine, TILE * 32):
        at = start + tl.arange(0, 32) * TILE
        tile = tiles + first_tile + at // TILE
        tl.store(tile, tl.zeros((32,), tl.int32) + me, mask=at < mine)
        tl.store(tile + tiles_stride, base + at, mask=at < mine)
        tl.store(tile + 2 * tiles_stride, base + mine, mask=at < mine)

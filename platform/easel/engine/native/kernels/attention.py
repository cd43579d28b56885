"""Attention over groups of rows: a group's own keys, and its sequence's older ones in the paged cache.

Owns: which keys a row sees, the softmax, and splitting few groups over many cores. Encoding rows are causal, on sliding
layers within the last `window` tokens; all rows of a canvas see all of it and the last `window - 1` tokens before it.
Refuses to know: projections, norms, positions and cache writes (`heads`), who owns which block.

Lengths, starts and tables are read on the device. The plain version is `native/attention.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from easel.engine.native.kernels import hopper_attention
from easel.engine.native.kernels.groups import Groups, PagedKv, on_hopper
from easel.protocol import GROUP_ROWS

CORES = 132
"""Multiprocessors that a launch should fill."""
MOST_SPLITS = 8


@dataclass(frozen=True, slots=True)
class Tiles:
    """How one launch is cut. `queries` counts rows times `pack` heads that share keys.

    `splits`: over keys, combined by a second launch. `cuts`: over the columns of values, each of which weighs anew.
    """

    queries: int
    keys: int
    warps: int
    stages: int
    pack: int = 1
    splits: int = 1
    cuts: int = 1
    hopper: bool = False
    """By `hopper_attention`, which knows these tiles only as `of` makes them, but for their splits."""

    @staticmethod
    def of(groups: int, rows_each: int, heads: int, head_dim: int, hopper: bool = False) -> Tiles:
        """What measured best on an H100 for these sizes (ops/benches/kernels/attention.md). `hopper`: it is one."""
        queries, warps = min(128, max(16, triton.next_power_of_2(rows_each))), 8 if head_dim >= 256 else 4
        cuts = 2 if head_dim >= 512 else 1
        splits = max(1, min(MOST_SPLITS, CORES // (groups * heads * cuts * triton.cdiv(rows_each, queries))))
        if hopper and hopper_attention.fits(rows_each, head_dim):
            return Tiles(queries, hopper_attention.KEYS, warps, stages=2, splits=splits, cuts=cuts, hopper=True)
        if head_dim >= 512:
            return Tiles(queries, 32, warps, stages=2, splits=splits, cuts=cuts)
        return Tiles(queries, 32, warps, stages=3, splits=splits) if splits > 1 else Tiles(queries, 64, warps, stages=2)


@dataclass(frozen=True, slots=True)
class AttentionWorkspace:
    """Where splits leave their parts. One serves all layers of a step."""

    parts: torch.Tensor
    """bf16 or fp32, flat: [splits, rows, heads, head_dim]. bf16 costs one more rounding and saves 3 of 24 us."""
    weights: torch.Tensor
    """fp32, flat: [splits, rows, heads, 2]: the largest score and the sum of exponentials below it."""

    @staticmethod
    def for_groups(
        groups: int,
        heads: int,
        head_dims: tuple[int, ...],
        device: torch.device | str,
        rows_each: int = GROUP_ROWS,
        dtype: torch.dtype = torch.bfloat16,
    ) -> AttentionWorkspace:
        """Room for `groups` groups on layers of any of `head_dims`."""
        splits = {dim: Tiles.of(groups, rows_each, heads, dim).splits for dim in head_dims}
        parts = [count * groups * rows_each * heads * dim for dim, count in splits.items() if count > 1]
        weights = [count * groups * rows_each * heads * 2 for count in splits.values() if count > 1]
        return AttentionWorkspace(
            torch.empty(max(parts, default=0), dtype=dtype, device=device),
            torch.empty(max(weights, default=0), dtype=torch.float32, device=device),
        )


@triton.jit
def _absorb(q, k, v, seen, most, total, mixed):
    """Take one tile of keys into the running softmax."""
    scores = tl.where(seen, tl.dot(q, tl.trans(k)), float("-inf"))
    larger = tl.maximum(most, tl.max(scores, axis=1))
    # A row that has seen no key yet: any finite number will do, and its exponentials are 0.
    below = tl.where(larger == float("-inf"), 0.0, larger) * 1.4426950408889634
    shrink = tl.exp2(most * 1.4426950408889634 - below)
    chances = tl.exp2(scores * 1.4426950408889634 - below[:, None])
    total = total * shrink + tl.sum(chances, axis=1)
    mixed = tl.dot(chances.to(v.dtype), v, mixed * shrink[:, None])
    return larger, total, mixed


@triton.jit
def _attend_kernel(
    q,
    k,
    v,
    pool_keys,
    pool_values,
    table,
    first,
    start,
    length,
    causal,
    out,
    parts,
    weights,
    most_blocks,
    rows,
    rows_each: tl.constexpr,
    heads: tl.constexpr,
    kv_heads: tl.constexpr,
    dim: tl.constexpr,
    window: tl.constexpr,
    block_tokens: tl.constexpr,
    queries: tl.constexpr,
    keys: tl.constexpr,
    pack: tl.constexpr,
    splits: tl.constexpr,
    cuts: tl.constexpr,
):
    wide: tl.constexpr = dim // cuts
    cut = tl.program_id(1) % cuts
    heads_from = tl.program_id(1) // cuts * pack
    tile_rows: tl.constexpr = queries // pack
    group = tl.program_id(2) // splits
    split = tl.program_id(2) % splits
    low = tl.program_id(0) * tile_rows  # the tile's first row in the group
    own = tl.load(length + group)
    packed = tl.arange(0, queries)
    row = low + packed // pack
    head = heads_from + packed % pack
    shared = heads_from // (heads // kv_heads)
    at = tl.arange(0, dim)
    value_at = cut * wide + tl.arange(0, wide)
    place = ((group * rows_each + row) * heads + head).to(tl.int64)
    if low < own:
        begins = tl.load(start + group)
        encodes = tl.load(causal + group) != 0
        # Key positions here count from the group's first row: those in the cache are negative. Row r sees `lowest`
        # to `highest`, both included.
        highest = tl.where(encodes, tl.minimum(row, own - 1), own - 1)
        if window > 0:
            lowest = tl.where(encodes, row - window + 1, 1 - window)
            old_from = tl.minimum(0, tl.maximum(-begins, tl.where(encodes, low - window + 1, 1 - window)))
            own_from = tl.where(encodes, tl.maximum(0, low - window + 1), 0)
        else:
            lowest = tl.zeros_like(row) - begins
            old_from = -begins
            own_from = 0
        own_to = tl.where(encodes, tl.minimum(own, low + tile_rows), own)
        old_tiles = tl.cdiv(-old_from, keys)
        tiles = old_tiles + tl.cdiv(own_to - own_from, keys)
        each = tl.cdiv(tiles, splits)
        from_tile = tl.minimum(split * each, tiles)
        to_tile = tl.minimum(from_tile + each, tiles)

        source = q + place[:, None] * dim + at[None, :]
        query = tl.load(source, mask=(row < own)[:, None], other=0.0)
        most = tl.full((queries,), float("-inf"), tl.float32)
        total = tl.zeros((queries,), tl.float32)
        mixed = tl.zeros((queries, wide), tl.float32)
        since = begins - tl.load(first + group)  # tokens between the table's first and the group's first
        my_table = table + group * most_blocks
        # A tile's blocks are looked up one tile ahead: loads that wait for a load are not pipelined well.
        from_old = tl.minimum(from_tile, old_tiles)
        token = since + old_from + from_old * keys + tl.arange(0, keys)
        block = tl.load(my_table + token // block_tokens, mask=token < since, other=0)
        for tile in range(from_old, tl.minimum(to_tile, old_tiles)):
            key = old_from + tile * keys + tl.arange(0, keys)
            there = key < 0
            token = since + key
            slot = block.to(tl.int64) * block_tokens + token % block_tokens
            token += keys
            block = tl.load(my_table + token // block_tokens, mask=token < since, other=0)
            cell = (slot * kv_heads + shared)[:, None] * dim
            k_tile = tl.load(pool_keys + cell + at[None, :], mask=there[:, None], other=0.0)
            v_tile = tl.load(pool_values + cell + value_at[None, :], mask=there[:, None], other=0.0)
            seen = there[None, :] & (key[None, :] >= lowest[:, None])
            most, total, mixed = _absorb(query, k_tile, v_tile, seen, most, total, mixed)
        for tile in range(tl.maximum(from_tile, old_tiles) - old_tiles, tl.maximum(to_tile, old_tiles) - old_tiles):
            key = own_from + tile * keys + tl.arange(0, keys)
            there = key < own_to
            cell = ((group * rows_each + key).to(tl.int64) * kv_heads + shared)[:, None] * dim
            k_tile = tl.load(k + cell + at[None, :], mask=there[:, None], other=0.0)
            v_tile = tl.load(v + cell + value_at[None, :], mask=there[:, None], other=0.0)
            seen = (key[None, :] <= highest[:, None]) & (key[None, :] >= lowest[:, None])
            most, total, mixed = _absorb(query, k_tile, v_tile, seen, most, total, mixed)
        if splits > 1:
            part = split * rows.to(tl.int64) * heads + place
            kept = row < own
            tl.store(weights + part * 2, most, mask=kept & (cut == 0))
            tl.store(weights + part * 2 + 1, total, mask=kept & (cut == 0))
            target = parts + part[:, None] * dim + value_at[None, :]
            tl.store(target, mixed.to(parts.dtype.element_ty), mask=kept[:, None])
        else:
            holds = (row < own) & (total > 0)
            mixed = tl.where(holds[:, None], mixed / tl.where(holds, total, 1.0)[:, None], 0.0)
            target = out + place[:, None] * dim + value_at[None, :]
            tl.store(target, mixed.to(out.dtype.element_ty), mask=(row < rows_each)[:, None])
    else:
        if splits == 1:
            target = out + place[:, None] * dim + value_at[None, :]
            nothing = tl.zeros((queries, wide), out.dtype.element_ty)
            tl.store(target, nothing, mask=(row < rows_each)[:, None])


@triton.jit
def _combine_kernel(
    parts,
    weights,
    length,
    out,
    rows,
    rows_each: tl.constexpr,
    heads: tl.constexpr,
    dim: tl.constexpr,
    splits: tl.constexpr,
    block: tl.constexpr,
):
    """Splits in their order, so that the sum is the same every time. One program: one row of some heads."""
    row = tl.program_id(0)
    head = tl.program_id(1) * block + tl.arange(0, block)
    at = tl.arange(0, dim)
    inside = head < heads
    place = row.to(tl.int64) * heads + head
    group = row // rows_each
    holds = inside & (row - group * rows_each < tl.load(length + group))
    stride = rows.to(tl.int64) * heads
    most = tl.full((block,), float("-inf"), tl.float32)
    for split in tl.static_range(splits):
        most = tl.maximum(most, tl.load(weights + (split * stride + place) * 2, mask=holds, other=float("-inf")))
    below = tl.where(most == float("-inf"), 0.0, most)
    total = tl.zeros((block,), tl.float32)
    mixed = tl.zeros((block, dim), tl.float32)
    for split in tl.static_range(splits):
        part = split * stride + place
        own_most = tl.load(weights + part * 2, mask=holds, other=float("-inf"))
        share = tl.exp2((own_most - below) * 1.4426950408889634)
        total += share * tl.load(weights + part * 2 + 1, mask=holds, other=0.0)
        mixed += share[:, None] * tl.load(parts + part[:, None] * dim + at[None, :], mask=holds[:, None], other=0.0)
    mixed = mixed / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(out + place[:, None] * dim + at[None, :], mixed.to(out.dtype.element_ty), mask=inside[:, None])


def by_hopper(q: torch.Tensor, block_tokens: int) -> bool:
    """Whether `hopper_attention` may be what reads a cache of such blocks for these queries."""
    return on_hopper(q) and q.dtype == torch.bfloat16 and hopper_attention.fits_blocks(block_tokens)


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    groups: Groups,
    kv: PagedKv,
    window: int | None,
    out: torch.Tensor,
    workspace: AttentionWorkspace,
    tiles: Tiles | None = None,
) -> None:
    """What each row of `q` [rows, heads, dim] reads, into `out` [rows, heads * dim]. Scores are not scaled.

    `k` and `v` [rows, kv_heads, dim] are the rows' own; older ones come from `kv`, which must already hold what this
    launch's encoding groups write. `window` in tokens, None on full layers. Rows that hold nothing become zeros; on
    Hopper they, and what the cache holds elsewhere in a sequence's blocks, must be finite.
    `tiles`: other than the usual. Raises `ValueError` on shapes that do not fit.
    """
    rows, heads, dim = q.shape
    kv_heads = k.shape[1]
    rows_each = groups.rows_each(rows)
    tiles = tiles or Tiles.of(groups.count, rows_each, heads, dim, by_hopper(q, kv.block_tokens))
    if heads % kv_heads or (heads // kv_heads) % tiles.pack or dim < 16 or dim & (dim - 1):
        raise ValueError(f"{heads} heads of {dim} over {kv_heads} of keys, {tiles.pack} at a time")
    if k.shape != (rows, kv_heads, dim) or v.shape != k.shape or out.shape != (rows, heads * dim):
        raise ValueError(f"k {list(k.shape)}, v {list(v.shape)} or out {list(out.shape)} does not fit q")
    if tiles.splits > 1 and workspace.parts.numel() < tiles.splits * rows * heads * dim:
        raise ValueError(f"workspace: {workspace.parts.numel()} numbers for {tiles.splits} splits of {list(q.shape)}")
    if tiles.hopper:
        hopper_attention.launch(
            q, k, v, kv.keys, kv.values, kv.table, kv.first, groups.start, groups.length, groups.causal, out,
            workspace.parts, workspace.weights, groups.count, rows_each, window or 0, kv.block_tokens, tiles.splits,
        )  # fmt: skip
    else:
        tile_rows, programs = tiles.queries // tiles.pack, heads // tiles.pack * tiles.cuts
        grid = (triton.cdiv(rows_each, tile_rows), programs, groups.count * tiles.splits)
        _attend_kernel[grid](
            q,
            k,
            v,
            kv.keys,
            kv.values,
            kv.table,
            kv.first,
            groups.start,
            groups.length,
            groups.causal,
            out,
            workspace.parts,
            workspace.weights,
            kv.table.shape[1],
            rows,
            rows_each=rows_each,
            heads=heads,
            kv_heads=kv_heads,
            dim=dim,
            window=window or 0,
            block_tokens=kv.block_tokens,
            queries=tiles.queries,
            keys=tiles.keys,
            pack=tiles.pack,
            splits=tiles.splits,
            cuts=tiles.cuts,
            num_warps=tiles.warps,
            num_stages=tiles.stages,
        )
    if tiles.splits > 1:
        block = min(triton.next_power_of_2(heads), max(1, 2048 // dim))
        _combine_kernel[(rows, triton.cdiv(heads, block))](
            workspace.parts,
            workspace.weights,
            groups.length,
            out,
            rows,
            rows_each=rows_each,
            heads=heads,
            dim=dim,
            splits=tiles.splits,
            block=block,
            num_warps=4,
        )

"""Attention on Hopper: one tile's softmax runs while the tile before it is mixed.

The same sums over the same keys as `attention`, written in Gluon, because Triton waits for every product before it goes
on. A step starts the scores of the next tile and mixes the values of this one; while the tensor cores do the second,
the step takes the exponentials of the first. Keys and values come by asynchronous copies, two buffers each.

Owns: this loop, and the shapes in which it is run. Refuses to know: what other GPUs do, and how splits are put together
(`attention`).
"""

from __future__ import annotations

from typing import Any

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_wait,
)

ROWS = 128
"""Rows of a program's tile: 64 for each of two warp groups."""
WARPS = 8
WIDEST = 256
"""Columns of values that a program mixes: what its registers hold."""
LOG2_E = gl.constexpr(1.4426950408889634)
_barrier: Any = getattr(gl, "barrier", None) or gl.thread_barrier  # it has the first name since Triton 3.7


def keys_a_step(dim: int) -> int:
    """Keys of a tile, whose buffers fit into shared memory beside the queries. 0: heads of so many numbers do not."""
    return 64 if dim in (256, 512) else 0


def launch(
    q: Any, k: Any, v: Any, pool_keys: Any, pool_values: Any, table: Any, first: Any, start: Any, length: Any,
    causal: Any, out: Any, parts: Any, weights: Any, groups: int, rows_each: int, window: int, block_tokens: int,
    splits: int,
) -> None:  # fmt: skip
    """Start it over all groups; arguments as in `attention`. With `splits` above 1 the parts are left in `parts`."""
    rows, heads, dim = q.shape
    grid = (rows_each // ROWS, heads * (dim // WIDEST), groups * splits)
    attend[grid](
        q, k, v, pool_keys, pool_values, table, first, start, length, causal, out, parts, weights, table.shape[1], rows,
        ROWS_EACH=rows_each, HEADS=heads, KV_HEADS=k.shape[1], DIM=dim, CUTS=dim // WIDEST, WINDOW=window,
        BLOCK_TOKENS=block_tokens, KEYS=keys_a_step(dim), SPLITS=splits, M=ROWS, num_warps=WARPS,
    )  # fmt: skip


@gluon.jit
def _sources(
    tile, old_tiles, old_from, own_from, own_to, since, table, group_row, KEYS: gl.constexpr,
    BLOCK_TOKENS: gl.constexpr, COPY: gl.constexpr,
):  # fmt: skip
    """In which rows of the cache, or of the launch, a tile's keys lie. Past the last key: that one again."""
    at = gl.arange(0, KEYS, layout=gl.SliceLayout(1, COPY))
    if tile < old_tiles:
        token = since + gl.minimum(old_from + tile * KEYS + at, -1)
        rows = gl.load(table + token // BLOCK_TOKENS) * BLOCK_TOKENS + token % BLOCK_TOKENS
    else:
        rows = group_row + gl.minimum(own_from + (tile - old_tiles) * KEYS + at, own_to - 1)
    return rows


@gluon.jit
def _fetch(
    ring, rows, tile, old_tiles, old, own, shared, from_column, KV_HEADS: gl.constexpr, DIM: gl.constexpr,
    WIDE: gl.constexpr, COPY: gl.constexpr,
):  # fmt: skip
    """Copy one tile of keys, or of values, into a buffer."""
    base = old if tile < old_tiles else own
    column = from_column + gl.arange(0, WIDE, layout=gl.SliceLayout(0, COPY))
    cell = (rows.to(gl.int64) * KV_HEADS + shared) * DIM
    async_copy.async_copy_global_to_shared(ring, base + gl.expand_dims(cell, 1) + gl.expand_dims(column, 0))


@gluon.jit
def _weigh(
    scores, most, total, tile, to_tile, old_tiles, old_from, own_from, own_to, encodes, lowest, highest,
    KEYS: gl.constexpr, SCORES: gl.constexpr,
):  # fmt: skip
    """Take one tile of scores into the running softmax: its weights, and by how much what was before shrinks."""
    if tile < old_tiles:
        key_from = old_from + tile * KEYS
        limit = old_from * 0
    else:
        key_from = own_from + (tile - old_tiles) * KEYS
        limit = own_to
    limit = gl.where(tile < to_tile, limit, key_from)
    if encodes | (key_from + KEYS > limit):
        key = gl.arange(0, KEYS, layout=gl.SliceLayout(0, SCORES))
        seen = gl.maximum(gl.minimum(highest + 1, limit) - lowest, 0)
        above = gl.expand_dims(key, 0) + gl.expand_dims(key_from - lowest, 1)
        scores = gl.where((above >= 0) & (above < gl.expand_dims(seen, 1)), scores, float("-inf"))
    larger = gl.maximum(most, gl.max(scores, axis=1))
    # A row that has seen no key yet: any finite number will do, and its exponentials are 0.
    below = gl.where(larger == float("-inf"), 0.0, larger) * LOG2_E
    shrink = gl.exp2(most * LOG2_E - below)
    chances = gl.exp2(scores * LOG2_E - gl.expand_dims(below, 1))
    return larger, total * shrink + gl.sum(chances, axis=1), shrink, chances


@gluon.jit
def _before_the_wait(total):
    """The same. A sum of exponentials is never below zero: that the kernel would end here if it were keeps the
    assembler from putting the wait that follows before the exponentials, which are taken while values are mixed."""
    return gl.inline_asm_elementwise(
        "{ .reg .pred p; setp.lt.f32 p, $1, 0f00000000; @p trap; mov.f32 $0, $1; }",
        "=f,f", [total], dtype=gl.float32, is_pure=False, pack=1,
    )  # fmt: skip


@gluon.jit
def _step(
    query, key_ring, value_ring, mixed, chances, most, total, rows, tile, buffer, to_tile, old_tiles, old_from,
    own_from, own_to, encodes, lowest, highest, since, table, group_row, pool_keys, pool_values, k, v, shared,
    value_column, KV_HEADS: gl.constexpr, DIM: gl.constexpr, WIDE: gl.constexpr, KEYS: gl.constexpr,
    BLOCK_TOKENS: gl.constexpr, M: gl.constexpr, COPY: gl.constexpr, SCORES: gl.constexpr, MIXED: gl.constexpr,
):  # fmt: skip
    """Mix the values of `tile`, which lie in `buffer`, and weigh the next tile, whose `rows` are known."""
    async_copy.wait_group(0)
    fence_async_shared()
    nothing = gl.zeros((M, KEYS), gl.float32, layout=SCORES)
    scores = warpgroup_mma(query, key_ring.index(1 - buffer).permute((1, 0)), nothing, use_acc=False, is_async=True)
    mixed = warpgroup_mma(chances, value_ring.index(buffer), mixed, is_async=True)
    _fetch(value_ring.index(1 - buffer), rows, tile + 1, old_tiles, pool_values, v, shared, value_column, KV_HEADS,
           DIM, WIDE, COPY)  # fmt: skip
    rows = _sources(tile + 2, old_tiles, old_from, own_from, own_to, since, table, group_row, KEYS, BLOCK_TOKENS, COPY)
    if tile + 2 < to_tile:
        _fetch(key_ring.index(buffer), rows, tile + 2, old_tiles, pool_keys, k, shared, 0, KV_HEADS, DIM, DIM, COPY)
    async_copy.commit_group()
    scores = warpgroup_mma_wait(1, deps=[scores])
    most, total, shrink, next_chances = _weigh(
        scores, most, total, tile + 1, to_tile, old_tiles, old_from, own_from, own_to, encodes, lowest, highest, KEYS,
        SCORES,
    )  # fmt: skip
    after = gl.convert_layout(next_chances.to(gl.bfloat16), gl.DotOperandLayout(0, MIXED, 2))
    total = _before_the_wait(total)
    mixed, chances, after = warpgroup_mma_wait(0, deps=[mixed, chances, after])
    mixed = mixed * gl.expand_dims(gl.convert_layout(shrink, gl.SliceLayout(1, MIXED)), 1)
    return mixed, after, most, total, rows


@gluon.jit
def _whole(
    q, from_query, from_tile, to_tile, old_tiles, old_from, own_from, own_to, encodes, lowest, highest, since, table,
    group_row, pool_keys, pool_values, k, v, shared, value_column, KV_HEADS: gl.constexpr, DIM: gl.constexpr,
    WIDE: gl.constexpr, KEYS: gl.constexpr, BLOCK_TOKENS: gl.constexpr, M: gl.constexpr, COPY: gl.constexpr,
    SHARED: gl.constexpr, SCORES: gl.constexpr, MIXED: gl.constexpr,
):  # fmt: skip
    """Heads of 256: two buffers of keys and two of values. The largest score, the sum of weights, the mixed values."""
    query = gl.allocate_shared_memory(gl.bfloat16, [M, DIM], SHARED)
    key_ring = gl.allocate_shared_memory(gl.bfloat16, [2, KEYS, DIM], SHARED)
    value_ring = gl.allocate_shared_memory(gl.bfloat16, [2, KEYS, WIDE], SHARED)
    column = gl.arange(0, DIM, layout=gl.SliceLayout(0, COPY))
    async_copy.async_copy_global_to_shared(query, q + gl.expand_dims(from_query, 1) + gl.expand_dims(column, 0))
    sources = _sources(
        from_tile, old_tiles, old_from, own_from, own_to, since, table, group_row, KEYS, BLOCK_TOKENS, COPY
    )
    _fetch(key_ring.index(0), sources, from_tile, old_tiles, pool_keys, k, shared, 0, KV_HEADS, DIM, DIM, COPY)
    async_copy.commit_group()
    next_sources = _sources(
        from_tile + 1, old_tiles, old_from, own_from, own_to, since, table, group_row, KEYS, BLOCK_TOKENS, COPY
    )
    _fetch(value_ring.index(0), sources, from_tile, old_tiles, pool_values, v, shared, value_column, KV_HEADS,
           DIM, WIDE, COPY)  # fmt: skip
    if from_tile + 1 < to_tile:
        _fetch(key_ring.index(1), next_sources, from_tile + 1, old_tiles, pool_keys, k, shared, 0, KV_HEADS, DIM,
               DIM, COPY)  # fmt: skip
    async_copy.commit_group()
    most = gl.full((M,), float("-inf"), gl.float32, layout=gl.SliceLayout(1, SCORES))
    total = gl.zeros((M,), gl.float32, layout=gl.SliceLayout(1, SCORES))
    mixed = gl.zeros((M, WIDE), gl.float32, layout=MIXED)
    async_copy.wait_group(1)
    fence_async_shared()
    nothing = gl.zeros((M, KEYS), gl.float32, layout=SCORES)
    scores = warpgroup_mma(query, key_ring.index(0).permute((1, 0)), nothing, use_acc=False, is_async=True)
    scores = warpgroup_mma_wait(0, deps=[scores])
    most, total, _, weighed = _weigh(
        scores, most, total, from_tile, to_tile, old_tiles, old_from, own_from, own_to, encodes, lowest, highest,
        KEYS, SCORES,
    )  # fmt: skip
    chances = gl.convert_layout(weighed.to(gl.bfloat16), gl.DotOperandLayout(0, MIXED, 2))
    steps = gl.maximum(to_tile - from_tile - 1, 0)
    for done in range(steps):
        mixed, chances, most, total, next_sources = _step(
            query, key_ring, value_ring, mixed, chances, most, total, next_sources, from_tile + done, done % 2,
            to_tile, old_tiles, old_from, own_from, own_to, encodes, lowest, highest, since, table, group_row,
            pool_keys, pool_values, k, v, shared, value_column, KV_HEADS, DIM, WIDE, KEYS, BLOCK_TOKENS, M, COPY,
            SCORES, MIXED,
        )  # fmt: skip
    async_copy.wait_group(0)
    fence_async_shared()
    mixed = warpgroup_mma(chances, value_ring.index(steps % 2), mixed, is_async=True)
    mixed, chances = warpgroup_mma_wait(0, deps=[mixed, chances])
    return most, total, mixed


@gluon.jit
def _halves(
    q, from_query, from_tile, to_tile, old_tiles, old_from, own_from, own_to, encodes, lowest, highest, since, table,
    group_row, pool_keys, pool_values, k, v, shared, value_column, KV_HEADS: gl.constexpr, DIM: gl.constexpr,
    WIDE: gl.constexpr, KEYS: gl.constexpr, BLOCK_TOKENS: gl.constexpr, M: gl.constexpr, COPY: gl.constexpr,
    SHARED: gl.constexpr, SCORES: gl.constexpr, MIXED: gl.constexpr,
):  # fmt: skip
    """Heads of 512: one buffer each for both halves of a tile's keys and for its values, all that there is room for.
    Each is filled again as soon as the product that read it is over, while those behind it run. As `_whole` else."""
    query = gl.allocate_shared_memory(gl.bfloat16, [M, WIDE], SHARED)
    query_2 = gl.allocate_shared_memory(gl.bfloat16, [M, WIDE], SHARED)
    keys = gl.allocate_shared_memory(gl.bfloat16, [KEYS, WIDE], SHARED)
    keys_2 = gl.allocate_shared_memory(gl.bfloat16, [KEYS, WIDE], SHARED)
    values = gl.allocate_shared_memory(gl.bfloat16, [KEYS, WIDE], SHARED)
    column = gl.arange(0, WIDE, layout=gl.SliceLayout(0, COPY))
    query_at = q + gl.expand_dims(from_query, 1) + gl.expand_dims(column, 0)
    sources = _sources(
        from_tile, old_tiles, old_from, own_from, own_to, since, table, group_row, KEYS, BLOCK_TOKENS, COPY
    )
    async_copy.async_copy_global_to_shared(query, query_at)
    _fetch(keys, sources, from_tile, old_tiles, pool_keys, k, shared, 0, KV_HEADS, DIM, WIDE, COPY)
    async_copy.commit_group()
    async_copy.async_copy_global_to_shared(query_2, query_at + WIDE)
    _fetch(keys_2, sources, from_tile, old_tiles, pool_keys, k, shared, WIDE, KV_HEADS, DIM, WIDE, COPY)
    async_copy.commit_group()
    next_sources = _sources(
        from_tile + 1, old_tiles, old_from, own_from, own_to, since, table, group_row, KEYS, BLOCK_TOKENS, COPY
    )
    most = gl.full((M,), float("-inf"), gl.float32, layout=gl.SliceLayout(1, SCORES))
    total = gl.zeros((M,), gl.float32, layout=gl.SliceLayout(1, SCORES))
    mixed = gl.zeros((M, WIDE), gl.float32, layout=MIXED)
    nothing = gl.zeros((M, KEYS), gl.float32, layout=SCORES)
    async_copy.wait_group(1)
    fence_async_shared()
    scores = warpgroup_mma(query, keys.permute((1, 0)), nothing, use_acc=False, is_async=True)
    async_copy.wait_group(0)
    fence_async_shared()
    scores = warpgroup_mma(query_2, keys_2.permute((1, 0)), scores, is_async=True)
    scores = warpgroup_mma_wait(0, deps=[scores])
    _barrier()
    steps = gl.maximum(to_tile - from_tile - 1, 0)
    if steps > 0:
        _fetch(keys, next_sources, from_tile + 1, old_tiles, pool_keys, k, shared, 0, KV_HEADS, DIM, WIDE, COPY)
    async_copy.commit_group()
    if steps > 0:
        _fetch(keys_2, next_sources, from_tile + 1, old_tiles, pool_keys, k, shared, WIDE, KV_HEADS, DIM, WIDE, COPY)
    async_copy.commit_group()
    _fetch(values, sources, from_tile, old_tiles, pool_values, v, shared, value_column, KV_HEADS, DIM, WIDE, COPY)
    async_copy.commit_group()
    most, total, _, weighed = _weigh(
        scores, most, total, from_tile, to_tile, old_tiles, old_from, own_from, own_to, encodes, lowest, highest, KEYS,
        SCORES,
    )  # fmt: skip
    chances = gl.convert_layout(weighed.to(gl.bfloat16), gl.DotOperandLayout(0, MIXED, 2))
    for done in range(steps):
        tile = from_tile + done
        async_copy.wait_group(2)
        fence_async_shared()
        scores = warpgroup_mma(query, keys.permute((1, 0)), nothing, use_acc=False, is_async=True)
        async_copy.wait_group(1)
        fence_async_shared()
        scores = warpgroup_mma(query_2, keys_2.permute((1, 0)), scores, is_async=True)
        async_copy.wait_group(0)
        fence_async_shared()
        mixed = warpgroup_mma(chances, values, mixed, is_async=True)
        later = _sources(
            tile + 2, old_tiles, old_from, own_from, own_to, since, table, group_row, KEYS, BLOCK_TOKENS, COPY
        )
        # A barrier behind each wait: the other warp group's product may still read what is to be filled.
        scores = warpgroup_mma_wait(2, deps=[scores])
        _barrier()
        if tile + 2 < to_tile:
            _fetch(keys, later, tile + 2, old_tiles, pool_keys, k, shared, 0, KV_HEADS, DIM, WIDE, COPY)
        async_copy.commit_group()
        scores = warpgroup_mma_wait(1, deps=[scores])
        _barrier()
        if tile + 2 < to_tile:
            _fetch(keys_2, later, tile + 2, old_tiles, pool_keys, k, shared, WIDE, KV_HEADS, DIM, WIDE, COPY)
        async_copy.commit_group()
        most, total, shrink, weighed = _weigh(
            scores, most, total, tile + 1, to_tile, old_tiles, old_from, own_from, own_to, encodes, lowest, highest,
            KEYS, SCORES,
        )  # fmt: skip
        after = gl.convert_layout(weighed.to(gl.bfloat16), gl.DotOperandLayout(0, MIXED, 2))
        total = _before_the_wait(total)
        mixed, chances, after = warpgroup_mma_wait(0, deps=[mixed, chances, after])
        _barrier()
        _fetch(values, next_sources, tile + 1, old_tiles, pool_values, v, shared, value_column, KV_HEADS, DIM, WIDE,
               COPY)  # fmt: skip
        async_copy.commit_group()
        mixed = mixed * gl.expand_dims(gl.convert_layout(shrink, gl.SliceLayout(1, MIXED)), 1)
        chances, next_sources = after, later
    async_copy.wait_group(0)
    fence_async_shared()
    mixed = warpgroup_mma(chances, values, mixed, is_async=True)
    mixed, chances = warpgroup_mma_wait(0, deps=[mixed, chances])
    return most, total, mixed


@gluon.jit
def attend(
    q, k, v, pool_keys, pool_values, table, first, start, length, causal, out, parts, weights, most_blocks, rows,
    ROWS_EACH: gl.constexpr, HEADS: gl.constexpr, KV_HEADS: gl.constexpr, DIM: gl.constexpr, CUTS: gl.constexpr,
    WINDOW: gl.constexpr, BLOCK_TOKENS: gl.constexpr, KEYS: gl.constexpr, SPLITS: gl.constexpr, M: gl.constexpr,
):  # fmt: skip
    """M rows of one head of one group, over all its keys or a split of them. Grid: tiles of rows, heads, groups."""
    WIDE: gl.constexpr = DIM // CUTS
    SCORES: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[8, 1], instr_shape=[16, KEYS, 16])
    MIXED: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[8, 1], instr_shape=[16, WIDE, 16])
    COPY: gl.constexpr = gl.BlockedLayout([1, 8], [1, 32], [8, 1], [1, 0])
    SHARED: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    ROW: gl.constexpr = gl.SliceLayout(1, SCORES)
    cut = gl.program_id(1) % CUTS
    head = gl.program_id(1) // CUTS
    group = gl.program_id(2) // SPLITS
    split = gl.program_id(2) % SPLITS
    low = gl.program_id(0) * M
    own = gl.load(length + group)
    shared = head // (HEADS // KV_HEADS)
    value_column = cut * WIDE
    out_row = low + gl.arange(0, M, layout=gl.SliceLayout(1, COPY))
    out_column = value_column + gl.arange(0, WIDE, layout=gl.SliceLayout(0, COPY))
    place = ((group * ROWS_EACH + out_row) * HEADS + head).to(gl.int64)
    if low < own:
        begins = gl.load(start + group)
        encodes = gl.load(causal + group) != 0
        row = low + gl.arange(0, M, layout=ROW)
        # Key positions count from the group's first row: those in the cache are negative. See `attention`.
        if encodes:
            highest = gl.minimum(row, own - 1)
            own_to = gl.minimum(own, low + M)
        else:
            highest = gl.zeros_like(row) + (own - 1)
            own_to = own
        if WINDOW > 0:
            if encodes:
                lowest = row - WINDOW + 1
                old_from = gl.minimum(0, gl.maximum(-begins, low - WINDOW + 1))
                own_from = gl.maximum(0, low - WINDOW + 1)
            else:
                lowest = gl.zeros_like(row) + (1 - WINDOW)
                old_from = gl.minimum(0, gl.maximum(-begins, 1 - WINDOW))
                own_from = begins * 0
        else:
            lowest = gl.zeros_like(row) - begins
            old_from = -begins
            own_from = begins * 0
        old_tiles = (KEYS - 1 - old_from) // KEYS
        tiles = old_tiles + (own_to - own_from + KEYS - 1) // KEYS
        each = (tiles + SPLITS - 1) // SPLITS
        from_tile = gl.minimum(split * each, tiles)
        to_tile = gl.minimum(from_tile + each, tiles)
        since = begins - gl.load(first + group)  # tokens between the table's first and the group's first
        my_table = table + group * most_blocks
        group_row = group * ROWS_EACH

        held = gl.minimum(out_row, own - 1)
        from_query = ((group_row + held) * HEADS + head).to(gl.int64) * DIM
        if DIM == WIDE:
            most, total, mixed = _whole(
                q, from_query, from_tile, to_tile, old_tiles, old_from, own_from, own_to, encodes, lowest, highest,
                since, my_table, group_row, pool_keys, pool_values, k, v, shared, value_column, KV_HEADS, DIM, WIDE,
                KEYS, BLOCK_TOKENS, M, COPY, SHARED, SCORES, MIXED,
            )  # fmt: skip
        else:
            most, total, mixed = _halves(
                q, from_query, from_tile, to_tile, old_tiles, old_from, own_from, own_to, encodes, lowest, highest,
                since, my_table, group_row, pool_keys, pool_values, k, v, shared, value_column, KV_HEADS, DIM, WIDE,
                KEYS, BLOCK_TOKENS, M, COPY, SHARED, SCORES, MIXED,
            )  # fmt: skip
        kept = gl.expand_dims(out_row < own, 1)
        if SPLITS > 1:
            part = split * rows.to(gl.int64) * HEADS + place
            row_part = split * rows.to(gl.int64) * HEADS + ((group_row + row) * HEADS + head).to(gl.int64)
            gl.store(weights + row_part * 2, most, mask=(row < own) & (cut == 0))
            gl.store(weights + row_part * 2 + 1, total, mask=(row < own) & (cut == 0))
            target = parts + gl.expand_dims(part * DIM, 1) + gl.expand_dims(out_column, 0)
            gl.store(target, gl.convert_layout(mixed.to(gl.bfloat16), COPY), mask=kept)
        else:
            whole = gl.convert_layout(gl.where(total > 0, total, 1.0), gl.SliceLayout(1, MIXED))
            mixed = gl.convert_layout((mixed / gl.expand_dims(whole, 1)).to(gl.bfloat16), COPY)
            target = out + gl.expand_dims(place * DIM, 1) + gl.expand_dims(out_column, 0)
            gl.store(target, gl.where(kept, mixed, 0.0), mask=gl.expand_dims(out_row < ROWS_EACH, 1))
    else:
        if SPLITS == 1:
            target = out + gl.expand_dims(place * DIM, 1) + gl.expand_dims(out_column, 0)
            gl.store(target, gl.zeros((M, WIDE), gl.bfloat16, layout=COPY))

"""Attention on Hopper: one tile's softmax runs while the tile before it is mixed.

The same sums over the same keys as `attention`, written in Gluon, because Triton waits for every product before it goes
on. A step starts the scores of the next tile and mixes the values of this one; while the tensor cores do the second,
the step takes the exponentials of the first. Keys and values come by the tensor memory accelerator, a block of the
cache at a time: what a gather by threads costs in registers and instructions was half of the kernel.

Owns: this loop, and the shapes in which it is run. Refuses to know: what other GPUs do, and how splits are put together
(`attention`).

Copies are of whole blocks, so rows that nobody sees are read too, and weigh nothing: they must hold finite numbers. The
cache starts with zeros, and `heads` leaves zeros in rows that hold nothing.
"""

from __future__ import annotations

from math import gcd
from typing import Any

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

ROWS = 128
"""Rows of a program's tile: 64 for each of two warp groups."""
WARPS = 8
WIDEST = 256
"""Columns of values that a program mixes: what its registers hold."""
KEYS = 64
"""Keys of a tile, whose buffers fit into shared memory beside the queries."""
SHARED = gl.constexpr(gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2))
LOG2_E = gl.constexpr(1.4426950408889634)
_barrier: Any = getattr(gl, "barrier", None) or gl.thread_barrier  # it has the first name since Triton 3.7


def fits(rows_each: int, dim: int) -> bool:
    """Whether it knows heads of `dim` numbers, in groups of so many rows."""
    return dim in (256, 512) and rows_each % ROWS == 0


def fits_blocks(block_tokens: int) -> bool:
    """Whether blocks of the cache make whole copies: a copy is of at least 8 rows, where the swizzle starts again."""
    return gcd(block_tokens, KEYS) >= 8


def launch(
    q: Any, k: Any, v: Any, pool_keys: Any, pool_values: Any, table: Any, first: Any, start: Any, length: Any,
    causal: Any, out: Any, parts: Any, weights: Any, groups: int, rows_each: int, window: int, block_tokens: int,
    splits: int,
) -> None:  # fmt: skip
    """Start it over all groups; arguments as in `attention`. With `splits` above 1 the parts are left in `parts`."""
    rows, heads, dim = q.shape
    box = gcd(block_tokens, KEYS)
    grid = (rows_each // ROWS, heads * (dim // WIDEST), groups * splits)
    target = parts[: splits * rows * heads * dim].view(-1, heads, dim) if splits > 1 else out.view(rows, heads, dim)
    attend[grid](
        _described(q, ROWS), _described(k, KEYS), _described(v, KEYS), _described(pool_keys, box),
        _described(pool_values, box), table, first, start, length, causal, _described(target, ROWS), weights,
        table.shape[1], rows,
        ROWS_EACH=rows_each, HEADS=heads, KV_HEADS=k.shape[1], DIM=dim, CUTS=dim // WIDEST, WINDOW=window,
        BLOCK_TOKENS=block_tokens, BOX=box, KEYS=KEYS, SPLITS=splits, M=ROWS, num_warps=WARPS,
    )  # fmt: skip


def _described(x: Any, rows: int) -> TensorDescriptor:
    """`x` [rows, heads, dim] for copies of `rows` rows by WIDEST columns."""
    return TensorDescriptor.from_tensor(x.view(x.shape[0], -1), [rows, WIDEST], SHARED.value)


@gluon.jit
def _fetch(
    target, arrival, tile, old_tiles, table, old_token, last_token, own_row, pool, own, column, wanted,
    KEYS: gl.constexpr, BOX: gl.constexpr, BLOCK_TOKENS: gl.constexpr, WIDE: gl.constexpr,
):  # fmt: skip
    """Copy one tile of keys, or of values, if it is `wanted`. Past the sequence's last block: that one again."""
    if wanted:
        mbarrier.expect(arrival, KEYS * WIDE * 2)
        if tile < old_tiles:
            for part in gl.static_range(KEYS // BOX):
                token = gl.minimum(old_token + tile * KEYS + part * BOX, last_token)
                row = gl.load(table + token // BLOCK_TOKENS) * BLOCK_TOKENS + token % BLOCK_TOKENS
                into = target.slice(part * BOX, BOX, dim=0)
                tma.async_copy_global_to_shared(pool, [row, column], arrival, into)
        else:
            tma.async_copy_global_to_shared(own, [own_row + (tile - old_tiles) * KEYS, column], arrival, target)


@gluon.jit
def _weigh(
    scores, most, total, tile, to_tile, old_tiles, old_key, own_from, own_to, encodes, seen_from, lowest, highest,
    KEYS: gl.constexpr, SCORES: gl.constexpr, MIXED: gl.constexpr,
):  # fmt: skip
    """Take one tile of scores into the running softmax: by how much what was before shrinks, and the tile's weights, as
    the product with its values takes them."""
    if tile < old_tiles:
        key_from = old_key + tile * KEYS
        limit = old_key * 0
    else:
        key_from = own_from + (tile - old_tiles) * KEYS
        limit = own_to
    limit = gl.where(tile < to_tile, limit, key_from)
    if encodes | (key_from < seen_from) | (key_from + KEYS > limit):
        key = gl.arange(0, KEYS, layout=gl.SliceLayout(0, SCORES))
        seen = gl.maximum(gl.minimum(highest + 1, limit) - lowest, 0)
        above = gl.expand_dims(key, 0) + gl.expand_dims(key_from - lowest, 1)
        scores = gl.where((above >= 0) & (above < gl.expand_dims(seen, 1)), scores, float("-inf"))
    larger = gl.maximum(most, gl.max(scores, axis=1))
    # A row that has seen no key yet: any finite number will do, and its exponentials are 0.
    below = gl.where(larger == float("-inf"), 0.0, larger) * LOG2_E
    shrink = gl.exp2(most * LOG2_E - below)
    chances = gl.exp2(scores * LOG2_E - gl.expand_dims(below, 1))
    total = total * shrink + gl.sum(chances, axis=1)
    return larger, total, shrink, gl.convert_layout(chances.to(gl.bfloat16), gl.DotOperandLayout(0, MIXED, 2))


@gluon.jit
def _before_the_wait(total):
    """The same. A sum of exponentials is never below zero: that the kernel would end here if it were keeps the
    assembler from putting the wait that follows before the exponentials, which are taken while values are mixed."""
    return gl.inline_asm_elementwise(
        "{ .reg .pred p; setp.lt.f32 p, $1, 0f00000000; @p trap; mov.f32 $0, $1; }",
        "=f,f", [total], dtype=gl.float32, is_pure=False, pack=1,
    )  # fmt: skip


@gluon.jit
def _whole(
    most, total, mixed, query, q, query_row, query_column, from_tile, to_tile, old_tiles, old_key, own_from, own_to,
    encodes, seen_from, lowest, highest, table, old_token, last_token, own_row, pool_keys, pool_values, k, v,
    key_column, value_column,
    WIDE: gl.constexpr, KEYS: gl.constexpr, BOX: gl.constexpr, BLOCK_TOKENS: gl.constexpr, M: gl.constexpr,
    SCORES: gl.constexpr, MIXED: gl.constexpr,
):  # fmt: skip
    """Heads of 256: two buffers of keys and two of values. Returns the largest score, the sum of weights and the mixed
    values, which are given as they are before any key was seen. `query` is where queries are copied to."""
    key_ring = gl.allocate_shared_memory(gl.bfloat16, [2, KEYS, WIDE], SHARED)
    value_ring = gl.allocate_shared_memory(gl.bfloat16, [2, KEYS, WIDE], SHARED)
    # Apart, because a barrier of threads comes between what is done to one allocation and to itself.
    key_arrivals = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    value_arrivals = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    query_arrival = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    for number in gl.static_range(2):
        mbarrier.init(key_arrivals.index(number), count=1)
        mbarrier.init(value_arrivals.index(number), count=1)
    mbarrier.init(query_arrival, count=1)
    mbarrier.expect(query_arrival, M * WIDE * 2)
    tma.async_copy_global_to_shared(q, [query_row, query_column], query_arrival, query)
    _fetch(key_ring.index(0), key_arrivals.index(0), from_tile, old_tiles, table, old_token, last_token, own_row,
           pool_keys, k, key_column, True, KEYS, BOX, BLOCK_TOKENS, WIDE)  # fmt: skip
    _fetch(value_ring.index(0), value_arrivals.index(0), from_tile, old_tiles, table, old_token, last_token, own_row,
           pool_values, v, value_column, True, KEYS, BOX, BLOCK_TOKENS, WIDE)  # fmt: skip
    _fetch(key_ring.index(1), key_arrivals.index(1), from_tile + 1, old_tiles, table, old_token, last_token, own_row,
           pool_keys, k, key_column, from_tile + 1 < to_tile, KEYS, BOX, BLOCK_TOKENS, WIDE)  # fmt: skip
    nothing = gl.zeros((M, KEYS), gl.float32, layout=SCORES)
    mbarrier.wait(query_arrival, 0)
    mbarrier.wait(key_arrivals.index(0), 0)
    scores = warpgroup_mma(query, key_ring.index(0).permute((1, 0)), nothing, use_acc=False, is_async=True)
    scores = warpgroup_mma_wait(0, deps=[scores])
    most, total, _, chances = _weigh(
        scores, most, total, from_tile, to_tile, old_tiles, old_key, own_from, own_to, encodes, seen_from, lowest,
        highest, KEYS, SCORES, MIXED,
    )  # fmt: skip
    steps = gl.maximum(to_tile - from_tile - 1, 0)
    for done in range(steps):
        # Mix the values of one tile, and weigh the next one.
        tile = from_tile + done
        buffer = done % 2
        mbarrier.wait(key_arrivals.index(1 - buffer), (done + 1) // 2 % 2)
        scores = warpgroup_mma(query, key_ring.index(1 - buffer).permute((1, 0)), nothing, use_acc=False,
                               is_async=True)  # fmt: skip
        mbarrier.wait(value_arrivals.index(buffer), done // 2 % 2)
        mixed = warpgroup_mma(chances, value_ring.index(buffer), mixed, is_async=True)
        # The other warp group, too, is past the products that read what is filled again now.
        _barrier()
        _fetch(value_ring.index(1 - buffer), value_arrivals.index(1 - buffer), tile + 1, old_tiles, table, old_token,
               last_token, own_row, pool_values, v, value_column, True, KEYS, BOX, BLOCK_TOKENS, WIDE)  # fmt: skip
        _fetch(key_ring.index(buffer), key_arrivals.index(buffer), tile + 2, old_tiles, table, old_token, last_token,
               own_row, pool_keys, k, key_column, tile + 2 < to_tile, KEYS, BOX, BLOCK_TOKENS, WIDE)  # fmt: skip
        scores = warpgroup_mma_wait(1, deps=[scores])
        most, total, shrink, after = _weigh(
            scores, most, total, tile + 1, to_tile, old_tiles, old_key, own_from, own_to, encodes, seen_from, lowest,
            highest, KEYS, SCORES, MIXED,
        )  # fmt: skip
        total = _before_the_wait(total)
        mixed, chances, after = warpgroup_mma_wait(0, deps=[mixed, chances, after])
        mixed = mixed * gl.expand_dims(gl.convert_layout(shrink, gl.SliceLayout(1, MIXED)), 1)
        chances = after
    mbarrier.wait(value_arrivals.index(steps % 2), steps // 2 % 2)
    mixed = warpgroup_mma(chances, value_ring.index(steps % 2), mixed, is_async=True)
    mixed, chances = warpgroup_mma_wait(0, deps=[mixed, chances])
    return most, total, mixed


@gluon.jit
def _halves(
    most, total, mixed, query, q, query_row, query_column, from_tile, to_tile, old_tiles, old_key, own_from, own_to,
    encodes, seen_from, lowest, highest, table, old_token, last_token, own_row, pool_keys, pool_values, k, v,
    key_column, value_column,
    WIDE: gl.constexpr, KEYS: gl.constexpr, BOX: gl.constexpr, BLOCK_TOKENS: gl.constexpr, M: gl.constexpr,
    SCORES: gl.constexpr, MIXED: gl.constexpr,
):  # fmt: skip
    """Heads of 512: one buffer each for both halves of a tile's keys and for its values, all that there is room for.
    Each is filled again as soon as the product that read it is over, while those behind it run. As `_whole` else."""
    query_2 = gl.allocate_shared_memory(gl.bfloat16, [M, WIDE], SHARED)
    keys = gl.allocate_shared_memory(gl.bfloat16, [KEYS, WIDE], SHARED)
    keys_2 = gl.allocate_shared_memory(gl.bfloat16, [KEYS, WIDE], SHARED)
    values = gl.allocate_shared_memory(gl.bfloat16, [KEYS, WIDE], SHARED)
    key_arrival = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    key_arrival_2 = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    value_arrival = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    query_arrival = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(key_arrival, count=1)
    mbarrier.init(key_arrival_2, count=1)
    mbarrier.init(value_arrival, count=1)
    mbarrier.init(query_arrival, count=1)
    mbarrier.expect(query_arrival, 2 * M * WIDE * 2)
    tma.async_copy_global_to_shared(q, [query_row, query_column], query_arrival, query)
    tma.async_copy_global_to_shared(q, [query_row, query_column + WIDE], query_arrival, query_2)
    _fetch(keys, key_arrival, from_tile, old_tiles, table, old_token, last_token, own_row, pool_keys, k,
           key_column, True, KEYS, BOX, BLOCK_TOKENS, WIDE)  # fmt: skip
    _fetch(keys_2, key_arrival_2, from_tile, old_tiles, table, old_token, last_token, own_row, pool_keys, k,
           key_column + WIDE, True, KEYS, BOX, BLOCK_TOKENS, WIDE)  # fmt: skip
    _fetch(values, value_arrival, from_tile, old_tiles, table, old_token, last_token, own_row, pool_values, v,
           value_column, True, KEYS, BOX, BLOCK_TOKENS, WIDE)  # fmt: skip
    nothing = gl.zeros((M, KEYS), gl.float32, layout=SCORES)
    mbarrier.wait(query_arrival, 0)
    mbarrier.wait(key_arrival, 0)
    scores = warpgroup_mma(query, keys.permute((1, 0)), nothing, use_acc=False, is_async=True)
    mbarrier.wait(key_arrival_2, 0)
    scores = warpgroup_mma(query_2, keys_2.permute((1, 0)), scores, is_async=True)
    scores = warpgroup_mma_wait(0, deps=[scores])
    _barrier()
    _fetch(keys, key_arrival, from_tile + 1, old_tiles, table, old_token, last_token, own_row, pool_keys, k,
           key_column, from_tile + 1 < to_tile, KEYS, BOX, BLOCK_TOKENS, WIDE)  # fmt: skip
    _fetch(keys_2, key_arrival_2, from_tile + 1, old_tiles, table, old_token, last_token, own_row, pool_keys, k,
           key_column + WIDE, from_tile + 1 < to_tile, KEYS, BOX, BLOCK_TOKENS, WIDE)  # fmt: skip
    most, total, _, chances = _weigh(
        scores, most, total, from_tile, to_tile, old_tiles, old_key, own_from, own_to, encodes, seen_from, lowest,
        highest, KEYS, SCORES, MIXED,
    )  # fmt: skip
    steps = gl.maximum(to_tile - from_tile - 1, 0)
    for done in range(steps):
        tile = from_tile + done
        mbarrier.wait(key_arrival, (done + 1) % 2)
        scores = warpgroup_mma(query, keys.permute((1, 0)), nothing, use_acc=False, is_async=True)
        mbarrier.wait(key_arrival_2, (done + 1) % 2)
        scores = warpgroup_mma(query_2, keys_2.permute((1, 0)), scores, is_async=True)
        mbarrier.wait(value_arrival, done % 2)
        mixed = warpgroup_mma(chances, values, mixed, is_async=True)
        # A barrier behind each wait: the other warp group's product may still read what is to be filled.
        scores = warpgroup_mma_wait(2, deps=[scores])
        _barrier()
        _fetch(keys, key_arrival, tile + 2, old_tiles, table, old_token, last_token, own_row, pool_keys, k,
               key_column, tile + 2 < to_tile, KEYS, BOX, BLOCK_TOKENS, WIDE)  # fmt: skip
        scores = warpgroup_mma_wait(1, deps=[scores])
        _barrier()
        _fetch(keys_2, key_arrival_2, tile + 2, old_tiles, table, old_token, last_token, own_row, pool_keys, k,
               key_column + WIDE, tile + 2 < to_tile, KEYS, BOX, BLOCK_TOKENS, WIDE)  # fmt: skip
        most, total, shrink, after = _weigh(
            scores, most, total, tile + 1, to_tile, old_tiles, old_key, own_from, own_to, encodes, seen_from, lowest,
            highest, KEYS, SCORES, MIXED,
        )  # fmt: skip
        total = _before_the_wait(total)
        mixed, chances, after = warpgroup_mma_wait(0, deps=[mixed, chances, after])
        _barrier()
        _fetch(values, value_arrival, tile + 1, old_tiles, table, old_token, last_token, own_row, pool_values, v,
               value_column, True, KEYS, BOX, BLOCK_TOKENS, WIDE)  # fmt: skip
        mixed = mixed * gl.expand_dims(gl.convert_layout(shrink, gl.SliceLayout(1, MIXED)), 1)
        chances = after
    mbarrier.wait(value_arrival, steps % 2)
    mixed = warpgroup_mma(chances, values, mixed, is_async=True)
    mixed, chances = warpgroup_mma_wait(0, deps=[mixed, chances])
    return most, total, mixed


@gluon.jit
def attend(
    q, k, v, pool_keys, pool_values, table, first, start, length, causal, out, weights, most_blocks, rows,
    ROWS_EACH: gl.constexpr, HEADS: gl.constexpr, KV_HEADS: gl.constexpr, DIM: gl.constexpr, CUTS: gl.constexpr,
    WINDOW: gl.constexpr, BLOCK_TOKENS: gl.constexpr, BOX: gl.constexpr, KEYS: gl.constexpr, SPLITS: gl.constexpr,
    M: gl.constexpr,
):  # fmt: skip
    """M rows of one head of one group, over all its keys or a split of them. Grid: tiles of rows, heads, groups.

    `q` to `pool_values`, and `out` (or the parts of splits): descriptors of [rows, heads * DIM]."""
    WIDE: gl.constexpr = DIM // CUTS
    SCORES: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[8, 1], instr_shape=[16, KEYS, 16])
    MIXED: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[8, 1], instr_shape=[16, WIDE, 16])
    ROW: gl.constexpr = gl.SliceLayout(1, SCORES)
    cut = gl.program_id(1) % CUTS
    head = gl.program_id(1) // CUTS
    group = gl.program_id(2) // SPLITS
    split = gl.program_id(2) % SPLITS
    low = gl.program_id(0) * M
    own = gl.load(length + group)
    begins = gl.load(start + group)
    encodes = gl.load(causal + group) != 0
    since = begins - gl.load(first + group)
    if low < own:
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
                seen_from = gl.minimum(0, gl.maximum(-begins, low - WINDOW + 1))
                own_from = gl.maximum(0, low - WINDOW + 1)
            else:
                lowest = gl.zeros_like(row) + (1 - WINDOW)
                seen_from = gl.minimum(0, gl.maximum(-begins, 1 - WINDOW))
                own_from = begins * 0
        else:
            lowest = gl.zeros_like(row) - begins
            seen_from = -begins
            own_from = begins * 0
        # Tiles of the cache begin where a copy's rows do. Tokens count from the first one of the table.
        old_token = (since + seen_from) // BOX * BOX
        last_token = gl.maximum(since - 1, 0) // BOX * BOX
        old_key = old_token - since
        old_tiles = (KEYS - 1 - old_key) // KEYS
        tiles = old_tiles + (own_to - own_from + KEYS - 1) // KEYS
        each = (tiles + SPLITS - 1) // SPLITS
        from_tile = gl.minimum(split * each, tiles)
        to_tile = gl.minimum(from_tile + each, tiles)
        my_table = table + group * most_blocks
        group_row = group * ROWS_EACH
        column = head // (HEADS // KV_HEADS) * DIM
        query = gl.allocate_shared_memory(gl.bfloat16, [M, WIDE], SHARED)
        most = gl.full((M,), float("-inf"), gl.float32, layout=ROW)
        total = gl.zeros((M,), gl.float32, layout=ROW)
        mixed = gl.zeros((M, WIDE), gl.float32, layout=MIXED)
        if DIM == WIDE:
            most, total, mixed = _whole(
                most, total, mixed, query, q, group_row + low, head * DIM, from_tile, to_tile, old_tiles, old_key,
                own_from, own_to, encodes, seen_from, lowest, highest, my_table, old_token, last_token,
                group_row + own_from, pool_keys, pool_values, k, v, column, column + cut * WIDE, WIDE, KEYS, BOX,
                BLOCK_TOKENS, M, SCORES, MIXED,
            )  # fmt: skip
        else:
            most, total, mixed = _halves(
                most, total, mixed, query, q, group_row + low, head * DIM, from_tile, to_tile, old_tiles, old_key,
                own_from, own_to, encodes, seen_from, lowest, highest, my_table, old_token, last_token,
                group_row + own_from, pool_keys, pool_values, k, v, column, column + cut * WIDE, WIDE, KEYS, BOX,
                BLOCK_TOKENS, M, SCORES, MIXED,
            )  # fmt: skip
        # The queries' place takes the way out. Rows that hold nothing leave zeros.
        row_of = low + gl.arange(0, M, layout=gl.SliceLayout(1, MIXED))
        kept = gl.expand_dims(row_of < own, 1)
        if SPLITS > 1:
            place = split * rows + group_row + low
            at = (place + gl.arange(0, M, layout=ROW)).to(gl.int64) * HEADS + head
            gl.store(weights + at * 2, most, mask=(row < own) & (cut == 0))
            gl.store(weights + at * 2 + 1, total, mask=(row < own) & (cut == 0))
        else:
            place = group_row + low
            whole = gl.convert_layout(gl.where(total > 0, total, 1.0), gl.SliceLayout(1, MIXED))
            mixed = mixed / gl.expand_dims(whole, 1)
        _barrier()
        query.store(gl.where(kept, mixed, 0.0).to(gl.bfloat16))
        fence_async_shared()
        _barrier()
        tma.async_copy_shared_to_global(out, [place, head * DIM + cut * WIDE], query)
        tma.store_wait(0)
    else:
        if SPLITS == 1:
            zeros = gl.allocate_shared_memory(gl.bfloat16, [M, WIDE], SHARED)
            zeros.store(gl.zeros((M, WIDE), gl.bfloat16, layout=MIXED))
            fence_async_shared()
            _barrier()
            tma.async_copy_shared_to_global(out, [group * ROWS_EACH + low, head * DIM + cut * WIDE], zeros)
            tma.store_wait(0)

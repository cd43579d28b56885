"""The experts' second product on Hopper: a tile's inputs are read once and stay while weights stream past them.

It sums over few columns (704), so that a program which takes one tile of weight rows is hardly under way when it ends,
and reads the same inputs as all others. Here a program keeps its slots' whole inputs in shared memory and goes through
a share of the expert's rows, tile after tile, without a pause in its copies. The same sums in the same order as
`hopper_product`.

Owns: this loop. Refuses to know: decoding and the way out (`hopper_product`), routing.
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

from easel.engine.native.kernels.hopper_product import HopperShape, _decode, _finish, _inputs, _place

SHARED_BYTES = 227 * 1024
"""Of shared memory that a program may have."""
WAY_OUT = {8: 4096, 16: 16384}
"""Of it, what the compiler takes to turn sums around before they are stored. By warps."""


def fits(shape: HopperShape, tile: int, row_tiles: int, column_tiles: int) -> bool:
    """Whether the inputs of a tile and the weights' buffers have room, and rows come in whole programs."""
    rows = shape.warps * 16
    taken = column_tiles * tile * 128 + shape.stages * rows * (32 + 4) + WAY_OUT[shape.warps]
    return row_tiles % (rows // 128) == 0 and taken <= SHARED_BYTES


def launch(
    x: Any, words: Any, scales: Any, factors: Any, out: Any, tiles: Any, used: Any, most: int, tile: int,
    shape: HopperShape,
) -> None:  # fmt: skip
    """Start the product over at most `most` tiles of `tile` slots. `x` has the slots in order; all else as in
    `experts`."""
    row_tiles, column_tiles = words.shape[1:3]
    shares = min(shape.shares, row_tiles // (shape.warps // 8))
    streamed[(most * shares,)](
        x, words, scales, factors, out, tiles, used, row_tiles, out.shape[1], x.stride(0), out.stride(0),
        tiles.stride(0),
        WARPS=shape.warps, N=tile - shape.extra, EXTRA=shape.extra, HALVINGS=shape.halvings, STAGES=shape.stages,
        COLUMN_TILES=column_tiles, SHARES=shares, num_warps=shape.warps, maxnreg=shape.registers,
    )  # fmt: skip


@gluon.jit
def _fetch(
    word_ring, scale_ring, held, held_2, word_at, scale_at, x_at, x_at_2, step, steps, N: gl.constexpr,
    EXTRA: gl.constexpr, M: gl.constexpr, STAGES: gl.constexpr, COLUMN_TILES: gl.constexpr,
):  # fmt: skip
    """Copy what step `step` reads: its weights, and in the first pass its columns of the inputs."""
    if step < steps:
        # Tiles of the columns lie one after another, and behind them those of the next rows, M / 128 at a time.
        tile = step // COLUMN_TILES * (M // 128 * COLUMN_TILES) + step % COLUMN_TILES
        buffer = step % STAGES
        async_copy.async_copy_global_to_shared(word_ring.index(buffer), word_at + tile * 2048)
        async_copy.async_copy_global_to_shared(scale_ring.index(buffer), scale_at + tile * 128)
        if step < COLUMN_TILES:
            async_copy.async_copy_global_to_shared(held.index(step), x_at + step * 64)
            if EXTRA:
                async_copy.async_copy_global_to_shared(held_2.index(step), x_at_2 + step * 64)
    async_copy.commit_group()


@gluon.jit
def _stream(
    x, words, scales, factors, out, expert, first, end, from_part, to_part, row_tiles, out_columns, x_stride,
    out_stride, N: gl.constexpr, EXTRA: gl.constexpr, WARPS: gl.constexpr, STAGES: gl.constexpr,
    COLUMN_TILES: gl.constexpr,
):  # fmt: skip
    """WARPS / 8 row tiles at a time, by up to N + EXTRA slots."""
    M: gl.constexpr = 16 * WARPS
    MMA: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[WARPS, 1], instr_shape=[16, N, 16])
    OPERAND: gl.constexpr = gl.DotOperandLayout(0, MMA, 2)
    X_COPY: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [WARPS, 1], [1, 0])
    X_SHARED: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    WORDS_COPY: gl.constexpr = gl.BlockedLayout([1, 8], [16, 2], [WARPS, 1], [1, 0])
    WORDS_SHARED: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    SCALES_COPY: gl.constexpr = gl.BlockedLayout([1], [32], [WARPS], [0])
    SCALES_SHARED: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    PARTS: gl.constexpr = WARPS // 8
    block = (expert * row_tiles + from_part * PARTS).to(gl.int64) * COLUMN_TILES
    rows = _place(PARTS, COLUMN_TILES, M, True, gl.SliceLayout(1, WORDS_COPY))
    k = gl.arange(0, 16, layout=gl.SliceLayout(0, WORDS_COPY))
    word_at = words + block * 2048 + gl.expand_dims(rows * 16, 1) + gl.expand_dims(k, 0)
    scale_at = scales + block * 128 + _place(PARTS, COLUMN_TILES, M, True, SCALES_COPY)
    x_at = _inputs(x, x, first, end, x_stride, N, False, X_COPY)
    held = gl.allocate_shared_memory(gl.bfloat16, [COLUMN_TILES, N, 64], X_SHARED)
    if EXTRA:
        MMA_2: gl.constexpr = gl.NVMMADistributedLayout(
            version=[3, 0], warps_per_cta=[WARPS, 1], instr_shape=[16, EXTRA, 16]
        )
        x_at_2 = _inputs(x, x, first + N, end, x_stride, EXTRA, False, X_COPY)
        held_2 = gl.allocate_shared_memory(gl.bfloat16, [COLUMN_TILES, EXTRA, 64], X_SHARED)
    else:
        x_at_2, held_2 = x_at, held
    word_ring = gl.allocate_shared_memory(gl.int16, [STAGES, M, 16], WORDS_SHARED)
    scale_ring = gl.allocate_shared_memory(gl.int32, [STAGES, M], SCALES_SHARED)
    steps = (to_part - from_part) * COLUMN_TILES
    for ahead in gl.static_range(STAGES - 1):
        _fetch(word_ring, scale_ring, held, held_2, word_at, scale_at, x_at, x_at_2, ahead, steps, N, EXTRA, M, STAGES,
               COLUMN_TILES)  # fmt: skip
    async_copy.wait_group(STAGES - 2)
    weights = _decode(word_ring.index(0), scale_ring.index(0), M, OPERAND)
    before = weights
    step = from_part * 0
    for part in range(from_part, to_part):
        total = gl.zeros((M, N), gl.float32, layout=MMA)
        if EXTRA:
            total_2 = gl.zeros((M, EXTRA), gl.float32, layout=MMA_2)
        for column in range(COLUMN_TILES):
            async_copy.wait_group(STAGES - 3)
            fence_async_shared()
            total = warpgroup_mma(weights, held.index(column).permute((1, 0)), total, is_async=True)
            if EXTRA:
                total_2 = warpgroup_mma(weights, held_2.index(column).permute((1, 0)), total_2, is_async=True)
            _fetch(word_ring, scale_ring, held, held_2, word_at, scale_at, x_at, x_at_2, step + STAGES - 1, steps, N,
                   EXTRA, M, STAGES, COLUMN_TILES)  # fmt: skip
            if EXTRA:
                total, total_2, before = warpgroup_mma_wait(2, deps=[total, total_2, before])
            else:
                total, before = warpgroup_mma_wait(1, deps=[total, before])
            step += 1
            before = weights
            weights = _decode(word_ring.index(step % STAGES), scale_ring.index(step % STAGES), M, OPERAND)
        if EXTRA:
            total, total_2, before = warpgroup_mma_wait(0, deps=[total, total_2, before])
        else:
            total, before = warpgroup_mma_wait(0, deps=[total, before])
        _finish(total, factors, out, expert, first, end, part * PARTS, out_columns, out_stride, N, WARPS, False)
        if EXTRA:
            _finish(total_2, factors, out, expert, first + N, end, part * PARTS, out_columns, out_stride, EXTRA, WARPS,
                    False)  # fmt: skip
    async_copy.wait_group(0)


@gluon.jit
def _fitting(
    x, words, scales, factors, out, expert, first, end, from_part, to_part, row_tiles, out_columns, x_stride,
    out_stride, N: gl.constexpr, EXTRA: gl.constexpr, HALVINGS: gl.constexpr, WARPS: gl.constexpr,
    STAGES: gl.constexpr, COLUMN_TILES: gl.constexpr,
):  # fmt: skip
    """The narrowest product that takes all of the tile's slots."""
    if EXTRA:
        if end - first > N:
            _stream(x, words, scales, factors, out, expert, first, end, from_part, to_part, row_tiles, out_columns,
                    x_stride, out_stride, N, EXTRA, WARPS, STAGES, COLUMN_TILES)  # fmt: skip
        else:
            _fitting(x, words, scales, factors, out, expert, first, end, from_part, to_part, row_tiles, out_columns,
                     x_stride, out_stride, N, 0, HALVINGS, WARPS, STAGES, COLUMN_TILES)  # fmt: skip
    elif HALVINGS == 0:
        _stream(x, words, scales, factors, out, expert, first, end, from_part, to_part, row_tiles, out_columns,
                x_stride, out_stride, N, 0, WARPS, STAGES, COLUMN_TILES)  # fmt: skip
    else:
        if end - first > N // 2:
            _stream(x, words, scales, factors, out, expert, first, end, from_part, to_part, row_tiles, out_columns,
                    x_stride, out_stride, N, 0, WARPS, STAGES, COLUMN_TILES)  # fmt: skip
        else:
            _fitting(x, words, scales, factors, out, expert, first, end, from_part, to_part, row_tiles, out_columns,
                     x_stride, out_stride, N // 2, 0, HALVINGS - 1, WARPS, STAGES, COLUMN_TILES)  # fmt: skip


@gluon.jit
def streamed(
    x, words, scales, factors, out, tiles, used, row_tiles, out_columns, x_stride, out_stride, tiles_stride,
    WARPS: gl.constexpr, N: gl.constexpr, EXTRA: gl.constexpr, HALVINGS: gl.constexpr, STAGES: gl.constexpr,
    COLUMN_TILES: gl.constexpr, SHARES: gl.constexpr,
):  # fmt: skip
    """A share of an expert's rows by up to N + EXTRA slots. Grid: tiles of slots, shares."""
    tile = gl.program_id(0) // SHARES
    share = gl.program_id(0) % SHARES
    if tile < gl.load(used):
        first = gl.load(tiles + tiles_stride + tile)
        end = gl.load(tiles + 2 * tiles_stride + tile)
        if first < end:
            parts = row_tiles // (WARPS // 8)
            _fitting(
                x, words, scales, factors, out, gl.load(tiles + tile), first, end, share * parts // SHARES,
                (share + 1) * parts // SHARES, row_tiles, out_columns, x_stride, out_stride, N, EXTRA, HALVINGS, WARPS,
                STAGES, COLUMN_TILES,
            )  # fmt: skip

"""The grouped product of the routed experts on Hopper: a tile is decoded while the one before it is multiplied.

The same sums as `experts._grouped`, in the same tiles and order of columns, written in Gluon, because Triton waits for
every product whose operand is in registers before it goes on. Here a step starts the product of one tile of 64
columns, waits for the one before it, and decodes the next; copies run two steps ahead. Rows of a product alternate
between the halves of a tile, eight and eight, so that a gate and its up lie in one thread.

Owns: this product, and the shapes in which it is run. Refuses to know: routing, and what other GPUs do (`experts`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from easel.engine.native.kernels.packing import SCALE_BIAS

_BIAS = gl.constexpr(SCALE_BIAS | SCALE_BIAS << 16)


@dataclass(frozen=True, slots=True)
class HopperShape:
    """How one product is run."""

    warps: int
    """8 for tiles of 128 rows, 16 for two tiles side by side, which reads inputs half as often."""
    registers: int
    """At most so many a thread: what decides how many programs a multiprocessor holds."""
    halvings: int
    """How often the width of the product may be halved where a tile has few slots."""
    extra: int = 0
    """Width of a second product with the same weights, where a tile has more slots than the first one takes."""
    stages: int = 4
    """Buffers of a program: copies run two steps ahead with four. The loop is written out for as many."""
    width: int = 0
    """Slots that a program takes, where that is not all of a tile's."""


def launch(
    x: Any, words: Any, scales: Any, factors: Any, out: Any, slot_row: Any, tiles: Any, used: Any, most: int,
    tile: int, shape: HopperShape, gated: bool,
) -> None:  # fmt: skip
    """Start the product over at most `most` tiles of `tile` slots, all else as in `experts`.

    A program's slots are a power of two from 32, and `shape.extra`; a tile has them once, or a whole number of times.
    """
    row_tiles, column_tiles = words.shape[1:3]
    parts, width = shape.warps // 8, shape.width or tile
    grouped[(most * -(-row_tiles // parts) * (tile // width),)](
        x, words, scales, factors, out, slot_row, tiles, used,
        row_tiles, column_tiles, out.shape[1], x.stride(0), out.stride(0), tiles.stride(0),
        WARPS=shape.warps, GATED=gated, WHOLE=row_tiles % parts == 0, N=width - shape.extra, EXTRA=shape.extra,
        PER_TILE=tile // width, HALVINGS=shape.halvings, STAGES=shape.stages, TAIL=column_tiles % shape.stages,
        num_warps=shape.warps, maxnreg=shape.registers,
    )  # fmt: skip


@gluon.jit
def _piece(words, scales, J: gl.constexpr):
    """Columns 16 J to 16 J + 15 of a tile: codes times group scales, times 2^-7. bf16."""
    scale = ((scales >> (8 * J)) & 0xFF) * 0x00100010 + _BIAS
    words, scale = gl.broadcast(words, gl.expand_dims(scale, 1))
    if J == 0:
        return gl.inline_asm_elementwise(
            "{ .reg .b32 t; and.b32 t, $1, 0x81C081C0; mul.rn.bf16x2 $0, t, $2; }",
            "=r,r,r,r", [words, scale], dtype=gl.bfloat16, is_pure=True, pack=2,
        )  # fmt: skip
    elif J == 1:  # noqa: RET505 - branches of a constant: only one is compiled
        return gl.inline_asm_elementwise(
            "{ .reg .b32 t; shl.b32 t, $1, 3; and.b32 t, t, 0x81C081C0; mul.rn.bf16x2 $0, t, $2; }",
            "=r,r,r,r", [words, scale], dtype=gl.bfloat16, is_pure=True, pack=2,
        )  # fmt: skip
    elif J == 2:
        # One multiplication shifts magnitude and sign by what each needs; what else it makes is masked away.
        return gl.inline_asm_elementwise(
            "{ .reg .b32 t; and.b32 t, $1, 0x20072007; mul.lo.u32 t, t, 68;"
            " and.b32 t, t, 0x81C081C0; mul.rn.bf16x2 $0, t, $2; }",
            "=r,r,r,r", [words, scale], dtype=gl.bfloat16, is_pure=True, pack=2,
        )  # fmt: skip
    else:
        return gl.inline_asm_elementwise(
            "{ .reg .b32 t; shr.b32 t, $1, 3; and.b32 t, t, 0x09C009C0; mul.lo.u32 t, t, 17;"
            " and.b32 t, t, 0x81C081C0; mul.rn.bf16x2 $0, t, $2; }",
            "=r,r,r,r", [words, scale], dtype=gl.bfloat16, is_pure=True, pack=2,
        )  # fmt: skip


@gluon.jit
def _decode(words, scales, M: gl.constexpr, OPERAND: gl.constexpr):
    """A tile in shared memory as bf16 [M, 64] in registers."""
    words = words.load(OPERAND)
    scales = scales.load(gl.SliceLayout(1, OPERAND))
    low = gl.join(_piece(words, scales, 0), _piece(words, scales, 1))
    high = gl.join(_piece(words, scales, 2), _piece(words, scales, 3))
    together = gl.permute(gl.join(low, high), (0, 3, 2, 1))
    return gl.convert_layout(gl.reshape(together, (M, 64)), OPERAND, assert_trivial=True)


@gluon.jit
def _place(parts, column_tiles, M: gl.constexpr, WHOLE: gl.constexpr, LAYOUT: gl.constexpr):
    """Where the product's rows lie, in rows, from the program's first tile on. There are `parts` tiles from it on."""
    r = gl.arange(0, M, layout=LAYOUT)
    index = r // 16 * 8 + r % 8
    part = index // 64
    if not WHOLE:
        part = gl.where(part < parts, part, 0)
    return part * (column_tiles * 128) + r // 8 % 2 * 64 + index % 64


@gluon.jit
def _step(
    total, total_2, weights, before, x_ring, x_ring_2, word_ring, scale_ring, x_at, x_at_2, word_at, scale_at, step,
    last, U: gl.constexpr, M: gl.constexpr, EXTRA: gl.constexpr, STAGES: gl.constexpr, OPERAND: gl.constexpr,
):  # fmt: skip
    """Multiply tile `step`, whose buffer is U, and decode the next. `before` are weights that are still being read."""
    async_copy.wait_group(STAGES - 3)
    fence_async_shared()
    total = warpgroup_mma(weights, x_ring[U].permute((1, 0)), total, is_async=True)
    if EXTRA:
        total_2 = warpgroup_mma(weights, x_ring_2[U].permute((1, 0)), total_2, is_async=True)
    soon = gl.minimum(step + STAGES - 2, last) * 64
    async_copy.async_copy_global_to_shared(x_ring[(U + STAGES - 2) % STAGES], x_at + soon)
    if EXTRA:
        async_copy.async_copy_global_to_shared(x_ring_2[(U + STAGES - 2) % STAGES], x_at_2 + soon)
    ahead = gl.minimum(step + STAGES - 1, last)
    async_copy.async_copy_global_to_shared(word_ring[(U + STAGES - 1) % STAGES], word_at + ahead * 2048)
    async_copy.async_copy_global_to_shared(scale_ring[(U + STAGES - 1) % STAGES], scale_at + ahead * 128)
    async_copy.commit_group()
    if EXTRA:
        total, total_2, before = warpgroup_mma_wait(2, deps=[total, total_2, before])
    else:
        total, before = warpgroup_mma_wait(1, deps=[total, before])
    after = _decode(word_ring[(U + 1) % STAGES], scale_ring[(U + 1) % STAGES], M, OPERAND)
    return total, total_2, after, weights


@gluon.jit
def _tile(
    x, words, scales, factors, out, slot_row, expert, first, end, part,
    row_tiles, column_tiles, out_columns, x_stride, out_stride,
    N: gl.constexpr, EXTRA: gl.constexpr, WARPS: gl.constexpr, GATED: gl.constexpr, WHOLE: gl.constexpr,
    STAGES: gl.constexpr, TAIL: gl.constexpr,
):  # fmt: skip
    """All columns of WARPS * 16 weight rows by up to N + EXTRA slots."""
    M: gl.constexpr = 16 * WARPS
    MMA: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[WARPS, 1], instr_shape=[16, N, 16])
    OPERAND: gl.constexpr = gl.DotOperandLayout(0, MMA, 2)
    X_COPY: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [WARPS, 1], [1, 0])
    X_SHARED: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    WORDS_COPY: gl.constexpr = gl.BlockedLayout([1, 8], [16, 2], [WARPS, 1], [1, 0])
    WORDS_SHARED: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    SCALES_COPY: gl.constexpr = gl.BlockedLayout([1], [32], [WARPS], [0])
    SCALES_SHARED: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    last = column_tiles - 1
    parts = row_tiles - part
    block = (expert * row_tiles + part).to(gl.int64) * column_tiles
    rows = _place(parts, column_tiles, M, WHOLE, gl.SliceLayout(1, WORDS_COPY))
    k = gl.arange(0, 16, layout=gl.SliceLayout(0, WORDS_COPY))
    word_at = words + block * 2048 + gl.expand_dims(rows * 16, 1) + gl.expand_dims(k, 0)
    scale_at = scales + block * 128 + _place(parts, column_tiles, M, WHOLE, SCALES_COPY)
    x_at = _inputs(x, slot_row, first, end, x_stride, N, GATED, X_COPY)
    x_ring = _ring(gl.bfloat16, [N, 64], X_SHARED, STAGES)
    total = gl.zeros((M, N), gl.float32, layout=MMA)
    if EXTRA:
        MMA_2: gl.constexpr = gl.NVMMADistributedLayout(
            version=[3, 0], warps_per_cta=[WARPS, 1], instr_shape=[16, EXTRA, 16]
        )
        x_at_2 = _inputs(x, slot_row, first + N, end, x_stride, EXTRA, GATED, X_COPY)
        x_ring_2 = _ring(gl.bfloat16, [EXTRA, 64], X_SHARED, STAGES)
        total_2 = gl.zeros((M, EXTRA), gl.float32, layout=MMA_2)
    else:
        x_at_2, x_ring_2, total_2 = x_at, x_ring, total
    word_ring = _ring(gl.int16, [M, 16], WORDS_SHARED, STAGES)
    scale_ring = _ring(gl.int32, [M], SCALES_SHARED, STAGES)

    async_copy.async_copy_global_to_shared(word_ring[0], word_at)
    async_copy.async_copy_global_to_shared(scale_ring[0], scale_at)
    async_copy.commit_group()
    for s in gl.static_range(STAGES - 2):
        async_copy.async_copy_global_to_shared(x_ring[s], x_at + gl.minimum(s, last) * 64)
        if EXTRA:
            async_copy.async_copy_global_to_shared(x_ring_2[s], x_at_2 + gl.minimum(s, last) * 64)
        async_copy.async_copy_global_to_shared(word_ring[s + 1], word_at + gl.minimum(s + 1, last) * 2048)
        async_copy.async_copy_global_to_shared(scale_ring[s + 1], scale_at + gl.minimum(s + 1, last) * 128)
        async_copy.commit_group()
    async_copy.wait_group(STAGES - 2)
    weights = _decode(word_ring[0], scale_ring[0], M, OPERAND)
    before = weights
    for start in range(0, column_tiles - TAIL, STAGES):
        for u in gl.static_range(STAGES):
            total, total_2, weights, before = _step(
                total, total_2, weights, before, x_ring, x_ring_2, word_ring, scale_ring, x_at, x_at_2, word_at,
                scale_at, start + u, last, u, M, EXTRA, STAGES, OPERAND,
            )  # fmt: skip
    for u in gl.static_range(TAIL):
        total, total_2, weights, before = _step(
            total, total_2, weights, before, x_ring, x_ring_2, word_ring, scale_ring, x_at, x_at_2, word_at, scale_at,
            column_tiles - TAIL + u, last, u, M, EXTRA, STAGES, OPERAND,
        )  # fmt: skip
    if EXTRA:
        total, total_2 = warpgroup_mma_wait(0, deps=[total, total_2])
    else:
        total = warpgroup_mma_wait(0, deps=[total])
    async_copy.wait_group(0)

    _finish(total, factors, out, expert, first, end, part, out_columns, out_stride, N, WARPS, GATED)
    if EXTRA:
        _finish(total_2, factors, out, expert, first + N, end, part, out_columns, out_stride, EXTRA, WARPS, GATED)


@gluon.jit
def _ring(TYPE: gl.constexpr, SHAPE: gl.constexpr, LAYOUT: gl.constexpr, STAGES: gl.constexpr):
    """Buffers of their own, not one of several parts: so the compiler sees which of them a step touches."""
    buffers = ()
    for _ in gl.static_range(STAGES):
        buffers = buffers + (gl.allocate_shared_memory(TYPE, SHAPE, LAYOUT),)  # type: ignore[assignment]  # noqa: RUF005
    return buffers


@gluon.jit
def _inputs(
    x, slot_row, first, end, x_stride, N: gl.constexpr, GATED: gl.constexpr, X_COPY: gl.constexpr,
):  # fmt: skip
    """Where the first 64 columns of the slots `first` to `first + N` lie."""
    # Slots past the end repeat the last one: what comes of them is not stored.
    slot = gl.minimum(first + gl.arange(0, N, layout=gl.SliceLayout(1, X_COPY)), end - 1)
    row = gl.load(slot_row + slot) if GATED else slot
    column = gl.arange(0, 64, layout=gl.SliceLayout(0, X_COPY))
    return x + gl.expand_dims(row.to(gl.int64) * x_stride, 1) + gl.expand_dims(column, 0)


@gluon.jit
def _finish(
    total, factors, out, expert, first, end, part, out_columns, out_stride,
    N: gl.constexpr, WARPS: gl.constexpr, GATED: gl.constexpr,
):  # fmt: skip
    """Factors, the gate, and the way out."""
    M: gl.constexpr = 16 * WARPS
    # [16 rows, 16 rows, ...] -> both halves of a tile, each [M / 2, N], in the same order.
    one, two = gl.split(gl.permute(gl.reshape(total, (WARPS, 2, 8, N)), (0, 2, 3, 1)))
    one = gl.reshape(one, (M // 2, N)) * gl.load(factors + expert * 2)
    two = gl.reshape(two, (M // 2, N)) * gl.load(factors + expert * 2 + 1)
    OUT: gl.constexpr = gl.BlockedLayout([8, 1], [8, 4], [1, WARPS], [0, 1])
    at = gl.arange(0, M // 2, layout=gl.SliceLayout(1, OUT))
    slot = first + gl.arange(0, N, layout=gl.SliceLayout(0, OUT))
    out_at = out + gl.expand_dims(slot.to(gl.int64) * out_stride, 0)
    live = gl.expand_dims(slot < end, 0)
    if GATED:
        # gelu by tanh: 0.5 x (1 + tanh y) = x sigmoid(2 y)
        inner = 1.5957691216057308 * one * (1.0 + 0.044715 * one * one)
        one = one / (1.0 + gl.exp(-gl.maximum(inner, -80.0))) * two
        where = part * 64 + at
    else:
        where = part * 128 + at // 64 * 128 + at % 64
    inside = live & gl.expand_dims(where < out_columns, 1)
    gl.store(out_at + gl.expand_dims(where, 1), gl.convert_layout(one.to(gl.bfloat16), OUT), mask=inside)
    if not GATED:
        where += 64
        inside = live & gl.expand_dims(where < out_columns, 1)
        gl.store(out_at + gl.expand_dims(where, 1), gl.convert_layout(two.to(gl.bfloat16), OUT), mask=inside)


@gluon.jit
def _fitting(
    x, words, scales, factors, out, slot_row, expert, first, end, part,
    row_tiles, column_tiles, out_columns, x_stride, out_stride,
    N: gl.constexpr, EXTRA: gl.constexpr, HALVINGS: gl.constexpr, WARPS: gl.constexpr, GATED: gl.constexpr,
    WHOLE: gl.constexpr, STAGES: gl.constexpr, TAIL: gl.constexpr,
):  # fmt: skip
    """The narrowest product that takes all of the tile's slots."""
    if EXTRA:
        if end - first > N:
            _tile(x, words, scales, factors, out, slot_row, expert, first, end, part, row_tiles, column_tiles,
                  out_columns, x_stride, out_stride, N, EXTRA, WARPS, GATED, WHOLE, STAGES, TAIL)  # fmt: skip
        else:
            _fitting(x, words, scales, factors, out, slot_row, expert, first, end, part, row_tiles, column_tiles,
                     out_columns, x_stride, out_stride, N, 0, HALVINGS, WARPS, GATED, WHOLE, STAGES, TAIL)  # fmt: skip
    elif HALVINGS == 0:
        _tile(x, words, scales, factors, out, slot_row, expert, first, end, part, row_tiles, column_tiles,
              out_columns, x_stride, out_stride, N, 0, WARPS, GATED, WHOLE, STAGES, TAIL)  # fmt: skip
    else:
        if end - first > N // 2:
            _tile(x, words, scales, factors, out, slot_row, expert, first, end, part, row_tiles, column_tiles,
                  out_columns, x_stride, out_stride, N, 0, WARPS, GATED, WHOLE, STAGES, TAIL)  # fmt: skip
        else:
            _fitting(x, words, scales, factors, out, slot_row, expert, first, end, part, row_tiles, column_tiles,
                     out_columns, x_stride, out_stride, N // 2, 0, HALVINGS - 1, WARPS, GATED, WHOLE, STAGES,
                     TAIL)  # fmt: skip


@gluon.jit
def grouped(
    x, words, scales, factors, out, slot_row, tiles, used,
    row_tiles, column_tiles, out_columns, x_stride, out_stride, tiles_stride,
    WARPS: gl.constexpr, GATED: gl.constexpr, WHOLE: gl.constexpr, N: gl.constexpr, EXTRA: gl.constexpr,
    PER_TILE: gl.constexpr, HALVINGS: gl.constexpr, STAGES: gl.constexpr, TAIL: gl.constexpr,
):  # fmt: skip
    """WARPS / 8 tiles of 128 weight rows by up to N + EXTRA slots. Grid: tiles of slots, their parts, tiles of rows."""
    PARTS: gl.constexpr = WARPS // 8
    programs = (row_tiles + PARTS - 1) // PARTS
    tile = gl.program_id(0) // (programs * PER_TILE)
    mine = gl.program_id(0) % (programs * PER_TILE)
    if tile < gl.load(used):
        first = gl.load(tiles + tiles_stride + tile) + mine // programs * (N + EXTRA)
        end = gl.load(tiles + 2 * tiles_stride + tile)
        if first < end:
            _fitting(
                x, words, scales, factors, out, slot_row, gl.load(tiles + tile), first, end, mine % programs * PARTS,
                row_tiles, column_tiles, out_columns, x_stride, out_stride, N, EXTRA, HALVINGS, WARPS, GATED, WHOLE,
                STAGES, TAIL,
            )  # fmt: skip

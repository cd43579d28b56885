"""The mean embedding under each row's chances: masses times embedding over their sum, times sqrt(hidden).

The vocabulary is the inner dimension, so it is cut in SPLITS pieces to fill the GPU at one canvas; pieces are added up
in their order. A row's sum is the same whatever else is computed beside it.

Owns: this product. Refuses to know: how masses came about (`head`) and what the result conditions.
"""

from __future__ import annotations

import triton
import triton.language as tl

from easel.engine.native.kernels.head import ROWS, live_canvases

SPLITS = 6
"""At 2,816 columns a canvas has 22 tiles of 128 x 256: six pieces make 132, one for every multiprocessor of an H100."""


@triton.jit(do_not_specialize=["first", "most"])
def soft_tiles(masses, embedding, partials, count, first, most, depth, HIDDEN: tl.constexpr, SPLITS: tl.constexpr,
               M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
               FLATTEN: tl.constexpr, WIDE: tl.constexpr):  # fmt: skip
    """`partials` fp32 [SPLITS, most * ROWS, HIDDEN]: products of each piece of the vocabulary.

    `masses` and `embedding` are tensor descriptors with blocks [M, K] and [K, N]; `depth`: blocks of K in all.
    """
    COLUMNS: tl.constexpr = (HIDDEN + N - 1) // N
    blocks = live_canvases(count, first, most) * (ROWS // M)
    each = tl.cdiv(depth, SPLITS)
    for tile in tl.range(tl.program_id(0), blocks * COLUMNS * SPLITS, tl.num_programs(0), flatten=FLATTEN):
        column, block = tile % COLUMNS, tile // COLUMNS % blocks
        piece = tile // COLUMNS // blocks
        total = tl.zeros((M, N), dtype=tl.float32)
        for k in range(piece * each, tl.minimum((piece + 1) * each, depth)):
            left = masses.load([block * M, k * K])
            right = embedding.load([k * K, column * N])
            if WIDE:  # the interpreter knows no product of bf16
                left, right = left.to(tl.float32), right.to(tl.float32)
            total = tl.dot(left, right, total)
        rows = piece * (most * ROWS) + block * M + tl.arange(0, M)
        columns = column * N + tl.arange(0, N)
        place = partials + rows.to(tl.int64)[:, None] * HIDDEN + columns[None, :]
        tl.store(place, total, mask=(columns < HIDDEN)[None, :])


@triton.jit(do_not_specialize=["first", "most"])
def add_pieces(partials, norms, soft, slots, count, first, most, scale, HIDDEN: tl.constexpr, SPLITS: tl.constexpr,
               BLOCK: tl.constexpr):  # fmt: skip
    """`soft` bf16 [canvases * ROWS, HIDDEN] from the pieces. Grid (most * ROWS,)."""
    row = tl.program_id(0)
    if row // ROWS >= live_canvases(count, first, most):
        return
    target = tl.load(slots + first + row // ROWS) * ROWS + row % ROWS
    columns = tl.arange(0, BLOCK)
    inside = columns < HIDDEN
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for piece in tl.static_range(SPLITS):
        place = (piece * (most * ROWS) + row).to(tl.int64) * HIDDEN
        total += tl.load(partials + place + columns, mask=inside, other=0.0)
    result = total * tl.load(norms + target) * scale
    tl.store(soft + target.to(tl.int64) * HIDDEN + columns, result.to(tl.bfloat16), mask=inside)

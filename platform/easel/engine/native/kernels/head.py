"""The vocabulary head: hidden states times embedding, soft-capped, and what a softmax over it needs, in one kernel.

A tile of logits lives in the matrix unit's fp32 accumulators and nowhere else. What leaves it, for a row and a tile:
the largest z, the sum of e = 2**(z - largest), the sum of e * (z - largest), the first place of the largest; and each
token's mass 2**(z - ceiling + HEADROOM) in bf16, where `ceiling` is the most that z can be on this row. z is
(softcap(logit) + bias) / T_n * log2(e): everything is in powers of two.

One ceiling for a whole row makes its masses a plain matrix operand: the soft embedding is their product with the
embedding over their sum. The cap makes one ceiling possible: on a row z lies within 2 * softcap / T_n of it (the
token of the largest bias is itself allowed), which is at most 2**218 (`Controls` refuses colder schedules), and bf16
spans 2**-126 to 2**127. HEADROOM puts the span in the middle, with room above for sums.

Owns: logits and masses. Refuses to know: what is drawn from them, and what is made of them (`soft_embedding`).
"""

from __future__ import annotations

import triton
import triton.language as tl

from easel.engine.native.kernels.controls import (
    ACTIVE,
    BIAS_TOKENS,
    BIAS_VALUES,
    BIASED,
    CANVAS,
    EARLY,
    INVERSE_TEMPERATURE,
    PINNED,
    PINS,
    STOP_TOKENS,
    STOPS,
    WORDS,
)

ROWS = tl.constexpr(CANVAS)
HEADROOM = tl.constexpr(104.0)
LOG2E = tl.constexpr(1.4426950408889634)
NEVER = tl.constexpr(-1e30)
"""z of a token that must not be. Its mass is 0 and adds nothing; infinity would make NaN of 0 * infinity."""


@triton.jit
def reciprocal(x, INTERPRETED: tl.constexpr):
    """1 / x for x from 1 to infinity, to the last bit or two: one instruction, where a division takes several."""
    if INTERPRETED:
        return 1.0 / x
    return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def number(controls, canvas, word):
    """The fp32 word `word` of a canvas's row of controls."""
    return tl.load(controls + canvas * WORDS + word).to(tl.float32, bitcast=True)


@triton.jit
def live_canvases(count, first, most):
    """How many of the slots `first` to `first + most` hold a canvas."""
    return tl.minimum(tl.maximum(tl.load(count) - first, 0), most)


@triton.jit
def ceiling_of(ceilings, controls, canvas, position, canvases):
    """The most that z can be at `position` (a block or a scalar) of `canvas`."""
    early = position < tl.load(controls + canvas * WORDS + EARLY)
    ceiling = tl.where(early, tl.load(ceilings + canvases + canvas), tl.load(ceilings + canvas))
    return tl.where(tl.load(controls + canvas * WORDS + PINNED + position) >= 0, 0.0, ceiling)


@triton.jit
def fill_offsets(controls, banned, late, early, softcap, vocab, width, BLOCK: tl.constexpr):
    """What is added to every canvas's z, before its own biases: the cap, or NEVER for what must not be.

    `banned` fp32 [vocab] is 0 or NEVER; `late` and `early` fp32 [canvases, width] are written. Grid (canvases, blocks).
    """
    canvas, columns = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if tl.load(controls + canvas * WORDS + ACTIVE) == 0:
        return
    cap = softcap * (number(controls, canvas, INVERSE_TEMPERATURE) * LOG2E)
    allowed = tl.load(banned + columns, mask=columns < vocab, other=NEVER)
    offsets = tl.where(allowed == 0.0, cap, NEVER)
    tl.store(late + canvas * width + columns, offsets, mask=columns < width)
    if tl.load(controls + canvas * WORDS + EARLY) > 0:
        tl.store(early + canvas * width + columns, offsets, mask=columns < width)


@triton.jit(do_not_specialize=["canvases"])
def add_biases(controls, banned, late, early, ceilings, slots, count, softcap, width, canvases,
               PAIRS: tl.constexpr, TOKENS: tl.constexpr):  # fmt: skip
    """Each canvas's biases and stops into its offsets, its ceilings [2, canvases], and its slot. Grid (canvases,).

    `slots` int32 lists the active canvases, `count` says how many there are.
    """
    canvas = tl.program_id(0)
    before = 0
    for other in range(canvases):
        active = tl.load(controls + other * WORDS + ACTIVE)
        before += tl.where(other < canvas, active, 0)
    mine = tl.load(controls + canvas * WORDS + ACTIVE)
    if canvas == canvases - 1:
        tl.store(count, before + mine)
    if mine == 0:
        return
    tl.store(slots + before, canvas)
    scale = number(controls, canvas, INVERSE_TEMPERATURE) * LOG2E
    cap = softcap * scale
    pair = tl.arange(0, PAIRS)
    given = pair < tl.load(controls + canvas * WORDS + BIASED)
    tokens = tl.load(controls + canvas * WORDS + BIAS_TOKENS + pair, mask=given, other=0)
    values = tl.load(controls + canvas * WORDS + BIAS_VALUES + pair, mask=given, other=0).to(tl.float32, bitcast=True)
    allowed = tl.load(banned + tokens, mask=given, other=NEVER)
    offsets = tl.where(allowed == 0.0, cap + values * scale, NEVER)
    tl.store(late + canvas * width + tokens, offsets, mask=given)
    tl.store(ceilings + canvas, tl.maximum(tl.max(tl.where(given, offsets, NEVER)), cap))
    if tl.load(controls + canvas * WORDS + EARLY) > 0:
        tl.store(early + canvas * width + tokens, offsets, mask=given)
        tl.debug_barrier()
        stop = tl.arange(0, TOKENS)
        stopping = stop < tl.load(controls + canvas * WORDS + STOPS)
        stops = tl.load(controls + canvas * WORDS + STOP_TOKENS + stop, mask=stopping, other=0)
        tl.store(early + canvas * width + stops, tl.full([TOKENS], NEVER, tl.float32), mask=stopping)
        tl.debug_barrier()
        left = tl.load(early + canvas * width + tokens, mask=given, other=NEVER)
        tl.store(ceilings + canvases + canvas, tl.maximum(tl.max(left), cap))


@triton.jit(do_not_specialize=["first", "most", "canvases"])
def head_tiles(hidden, embedding, masses, largest, sums, spreads, places, late, early, ceilings, controls, slots, count,
               first, most, canvases, softcap, steepness, width, tiles, HIDDEN: tl.constexpr,
               M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
               FLATTEN: tl.constexpr, WIDE: tl.constexpr):  # fmt: skip
    """Logits of the canvases in slots `first` to `first + most`, tile by tile, by as many programs as there are.

    `hidden` and `embedding` are tensor descriptors with blocks [M, K] and [N, K]. Written, by slot from `first`:
    `masses` bf16 [most * ROWS, width]; `largest`, `sums`, `spreads` fp32 and `places` int32 [most * ROWS, tiles].
    """
    blocks = live_canvases(count, first, most) * (ROWS // M)
    for tile in tl.range(tl.program_id(0), blocks * tiles, tl.num_programs(0), flatten=FLATTEN):
        # Blocks of rows side by side: programs at work at the same time share the embedding's tiles.
        column, block = tile // blocks, tile % blocks
        canvas = tl.load(slots + first + block // (ROWS // M))
        start = block % (ROWS // M) * M
        depth = 2.0 * softcap * (number(controls, canvas, INVERSE_TEMPERATURE) * LOG2E)
        early_positions = tl.load(controls + canvas * WORDS + EARLY)
        pins = tl.load(controls + canvas * WORDS + PINS)
        logits = tl.zeros((M, N), dtype=tl.float32)
        for k in range(0, HIDDEN, K):
            left = hidden.load([canvas * ROWS + start, k])
            right = embedding.load([column * N, k])
            if WIDE:  # the interpreter knows no product of bf16
                left, right = left.to(tl.float32), right.to(tl.float32)
            logits = tl.dot(left, right.T, logits)
        columns = column * N + tl.arange(0, N)
        positions = start + tl.arange(0, M)
        offsets = tl.load(late + canvas * width + columns)
        # cap * tanh(x / cap) = cap - 2 * cap / (1 + 2**(x * steepness)); the offsets hold the first term.
        fall = reciprocal(1.0 + tl.exp2(logits * steepness), WIDE)
        z = offsets[None, :] - depth * fall
        if early_positions > start:
            stopped = tl.load(early + canvas * width + columns) == NEVER
            z = tl.where(stopped[None, :] & (positions < early_positions)[:, None], NEVER, z)
        if pins > 0:
            pinned = tl.load(controls + canvas * WORDS + PINNED + positions)
            only = tl.where(columns[None, :] == pinned[:, None], 0.0, NEVER)
            z = tl.where((pinned >= 0)[:, None], only, z)
        peak = tl.max(z, axis=1)
        below = z - peak[:, None]
        # In a tile where nothing may be these are 1; next to any other tile its weight is 0.
        chances = tl.exp2(below)
        rows = block * M + tl.arange(0, M)
        cell = rows * tiles + column
        tl.store(largest + cell, peak)
        tl.store(sums + cell, tl.sum(chances, axis=1))
        tl.store(spreads + cell, tl.sum(chances * below, axis=1))
        tl.store(places + cell, tl.min(tl.where(z == peak[:, None], columns[None, :], 0x7FFFFFFF), axis=1))
        ceiling = ceiling_of(ceilings, controls, canvas, positions, canvases)
        stored = chances * tl.exp2(peak - ceiling + HEADROOM)[:, None]
        place = masses + rows.to(tl.int64)[:, None] * width + columns[None, :]
        tl.store(place, stored.to(tl.bfloat16))

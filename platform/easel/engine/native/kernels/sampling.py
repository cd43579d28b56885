"""From a head's tiles to the next canvas: `sampler.denoise` for a GPU, one row or one canvas a program.

Owns: statistics of a row from its tiles, acceptance, and the draw that narrows nothing. Refuses to know: logits
(`head`), what top_k, top_p and min_p leave (`narrowing`), and graphs.

A draw inverts the cumulative distribution at one uniform number, in the order of token ids, as `sampler.draw` does: the
tile by the tiles' masses, then the token by the masses within it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from easel.engine.native.kernels.controls import (
    CANVAS_INDEX,
    CHOICE,
    DRAW_TEMPERATURE,
    ENTROPY_BOUND,
    FRESH,
    LENGTH,
    MIN_P,
    PINNED,
    SEED_HIGH,
    SEED_LOW,
    STEP,
    TOP_K,
    TOP_P,
    WORDS,
)
from easel.engine.native.kernels.head import HEADROOM, ROWS, ceiling_of, live_canvases, number
from easel.engine.native.kernels.narrowing import draw_narrowed
from easel.engine.native.kernels.philox import philox_words

LN2 = tl.constexpr(0.6931471805599453)


@triton.jit(do_not_specialize=["first", "most", "canvases"])
def sum_up_rows(largest, sums, spreads, places, ceilings, controls, slots, count, first, most, canvases, tiles,
                argmax, entropy, logsumexp, chosen, norms, peaks, TILES: tl.constexpr):  # fmt: skip
    """A row's argmax, entropy, logsumexp and log-probability of the argmax (nats), all [canvases * ROWS].

    `norms` turns a row's masses into chances; `peaks` is log2 of its best token's mass. Grid (most * ROWS,).
    """
    row = tl.program_id(0)
    if row // ROWS >= live_canvases(count, first, most):
        return
    canvas, position = tl.load(slots + first + row // ROWS), row % ROWS
    target = canvas * ROWS + position
    tile = tl.arange(0, TILES)
    cell, inside = row * tiles + tile, tile < tiles
    tops = tl.load(largest + cell, mask=inside, other=float("-inf"))
    best = tl.max(tops)
    place = tl.load(places + cell, mask=inside, other=0x7FFFFFFF)
    tl.store(argmax + target, tl.min(tl.where(tops == best, place, 0x7FFFFFFF)))
    fall = tl.maximum(tops - best, -400.0)
    shares = tl.load(sums + cell, mask=inside, other=0.0)
    scale = tl.exp2(fall)
    total = tl.sum(shares * scale)
    spread = tl.sum((tl.load(spreads + cell, mask=inside, other=0.0) + shares * fall) * scale)
    log_total = tl.log2(total)
    tl.store(entropy + target, tl.maximum((log_total - spread / total) * LN2, 0.0))
    tl.store(logsumexp + target, (best + log_total) * LN2)
    tl.store(chosen + target, log_total * -LN2)
    peak = best - ceiling_of(ceilings, controls, canvas, position, canvases) + HEADROOM
    tl.store(peaks + target, peak)
    tl.store(norms + target, tl.exp2(-peak) / total)


@triton.jit(do_not_specialize=["first", "most"])
def accept_positions(entropy, argmax, previous, accepted, mean_entropy, unchanged, controls, slots, count, first, most,
                     BLOCK: tl.constexpr):  # fmt: skip
    """Which positions of each canvas to accept, int32 [canvases * ROWS]; its mean entropy fp32 [canvases]; whether its
    argmax is what it was at the last step, int32 [canvases]. `previous` becomes `argmax`. Grid (most,)."""
    if tl.program_id(0) >= live_canvases(count, first, most):
        return
    canvas = tl.load(slots + first + tl.program_id(0))
    row, position = canvas * ROWS, tl.arange(0, ROWS)
    length = tl.load(controls + canvas * WORDS + LENGTH)
    inside = position < length
    own = tl.load(entropy + row + position, mask=inside, other=float("inf"))
    # The sum of those that a stable sort puts before each: no sort is needed for 256.
    before = tl.zeros((ROWS,), dtype=tl.float32)
    for start in tl.static_range(0, ROWS, BLOCK):
        other = start + tl.arange(0, BLOCK)
        value = tl.load(entropy + row + other, mask=other < length, other=float("inf"))
        first_one = (value[None, :] < own[:, None]) | (
            (value[None, :] == own[:, None]) & (other[None, :] < position[:, None])
        )
        before += tl.sum(tl.where(first_one & (other < length)[None, :], value[None, :], 0.0), axis=1)
    fits = inside & (before <= number(controls, canvas, ENTROPY_BOUND))
    tl.store(accepted + row + position, fits.to(tl.int32))
    tl.store(mean_entropy + canvas, tl.sum(tl.where(inside, own, 0.0)) / length)
    best = tl.load(argmax + row + position)
    changed = tl.sum((inside & (best != tl.load(previous + row + position))).to(tl.int32))
    same = (changed == 0) & (tl.load(controls + canvas * WORDS + FRESH) == 0)
    tl.store(unchanged + canvas, same.to(tl.int32))
    tl.store(previous + row + position, best)


@triton.jit(do_not_specialize=["first", "most"])
def draw_tokens(masses, largest, sums, argmax, accepted, peaks, drawn, controls, slots, count, first, most,
                vocab, width, tiles, N: tl.constexpr, TILES: tl.constexpr, TOGETHER: tl.constexpr):  # fmt: skip
    """The next canvases, int32 [canvases * ROWS]: draws where accepted, random tokens elsewhere, pins over both.

    `masses` are given as int16, which has their order. Grid (most * ROWS,).
    """
    row = tl.program_id(0)
    if row // ROWS >= live_canvases(count, first, most):
        return
    canvas, position = tl.load(slots + first + row // ROWS), row % ROWS
    target = canvas * ROWS + position
    base = controls + canvas * WORDS
    pinned = tl.load(base + PINNED + position)
    if pinned >= 0:
        tl.store(drawn + target, pinned)
        return
    counter = position + tl.arange(0, 1)
    word, other = philox_words(
        counter, tl.load(base + STEP), tl.load(base + CANVAS_INDEX), tl.load(base + CHOICE),
        tl.load(base + SEED_LOW), tl.load(base + SEED_HIGH),
    )  # fmt: skip
    if tl.load(accepted + target) == 0:
        token = (other * vocab.to(tl.uint64)) >> tl.full([], 32, tl.uint64)
        tl.store(drawn + target, tl.sum(token.to(tl.int32)))
        return
    temperature = number(controls, canvas, DRAW_TEMPERATURE)
    if temperature == 0.0:
        tl.store(drawn + target, tl.load(argmax + target))
        return
    uniform = tl.sum((word >> tl.full([], 8, tl.uint64)).to(tl.int32).to(tl.float32)) * 0.000000059604644775390625
    top_k, top_p = tl.load(base + TOP_K), number(controls, canvas, TOP_P)
    min_p = number(controls, canvas, MIN_P)
    own = masses + row.to(tl.int64) * width
    tops = largest + row * tiles
    peak = tl.load(peaks + target)
    if (temperature == 1.0) & (top_k == 0) & (top_p >= 1.0) & (min_p <= 0.0):
        token = _draw_plain(own, tops, sums + row * tiles, uniform, tiles, N, TILES)
        tl.store(drawn + target, token)
    else:
        tile = tl.arange(0, TILES)
        shift = peak - tl.max(tl.load(tops + tile, mask=tile < tiles, other=float("-inf")))
        token = draw_narrowed(
            own, tops, shift, peak, uniform, 1.0 / temperature, top_k, top_p, min_p, tiles, N, TOGETHER
        )
        tl.store(drawn + target, token)


@triton.jit
def first_past(weights, target, SIZE: tl.constexpr):
    """Where the running sum of `weights` passes `target`, the sum before that place; never a place of weight 0."""
    place = tl.arange(0, SIZE)
    running = tl.cumsum(weights, axis=0)
    found = tl.min(tl.where((running > target) & (weights > 0.0), place, 0x7FFFFFFF))
    # Rounding may put the target past the end: the last that has a weight.
    found = tl.minimum(found, tl.max(tl.where(weights > 0.0, place, 0)))
    return found, tl.sum(tl.where(place == found, running - weights, 0.0))


@triton.jit
def _draw_plain(masses, largest, sums, uniform, tiles, N: tl.constexpr, TILES: tl.constexpr):
    tile = tl.arange(0, TILES)
    tops = tl.load(largest + tile, mask=tile < tiles, other=float("-inf"))
    shares = tl.load(sums + tile, mask=tile < tiles, other=0.0) * tl.exp2(tl.maximum(tops - tl.max(tops), -400.0))
    target = uniform * tl.sum(shares)
    found, before = first_past(shares, target, TILES)
    share = tl.sum(tl.where(tile == found, shares, 0.0))
    bits = tl.load(masses + found * N + tl.arange(0, N)).to(tl.int32)
    weights = (bits << 16).to(tl.float32, bitcast=True)
    # Within the tile its masses, rounded to bf16, share out what the tile has.
    inner = tl.minimum(tl.maximum((target - before) / share, 0.0), 1.0) * tl.sum(weights)
    token, _ = first_past(weights, inner, N)
    return found * N + token

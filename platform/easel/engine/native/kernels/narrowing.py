"""What a request changes about a draw, exactly, for a vocabulary of any size: temperature, top_k, top_p, min_p; and
the best tokens of a row.

Masses are bf16 and not negative, so their 16 bits, read as an integer, have their order. The k-th largest, or the
smallest of a nucleus, is then found by halving the range of their values: 12 to 16 passes over a row, of which a tile
whose largest mass is too small is not read. Nothing is sorted and no number of candidates is assumed. Ties are kept as
`sampler.narrow` keeps them: all of the k-th for top_k, the lowest ids first for top_p.

Owns: thresholds, and drawing among what is left. Refuses to know: canvases but for the row it is given.
"""

from __future__ import annotations

import triton
import triton.language as tl

from easel.engine.native.kernels.controls import LENGTH, LOGPROBS, WORDS
from easel.engine.native.kernels.head import ROWS, live_canvases

REACH = tl.constexpr(2048)
"""Where a search looks first: 16 powers of two below the best. What a request keeps seldom reaches further."""
BEST = tl.constexpr(64)
SMALLEST = tl.constexpr(1e-37)
"""Stands for 0 where a logarithm is taken and not used."""


@triton.jit
def _weight(bits, peak, inverse_temperature):
    """Mass relative to the row's best, to the power of 1 / temperature. 0 for a mass of 0."""
    value = (bits << 16).to(tl.float32, bitcast=True)
    power = tl.exp2((tl.log2(tl.maximum(value, SMALLEST)) - peak) * inverse_temperature)
    return tl.where(bits > 0, power, 0.0)


@triton.jit
def _cut(power):
    """Bits of 2**power, cut off at 16; the head rounded to the nearest, so a mass of it has these or one more."""
    return tl.exp2(tl.maximum(power, -400.0)).to(tl.int32, bitcast=True) >> 16


@triton.jit
def _wanted(largest, shift, low, start, tiles, TOGETHER: tl.constexpr):
    """Which of the tiles from `start` may have a mass with bits of at least `low`."""
    tile = start + tl.arange(0, TOGETHER)
    tops = tl.load(largest + tile, mask=tile < tiles, other=float("-inf"))
    return (tile < tiles) & (_cut(tops + shift) + 1 >= low)


@triton.jit
def _bits(masses, wanted, start, N: tl.constexpr, TOGETHER: tl.constexpr):
    """Bits [TOGETHER, N] of the tiles from `start`; 0 for tiles that are not wanted."""
    place = (start + tl.arange(0, TOGETHER))[:, None] * N + tl.arange(0, N)[None, :]
    return tl.load(masses + place, mask=wanted[:, None], other=0).to(tl.int32)


@triton.jit
def _count(masses, largest, shift, low, tiles, N: tl.constexpr, TOGETHER: tl.constexpr):
    """How many tokens have bits of at least `low`, which is at least 1."""
    number = tl.zeros((TOGETHER, N), dtype=tl.int32)
    for start in range(0, tiles, TOGETHER):
        wanted = _wanted(largest, shift, low, start, tiles, TOGETHER)
        if tl.max(wanted.to(tl.int32)) > 0:
            number += (_bits(masses, wanted, start, N, TOGETHER) >= low).to(tl.int32)
    return tl.sum(number)


@triton.jit
def _above(masses, largest, shift, low, peak, inverse_temperature, tiles, N: tl.constexpr, TOGETHER: tl.constexpr):
    """The weight of the tokens that have bits of at least `low`, which is at least 1."""
    weight = tl.zeros((TOGETHER, N), dtype=tl.float32)
    for start in range(0, tiles, TOGETHER):
        wanted = _wanted(largest, shift, low, start, tiles, TOGETHER)
        if tl.max(wanted.to(tl.int32)) > 0:
            bits = _bits(masses, wanted, start, N, TOGETHER)
            weight += tl.where(bits >= low, _weight(bits, peak, inverse_temperature), 0.0)
    return tl.sum(weight)


@triton.jit
def _kth(masses, largest, shift, k, peak, tiles, N: tl.constexpr, TOGETHER: tl.constexpr):
    """Bits of the k-th largest mass; 0 where fewer have any."""
    low, high = tl.full([], 0, tl.int32), _cut(peak) + 2
    middle = tl.maximum(high - REACH, 1)
    while high - low > 1:
        enough = _count(masses, largest, shift, middle, tiles, N, TOGETHER) >= k
        low, high = tl.where(enough, middle, low), tl.where(enough, high, middle)
        middle = (low + high) // 2
    return low


@triton.jit
def _nucleus(masses, largest, shift, least, share, peak, inverse_temperature, tiles,
             N: tl.constexpr, TOGETHER: tl.constexpr):  # fmt: skip
    """The largest bits, from `least`, such that what is at or above them weighs `share`."""
    low, high = least, _cut(peak) + 2
    middle = tl.maximum(high - REACH, least + 1)
    while high - low > 1:
        weight = _above(masses, largest, shift, middle, peak, inverse_temperature, tiles, N, TOGETHER)
        enough = weight >= share
        low, high = tl.where(enough, middle, low), tl.where(enough, high, middle)
        middle = (low + high) // 2
    return low


@triton.jit
def _walk(masses, largest, shift, low, tie, ties, least, peak, inverse_temperature, target, tiles,
          N: tl.constexpr, TOGETHER: tl.constexpr):  # fmt: skip
    """The weight of all that is kept; and of the first block whose end is past `target`: its start, the weight and the
    ties before it."""
    total, before = tl.full([], 0.0, tl.float32), tl.full([], 0.0, tl.float32)
    seen, seen_before = tl.full([], 0, tl.int32), tl.full([], 0, tl.int32)
    found = tl.full([], -1, tl.int32)
    for start in range(0, tiles, TOGETHER):
        wanted = _wanted(largest, shift, low, start, tiles, TOGETHER)
        if tl.max(wanted.to(tl.int32)) > 0:
            bits = _bits(masses, wanted, start, N, TOGETHER)
            weights, tied = _kept(bits, low, tie, ties - seen, least, peak, inverse_temperature)
            mass = tl.sum(weights)
            here = (found < 0) & (total + mass > target)
            found = tl.where(here, start, found)
            before = tl.where(here, total, before)
            seen_before = tl.where(here, seen, seen_before)
            total += mass
            seen += tied
    return total, found, before, seen_before


@triton.jit
def _kept(bits, low, tie, ties, least, peak, inverse_temperature):
    """Weights of a block's tokens, 0 for those left out, and how many have exactly the bits `tie`: of those, the first
    `ties` in the order of their ids stay."""
    weights = _weight(bits, peak, inverse_temperature)
    tied = (bits == tie).to(tl.int32)
    by_tile = tl.sum(tied, axis=1)
    rank = (tl.cumsum(by_tile, axis=0) - by_tile)[:, None] + tl.cumsum(tied, axis=1) - tied
    kept = (bits >= low) & (bits > 0) & (weights >= least) & ((tied == 0) | (rank < ties))
    return tl.where(kept, weights, 0.0), tl.sum(by_tile)


@triton.jit
def draw_narrowed(masses, largest, shift, peak, uniform, inverse_temperature, top_k, top_p, min_p, tiles,
                  N: tl.constexpr, TOGETHER: tl.constexpr):  # fmt: skip
    """A token of one row. `masses` int16 and `largest` fp32 begin at the row; `peak` is log2 of its best mass.
    `shift` makes log2 of a tile's best mass of its `largest`."""
    low = tl.full([], 1, tl.int32)
    if top_k > 0:
        low = tl.maximum(_kth(masses, largest, shift, top_k, peak, tiles, N, TOGETHER), 1)
    tie, ties = tl.full([], -1, tl.int32), tl.full([], 0, tl.int32)
    if top_p < 1.0:
        whole = _above(masses, largest, shift, low, peak, inverse_temperature, tiles, N, TOGETHER)
        share = top_p * whole
        tie = _nucleus(masses, largest, shift, low, share, peak, inverse_temperature, tiles, N, TOGETHER)
        above = _above(masses, largest, shift, tie + 1, peak, inverse_temperature, tiles, N, TOGETHER)
        each = _weight(tie, peak, inverse_temperature)
        # One stays while what is before it is less than the share.
        ties = tl.maximum(tl.ceil((share - above) / each), 1.0).to(tl.int32)
        low = tie
    # The best's own bits, as they were rounded.
    top = _kth(masses, largest, shift, 1, peak, tiles, N, TOGETHER)
    least = min_p * _weight(top, peak, inverse_temperature)
    total, _found, _before, _seen = _walk(
        masses, largest, shift, low, tie, ties, least, peak, inverse_temperature, float("inf"), tiles, N, TOGETHER
    )  # fmt: skip
    target = tl.minimum(uniform * total, total * 0.99999988)
    _total, found, before, seen = _walk(
        masses, largest, shift, low, tie, ties, least, peak, inverse_temperature, target, tiles, N, TOGETHER
    )
    wanted = _wanted(largest, shift, low, found, tiles, TOGETHER)
    bits = _bits(masses, wanted, found, N, TOGETHER)
    weights, _tied = _kept(bits, low, tie, ties - seen, least, peak, inverse_temperature)
    tile = tl.arange(0, TOGETHER)
    by_tile = tl.sum(weights, axis=1)
    ends = before + tl.cumsum(by_tile, axis=0)
    at = tl.min(tl.where((ends > target) & (by_tile > 0.0), tile, 0x7FFFFFFF))
    at = tl.minimum(at, tl.max(tl.where(by_tile > 0.0, tile, 0)))
    start = tl.sum(tl.where(tile == at, ends - by_tile, 0.0))
    column = tl.arange(0, N)
    weight = tl.sum(tl.where((tile == at)[:, None], weights, 0.0), axis=0)
    past = (start + tl.cumsum(weight, axis=0) > target) & (weight > 0.0)
    token = tl.min(tl.where(past, column, 0x7FFFFFFF))
    token = tl.minimum(token, tl.max(tl.where(weight > 0.0, column, 0)))
    return (found + at) * N + token


@triton.jit(do_not_specialize=["first", "most"])
def best_tokens(masses, largest, peaks, chosen, ids, values, scratch_ids, scratch_bits, controls, slots, count,
                first, most, vocab, width, tiles, N: tl.constexpr, TILES: tl.constexpr,
                TOGETHER: tl.constexpr):  # fmt: skip
    """The BEST likeliest tokens of each position whose canvas asks, best first, the lower id first among equals.

    `ids` int32 and `values` fp32 (log-probabilities, nats) [canvases * ROWS, BEST]; the scratches alike. A vocabulary
    of fewer fills the rest with id -1 and -inf. Chances below e**-157 of what the row's ceiling would have (only
    beside a token with a large bias) are not told apart from that or from 0. Grid (most * ROWS,).
    """
    row = tl.program_id(0)
    if row // ROWS >= live_canvases(count, first, most):
        return
    canvas, position = tl.load(slots + first + row // ROWS), row % ROWS
    base = controls + canvas * WORDS
    if (tl.load(base + LOGPROBS) == 0) | (position >= tl.load(base + LENGTH)):
        return
    target = canvas * ROWS + position
    own, tops = masses + row.to(tl.int64) * width, largest + row * tiles
    peak = tl.load(peaks + target)
    tile = tl.arange(0, TILES)
    shift = peak - tl.max(tl.load(tops + tile, mask=tile < tiles, other=float("-inf")))
    least = _kth(own, tops, shift, BEST, peak, tiles, N, TOGETHER)
    above = _count(own, tops, shift, least + 1, tiles, N, TOGETHER)
    place = tl.arange(0, BEST)
    tl.store(scratch_ids + target * BEST + place, tl.full((BEST,), -1, tl.int32))
    tl.store(scratch_bits + target * BEST + place, tl.full((BEST,), -1, tl.int32))
    tl.debug_barrier()
    higher, equal = tl.full([], 0, tl.int32), tl.full([], 0, tl.int32)
    for start in range(0, tiles, TOGETHER):
        bits = _bits(own, _wanted(tops, shift, least, start, tiles, TOGETHER), start, N, TOGETHER)
        token = (start + tl.arange(0, TOGETHER))[:, None] * N + tl.arange(0, N)[None, :]
        over = ((bits > least) & (token < vocab)).to(tl.int32)
        tied = ((bits == least) & (token < vocab)).to(tl.int32)
        over_tile, tied_tile = tl.sum(over, axis=1), tl.sum(tied, axis=1)
        over_rank = higher + (tl.cumsum(over_tile, axis=0) - over_tile)[:, None] + tl.cumsum(over, axis=1) - over
        tied_rank = above + equal + (tl.cumsum(tied_tile, axis=0) - tied_tile)[:, None] + tl.cumsum(tied, axis=1) - tied
        rank = tl.where(over > 0, over_rank, tied_rank)
        wanted = ((over > 0) | (tied > 0)) & (rank < BEST)
        tl.store(scratch_ids + target * BEST + rank, token, mask=wanted)
        tl.store(scratch_bits + target * BEST + rank, bits, mask=wanted)
        higher += tl.sum(over_tile)
        equal += tl.sum(tied_tile)
    tl.debug_barrier()
    token = tl.load(scratch_ids + target * BEST + place)
    bits = tl.load(scratch_bits + target * BEST + place)
    better = (bits[None, :] > bits[:, None]) | ((bits[None, :] == bits[:, None]) & (place[None, :] < place[:, None]))
    rank = tl.sum(better.to(tl.int32), axis=1)
    value = tl.log2(tl.maximum((bits << 16).to(tl.float32, bitcast=True), SMALLEST)) - peak
    value = tl.where(bits > 0, value * 0.6931471805599453 + tl.load(chosen + target), float("-inf"))
    tl.store(ids + target * BEST + rank, token)
    tl.store(values + target * BEST + rank, value)

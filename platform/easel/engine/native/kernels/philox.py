"""Philox4x32-10 inside a kernel: the words that `noise.philox` makes, bit by bit.

Owns: the generator. Refuses to know: what the words decide.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def philox_words(position, step, canvas, choice, seed_low, seed_high):
    """Words 0 and 2 for each `position` (a block); the other arguments are scalars. All are 32-bit words.

    Returns two uint64 blocks with values below 2**32.
    """
    mask = tl.full([], 0xFFFFFFFF, tl.uint64)
    # Through int64 and a mask: a negative int32 is a word with its top bit set.
    w0 = position.to(tl.int64).to(tl.uint64) & mask
    w1 = (step.to(tl.int64).to(tl.uint64) & mask) + tl.zeros_like(w0)
    w2 = (canvas.to(tl.int64).to(tl.uint64) & mask) + tl.zeros_like(w0)
    w3 = (choice.to(tl.int64).to(tl.uint64) & mask) + tl.zeros_like(w0)
    k0 = seed_low.to(tl.int64).to(tl.uint64) & mask
    k1 = seed_high.to(tl.int64).to(tl.uint64) & mask
    even_multiplier = tl.full([], 0xD2511F53, tl.uint64)
    odd_multiplier = tl.full([], 0xCD9E8D57, tl.uint64)
    even_weyl = tl.full([], 0x9E3779B9, tl.uint64)
    odd_weyl = tl.full([], 0xBB67AE85, tl.uint64)
    shift = tl.full([], 32, tl.uint64)
    for _ in tl.static_range(10):
        first = w0 * even_multiplier  # 32 bits times 32 bits: exact in 64
        second = w2 * odd_multiplier
        w0 = (second >> shift) ^ w1 ^ k0
        w2 = (first >> shift) ^ w3 ^ k1
        w1 = second & mask
        w3 = first & mask
        k0 = (k0 + even_weyl) & mask
        k1 = (k1 + odd_weyl) & mask
    return w0, w2

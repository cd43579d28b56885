"""Names for the beginnings of prompts, so that ingress and replica mean the same by one without sending it.

The router asks which replica holds the beginning of a prompt, the engine whether it holds it itself. Owns: the hash of
each whole block of a prompt with everything before it. Refuses to know: what is cached where.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

BLOCK_TOKENS = 256
"""Tokens in one block: one chunk of prefill. What is shared beyond the last whole block is encoded again."""


def prefix_hashes(prompt: Sequence[int], most: int = 128, known: tuple[int, ...] = ()) -> tuple[int, ...]:
    """63-bit hashes of the first block, the first two blocks, and so on: at most `most`, whole blocks only.

    `known`: the first of them, which are not made again.
    """
    hashes = list(known)
    for end in range((len(known) + 1) * BLOCK_TOKENS, min(len(prompt), most * BLOCK_TOKENS) + 1, BLOCK_TOKENS):
        before = hashes[-1].to_bytes(8, "little") if hashes else b""
        block = array("I", prompt[end - BLOCK_TOKENS : end]).tobytes()
        hashes.append(int.from_bytes(blake2b(before + block, digest_size=8).digest(), "little") >> 1)
    return tuple(hashes)

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


def prefix_hashes(prompt: Sequence[int], most: int = 128) -> tuple[int, ...]:
    """63-bit hashes of the first block, the first two blocks, and so on: at most `most`, whole blocks only."""
    hashes: list[int] = []
    digest = b""
    for end in range(BLOCK_TOKENS, min(len(prompt), most * BLOCK_TOKENS) + 1, BLOCK_TOKENS):
        block = array("I", prompt[end - BLOCK_TOKENS : end]).tobytes()
        digest = blake2b(digest + block, digest_size=8).digest()
        hashes.append(int.from_bytes(digest, "little") >> 1)
    return tuple(hashes)

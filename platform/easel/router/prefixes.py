"""Names for the beginnings of prompts, so that ingress and replica mean the same by one without sending it.

Owns: the hash of each whole block of a prompt with everything before it. Refuses to know: what is cached where.
"""

from __future__ import annotations

from collections.abc import Sequence

BLOCK_TOKENS = 256
"""Tokens in one block: one chunk of prefill. What is shared beyond the last whole block is encoded again."""


def prefix_hashes(prompt: Sequence[int], most: int = 128) -> tuple[int, ...]:
    """63-bit hashes of the first block, the first two blocks, and so on: at most `most`, whole blocks only."""
    raise NotImplementedError

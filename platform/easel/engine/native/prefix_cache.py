"""Beginnings of sequences whose KV blocks are kept when their sequence is gone, so that nobody prefills them again.

What is kept is a chunk: 256 tokens that begin at a multiple of 256, after the very same tokens. Of a prompt it is what
prefill encodes at a time, always in the same way, so whoever finds it reads the bits that it would have written itself.
Chunks that canvases committed, whole or in part, were encoded in another company: the same numbers but for rounding.
Who wants the same bits does not keep them (`scheduler`); then they are encoded once more when they come back in the
next turn's prompt. The last canvas of an answer is never encoded, so never kept.

Full layers need all chunks of a prefix; sliding layers only those in the window before its end. So a chunk's blocks of
the sliding pool may go before those of the full pool do, and the other way round they never need to. What was not used
for longest goes first; of one prefix, its end goes before its beginning, without which it could not be reached.

Owns: which chunks are kept, in which blocks, who may have them, and what goes. Refuses to know: tensors, who sits
where, and when room is needed (`scheduler`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from easel.engine.native.kv_cache import BlockPool, KvCache, SequenceKv
from easel.prefixes import BLOCK_TOKENS

MOST_TOLD = 1024
"""Chunks that `digest` names: those used last."""


@dataclass(slots=True)
class _Chunk:
    tokens: tuple[int, ...]
    """Two beginnings may have one hash. Nobody is given another one's tokens for it."""
    full: list[int]
    sliding: list[int] | None
    """None: given up."""


class PrefixCache:
    """See the module. One thread calls it. `hashes` are those of `easel.prefixes`, one for each whole chunk."""

    def __init__(self, kv: KvCache) -> None:
        """Raises `ValueError` where blocks would lie across the borders of chunks."""
        if BLOCK_TOKENS % kv.block_tokens:
            raise ValueError(f"blocks of {kv.block_tokens} tokens do not divide chunks of {BLOCK_TOKENS}")
        self._kv = kv
        self._blocks = BLOCK_TOKENS // kv.block_tokens
        """In one chunk."""
        self._chunks: OrderedDict[int, _Chunk] = OrderedDict()
        """The one used longest ago first. What comes earlier in a prefix comes later here."""
        self._in_window: OrderedDict[int, None] = OrderedDict()
        """Those that have their sliding blocks, the one whose were used longest ago first."""
        self._digest: tuple[int, ...] | None = ()
        """What `digest` said last; None: it has changed since."""
        self.asked = 0
        """Tokens of prompts that were looked up, whole chunks only."""
        self.found = 0
        """Those of them that were there."""

    def __len__(self) -> int:
        return len(self._chunks)

    @property
    def digest(self) -> tuple[int, ...]:
        """Hashes of the chunks used last."""
        if self._digest is None:  # asked at every step, changed by few
            self._digest = tuple(islice(reversed(self._chunks), MOST_TOLD))
        return self._digest

    def adopt(self, kv: SequenceKv, tokens: Sequence[int], hashes: Sequence[int], encoded: int) -> int:
        """Let a sequence that holds its first `encoded` tokens have as many more as there are. Returns how many tokens
        it holds then."""
        if encoded % BLOCK_TOKENS or encoded >= len(hashes) * BLOCK_TOKENS:
            return encoded
        first = encoded // BLOCK_TOKENS
        last = self._reach(tokens, hashes, first)
        if last == first:
            return encoded
        reached = last * BLOCK_TOKENS
        self._kv.slide(kv, reached)
        if not kv.sliding.blocks:
            kv.sliding.dropped = self._first_in_window(reached)
        for index in range(first, last):
            chunk = self._chunks[hashes[index]]
            self._take(self._kv.full, kv.full.blocks, chunk.full)
            held = kv.sliding.dropped + len(kv.sliding.blocks) - index * self._blocks
            if held < self._blocks:
                assert chunk.sliding is not None, "it was looked at before"
                self._take(self._kv.sliding, kv.sliding.blocks, chunk.sliding[held:])
        self._use(hashes[:last], reached)
        return reached

    def keep(self, kv: SequenceKv, tokens: Sequence[int], hashes: Sequence[int], index: int) -> None:
        """A sequence has written all of chunk `index` of its `tokens`: keep it."""
        start, stop = index * BLOCK_TOKENS, (index + 1) * BLOCK_TOKENS
        if index and hashes[index - 1] not in self._chunks:
            return  # what it follows is gone, so nobody would get as far
        key, known = hashes[index], self._chunks.get(hashes[index])
        first = index * self._blocks
        behind = first - kv.sliding.dropped
        sliding = kv.sliding.blocks[behind : behind + self._blocks] if behind >= 0 else None
        if known is None:
            full = kv.full.blocks[first : first + self._blocks]
            known = self._chunks[key] = _Chunk(tuple(tokens[start:stop]), full, None)
            for block in full:
                self._kv.full.keep(block)
        elif known.tokens != tuple(tokens[start:stop]):
            return  # another one of the same hash was first
        if known.sliding is None and sliding is not None:
            known.sliding = sliding
            for block in sliding:
                self._kv.sliding.keep(block)
            self._in_window[key] = None
        self._use(hashes[: index + 1], stop)

    def make_room(self, full: int, sliding: int) -> bool:
        """Give up chunks that nobody uses until so many blocks of each pool have come free, or no more will. Whether
        any did."""
        free = self._kv.full.free + self._kv.sliding.free
        target = self._kv.sliding.free + sliding
        for key in list(self._in_window):
            if self._kv.sliding.free >= target:
                break
            self._narrow(key)
        target = self._kv.full.free + full
        for key in list(self._chunks):
            if self._kv.full.free >= target:
                break
            if all(self._kv.full.is_idle(block) for block in self._chunks[key].full):
                self._forget(key)
        return self._kv.full.free + self._kv.sliding.free > free

    def _reach(self, tokens: Sequence[int], hashes: Sequence[int], first: int) -> int:
        """How many chunks a sequence that has `first` of them can have."""
        last, lengths = first, range(first, len(hashes))
        for index in lengths:
            chunk = self._chunks.get(hashes[index])
            if chunk is None or chunk.tokens != tuple(tokens[index * BLOCK_TOKENS : (index + 1) * BLOCK_TOKENS]):
                break
            last = index + 1
        while last > first and not self._has_window(hashes, first, last):
            last -= 1
        return last

    def _has_window(self, hashes: Sequence[int], first: int, last: int) -> bool:
        """Whether the sliding blocks in the window before the end of chunk `last - 1` are there, but for those before
        chunk `first`, which the sequence has."""
        oldest = self._first_in_window(last * BLOCK_TOKENS) // self._blocks
        return all(self._chunks[hashes[index]].sliding is not None for index in range(max(first, oldest), last))

    def _first_in_window(self, tokens: int) -> int:
        """Blocks before the window of token number `tokens`."""
        return max(0, tokens - (self._kv.window - 1)) // self._kv.block_tokens

    def _take(self, pool: BlockPool, table: list[int], blocks: Sequence[int]) -> None:
        for block in blocks:
            pool.share(block)
        table.extend(blocks)

    def _use(self, hashes: Sequence[int], tokens: int) -> None:
        """These chunks were used just now, and the window that ends at `tokens`."""
        self._digest = None
        for key in reversed(hashes):
            if key in self._chunks:
                self._chunks.move_to_end(key)
        for key in hashes[self._first_in_window(tokens) // self._blocks :]:
            if key in self._in_window:
                self._in_window.move_to_end(key)

    def _narrow(self, key: int) -> None:
        """Give up the sliding blocks of a chunk."""
        chunk = self._chunks[key]
        assert chunk.sliding is not None, "it is listed among those that have them"
        if all(self._kv.sliding.is_idle(block) for block in chunk.sliding):
            for block in chunk.sliding:
                self._kv.sliding.drop(block)
            chunk.sliding = None
            del self._in_window[key]

    def _forget(self, key: int) -> None:
        chunk = self._chunks.pop(key)
        self._digest = None
        for block in chunk.full:
            self._kv.full.drop(block)
        for block in chunk.sliding or ():
            self._kv.sliding.drop(block)
        self._in_window.pop(key, None)

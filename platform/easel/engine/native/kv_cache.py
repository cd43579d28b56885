"""Which KV blocks belong to whom: accounting only, a pool for each kind of layer.

A block holds `block_tokens` consecutive tokens of one sequence, on every layer of one kind. On full layers a sequence
keeps all its blocks; on sliding layers it gives those back that no later token can see, so that pool stays small
however long the context. Blocks are counted by reference, so that sequences share a prefix, and so that one is kept
when nobody uses it (`prefix_cache`). Refuses to know: tensors, and what to do when blocks run out (`scheduler`).
"""

from __future__ import annotations

from dataclasses import dataclass, field


class BlockPool:
    """Blocks 0 to `blocks - 1`, each free or referred to by one or more tables."""

    def __init__(self, name: str, blocks: int) -> None:
        self.name = name
        self.blocks = blocks
        self._free = list(range(blocks - 1, -1, -1))
        self._references = [0] * blocks
        self._kept: set[int] = set()
        self._spare = 0

    @property
    def free(self) -> int:
        """Blocks that nobody refers to."""
        return len(self._free)

    @property
    def spare(self) -> int:
        """Blocks that are kept, and that no table refers to: free as soon as they are dropped."""
        return self._spare

    def references(self, block: int) -> int:
        """Tables that refer to this block."""
        return self._references[block]

    def take(self, count: int) -> list[int]:
        """`count` free blocks, each with one reference. The caller has looked at `free`."""
        assert count <= len(self._free), f"{count} blocks of {self.name} wanted, {len(self._free)} free"
        taken = [self._free.pop() for _ in range(count)]
        for block in taken:
            self._references[block] = 1
        return taken

    def share(self, block: int) -> None:
        """One more reference to a block that has some."""
        assert self._references[block] > 0, f"block {block} of {self.name} is free: nothing in it to share"
        self._spare -= self._idle(block)
        self._references[block] += 1

    def keep(self, block: int) -> None:
        """A reference of nobody's, that lets a block outlive its sequence. Once a block."""
        assert block not in self._kept, f"block {block} of {self.name} is kept already"
        self.share(block)
        self._kept.add(block)

    def drop(self, block: int) -> None:
        """Keep it no longer."""
        self._spare -= self._idle(block)
        self._kept.remove(block)
        self.give_back(block)

    def is_idle(self, block: int) -> bool:
        """Whether it is kept, and no table refers to it."""
        return bool(self._idle(block))

    def _idle(self, block: int) -> int:
        return self._references[block] == 1 and block in self._kept

    def give_back(self, block: int) -> None:
        """One reference less; the last one frees the block."""
        assert self._references[block] > 0, f"block {block} of {self.name} given back once too often"
        self._references[block] -= 1
        if self._references[block] == 0:
            self._free.append(block)
        self._spare += self._idle(block)


@dataclass(slots=True)
class BlockTable:
    """One sequence's blocks in one pool, in the order of its tokens."""

    dropped: int = 0
    """Blocks at the beginning that were given back."""
    blocks: list[int] = field(default_factory=list)


@dataclass(slots=True)
class SequenceKv:
    """What one sequence holds."""

    full: BlockTable = field(default_factory=BlockTable)
    sliding: BlockTable = field(default_factory=BlockTable)


class KvCache:
    """Both pools. `window` in tokens."""

    def __init__(self, full_blocks: int, sliding_blocks: int, block_tokens: int, window: int) -> None:
        self.block_tokens = block_tokens
        self.window = window
        self.full = BlockPool("full", full_blocks)
        self.sliding = BlockPool("sliding", sliding_blocks)

    @property
    def pools(self) -> tuple[BlockPool, BlockPool]:
        """The pool of the full layers, then that of the sliding ones."""
        return (self.full, self.sliding)

    @property
    def tokens(self) -> int:
        """How many the full layers hold, over all sequences."""
        return self.full.blocks * self.block_tokens

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-tokens // self.block_tokens)

    def sliding_blocks_for(self, tokens: int, written: int) -> int:
        """Most sliding blocks that a sequence of `tokens` tokens holds when it writes at most `written` in a step."""
        # The tokens in the window may begin anywhere in a block: one block more.
        return min(self.blocks_for(tokens), self.blocks_for(self.window - 1 + written) + 1)

    def fits(self, tokens: int, written: int) -> bool:
        """Whether a sequence of that length could be held if it were alone."""
        return (
            self.blocks_for(tokens) <= self.full.blocks
            and self.sliding_blocks_for(tokens, written) <= self.sliding.blocks
        )

    def lacking(self, kv: SequenceKv, tokens: int) -> tuple[int, int]:
        """Free blocks that `extend` would need beyond those there are, in each pool."""
        full, sliding = (max(0, self._wanted(table, tokens) - pool.free) for table, pool in self._pairs(kv))
        return full, sliding

    def can_extend(self, kv: SequenceKv, tokens: int) -> bool:
        """Whether `extend` would succeed."""
        return not any(self.lacking(kv, tokens))

    def extend(self, kv: SequenceKv, tokens: int) -> bool:
        """Make room for the first `tokens` tokens, in both pools or in neither. False: not enough free blocks."""
        if not self.can_extend(kv, tokens):
            return False
        for table, pool in self._pairs(kv):
            table.blocks.extend(pool.take(self._wanted(table, tokens)))
        return True

    def slide(self, kv: SequenceKv, tokens: int) -> None:
        """Give back the sliding blocks that neither token number `tokens` nor a later one can see."""
        oldest = max(0, tokens - (self.window - 1))
        while kv.sliding.blocks and (kv.sliding.dropped + 1) * self.block_tokens <= oldest:
            self.sliding.give_back(kv.sliding.blocks.pop(0))
            kv.sliding.dropped += 1

    def close(self, kv: SequenceKv) -> None:
        """Give everything back; `kv` may begin anew."""
        for table, pool in self._pairs(kv):
            for block in table.blocks:
                pool.give_back(block)
            table.blocks.clear()
            table.dropped = 0

    def _wanted(self, table: BlockTable, tokens: int) -> int:
        return max(0, self.blocks_for(tokens) - table.dropped - len(table.blocks))

    def _pairs(self, kv: SequenceKv) -> tuple[tuple[BlockTable, BlockPool], tuple[BlockTable, BlockPool]]:
        return (kv.full, self.full), (kv.sliding, self.sliding)

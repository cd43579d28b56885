"""Block accounting: no block is lost, none belongs to two, and what must be readable is held."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from easel.engine.native.kv_cache import BlockPool, KvCache, SequenceKv

BLOCK, WINDOW, FULL, SLIDING = 4, 10, 24, 16


class Accounting(RuleBasedStateMachine):
    """Sequences grow, slide and end in any order."""

    sequences = Bundle("sequences")

    def __init__(self) -> None:
        super().__init__()
        self.cache = KvCache(FULL, SLIDING, BLOCK, WINDOW)
        self.length: dict[int, int] = {}
        self.open: dict[int, SequenceKv] = {}

    @rule(target=sequences)
    def begin(self) -> SequenceKv:
        kv = SequenceKv()
        self.open[id(kv)], self.length[id(kv)] = kv, 0
        return kv

    @rule(kv=sequences, more=st.integers(1, 30))
    def extend(self, kv: SequenceKv, more: int) -> None:
        wanted = self.length[id(kv)] + more
        free = [pool.free for pool in self.cache.pools]
        possible = self.cache.can_extend(kv, wanted)
        assert self.cache.extend(kv, wanted) == possible
        if possible:
            self.length[id(kv)] = wanted
        else:
            assert free == [pool.free for pool in self.cache.pools], "a refusal changes nothing"

    @rule(kv=sequences)
    def slide(self, kv: SequenceKv) -> None:
        self.cache.slide(kv, self.length[id(kv)])
        assert len(kv.sliding.blocks) <= self.cache.blocks_for(WINDOW - 1) + 1

    @rule(kv=consumes(sequences))
    def end(self, kv: SequenceKv) -> None:
        self.cache.close(kv)
        assert kv == SequenceKv()
        del self.open[id(kv)], self.length[id(kv)]

    @invariant()
    def every_block_is_free_or_held_once(self) -> None:
        for pool, tables in (
            (self.cache.full, [kv.full for kv in self.open.values()]),
            (self.cache.sliding, [kv.sliding for kv in self.open.values()]),
        ):
            held = [block for table in tables for block in table.blocks]
            assert len(held) == len(set(held))
            assert pool.free + len(held) == pool.blocks
            assert all(pool.references(block) == 1 for block in held)

    @invariant()
    def what_later_tokens_see_is_held(self) -> None:
        for key, kv in self.open.items():
            length = self.length[key]
            assert (kv.full.dropped, len(kv.full.blocks)) == (0, self.cache.blocks_for(length))
            assert kv.sliding.dropped + len(kv.sliding.blocks) == self.cache.blocks_for(length)
            assert kv.sliding.dropped * BLOCK <= max(0, length - (WINDOW - 1))


Accounting.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAccounting = Accounting.TestCase


def test_shared_block_is_free_only_when_nobody_refers_to_it() -> None:
    pool = BlockPool("full", 2)
    (block,) = pool.take(1)
    pool.share(block)
    pool.give_back(block)
    assert (pool.free, pool.references(block)) == (1, 1)
    pool.give_back(block)
    assert (pool.free, pool.references(block)) == (2, 0)
    with pytest.raises(AssertionError, match="once too often"):
        pool.give_back(block)
    with pytest.raises(AssertionError, match="nothing in it"):
        pool.share(block)
    with pytest.raises(AssertionError, match="3 blocks"):
        pool.take(3)


@pytest.mark.parametrize("written", [1, 8, 32])
def test_a_sequence_that_fits_alone_can_always_be_written(written: int) -> None:
    for tokens in range(1, 80):
        cache = KvCache(
            -(-tokens // BLOCK), KvCache(0, 0, BLOCK, WINDOW).sliding_blocks_for(tokens, written), BLOCK, WINDOW
        )
        assert cache.fits(tokens, written)
        assert not KvCache(cache.full.blocks - 1, SLIDING, BLOCK, WINDOW).fits(tokens, written)
        kv = SequenceKv()
        for end in [*range(written, tokens, written), tokens]:
            assert cache.extend(kv, end)
            cache.slide(kv, end)

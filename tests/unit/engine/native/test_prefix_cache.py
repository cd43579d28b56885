"""Kept prefixes: whoever finds one reads what it would have written, nothing is lost, and room is made when needed."""

from __future__ import annotations

from collections.abc import Sequence as Items
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from easel.engine.native.kv_cache import BlockPool, KvCache, SequenceKv
from easel.engine.native.prefix_cache import PrefixCache
from easel.engine.native.scheduler import Limits, Plan, Scheduler
from easel.engine.native.sequence import Rules, Sequence, StepResult
from easel.prefixes import BLOCK_TOKENS, prefix_hashes
from easel.protocol import Finished, GenerationRequest, Started, Usage

LENGTH, BLOCK, WINDOW = 64, 64, 300
RULES = Rules(LENGTH, 3, 0.1, 1, 0.005, frozenset({1}))


class Memory:
    """A scheduler, and what would be in the blocks: the hash of all tokens up to the one that is written there."""

    def __init__(
        self, slots: int = 3, full: int = 64, sliding: int = 48, prefill: int = 512, keep_answers: bool = False
    ) -> None:
        self.kv = KvCache(full, sliding, BLOCK, WINDOW)
        self.prefixes = PrefixCache(self.kv)
        self.scheduler = Scheduler(self.kv, Limits(slots, prefill), max(prefill, LENGTH), self.prefixes, keep_answers)
        self.written: dict[tuple[str, int, int], int] = {}
        self.encoded = 0
        self.ended: dict[str, Usage] = {}
        self.cached_at_start: dict[str, int] = {}
        self.order = 0

    def add(self, prompt: Items[int], max_tokens: int = LENGTH) -> Sequence:
        self.order += 1
        request = GenerationRequest(id=str(self.order), prompt=tuple(prompt), max_tokens=max_tokens)
        sequence = Sequence(request, RULES, 0.0, self.order)
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> Plan:
        plan, told = self.scheduler.plan(0.0, 0.0)
        for encode in plan.encodes:
            sequence = encode.sequence
            history = self.history(sequence)
            for position in range(encode.start, encode.stop):
                for pool, block, row in self.places(sequence, position, encode.start):
                    self.written[pool, block, row] = history[position]
            self.check_readable(sequence, encode.start, encode.stop)
            self.encoded += encode.stop - encode.start
        for sequence in plan.denoises:
            assert not self.is_planned_later(plan, sequence)
            self.check_readable(sequence, len(sequence.tokens), len(sequence.tokens))
        results = {s: StepResult((9,) * LENGTH, (1.0,) * LENGTH, (True,) * LENGTH) for s in plan.denoises}
        told += self.scheduler.advance(plan, results, 0.0, 0.0, 0.0)
        for sequence, event in told:
            if isinstance(event, Started):
                self.cached_at_start[sequence.request.id] = event.cached_tokens
            if isinstance(event, Finished):
                self.ended[sequence.request.id] = event.usage
        self.check_accounts()
        return plan

    def run(self) -> None:
        for _ in range(2000):
            if not self.scheduler.sequences:
                return
            self.step()
        raise AssertionError("it does not end")

    def history(self, sequence: Sequence) -> list[int]:
        return list(accumulate(sequence.tokens, lambda before, token: hash((before, token)), initial=0))[1:]

    def places(self, sequence: Sequence, position: int, start: int) -> list[tuple[str, int, int]]:
        found = []
        for name, table in (("full", sequence.kv.full), ("sliding", sequence.kv.sliding)):
            index = position // BLOCK - table.dropped
            in_window = name == "full" or position > start - WINDOW
            assert index >= 0 or not in_window
            if index >= 0 and in_window:
                found.append((name, table.blocks[index], position % BLOCK))
        return found

    def check_readable(self, sequence: Sequence, start: int, stop: int) -> None:
        history = self.history(sequence)
        for position in range(stop):
            for place in self.places(sequence, position, start):
                assert self.written[place] == history[position]

    def is_planned_later(self, plan: Plan, sequence: Sequence) -> bool:
        planned = sum(e.stop - e.start for e in plan.encodes if e.sequence is sequence)
        return sequence.encoded + planned != len(sequence.tokens)

    def check_accounts(self) -> None:
        for pool, tables in (
            (self.kv.full, [s.kv.full for s in self.scheduler.sequences]),
            (self.kv.sliding, [s.kv.sliding for s in self.scheduler.sequences]),
        ):
            held = {block for table in tables for block in table.blocks}
            assert pool.free + pool.spare + len(held) == pool.blocks
            assert len(self.prefixes.digest) == len(self.prefixes)


def tokens(chunks: str, tail: int = 0) -> list[int]:
    """A prompt of named chunks and a few tokens more."""
    return [ord(name) for name in chunks for _ in range(BLOCK_TOKENS)] + [7] * tail


@given(
    st.lists(
        st.tuples(
            st.text(alphabet="ab", max_size=5),
            st.integers(0, 40),
            st.integers(1, 6 * LENGTH),
            st.integers(0, 4),
            st.booleans(),
        ),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 4),
    st.integers(28, 80),
    st.integers(16, 60),
    st.sampled_from([256, 512]),
    st.booleans(),
)
@settings(max_examples=60)
def test_whoever_finds_a_prefix_reads_what_it_would_have_written(
    asked: list[tuple[str, int, int, int, bool]], slots: int, full: int, sliding: int, prefill: int, answers: bool
) -> None:
    memory = Memory(slots, full, sliding, prefill, answers)
    added: list[Sequence] = []
    for chunks, tail, most, steps, follows in asked:
        if not chunks and not tail:
            tail = 1
        prompt = tokens(chunks, tail)
        if follows and added:  # the next turn of who came last, as far as that has got
            prompt = [*added[-1].request.prompt, *added[-1].output, *prompt]
        if memory.kv.fits(len(prompt) + most, max(prefill, LENGTH)):
            added.append(memory.add(prompt, most))
        for _ in range(steps):
            memory.step()
    memory.run()
    assert memory.prefixes.make_room(10**6, 10**6) or not len(memory.prefixes)
    assert [pool.free for pool in memory.kv.pools] == [full, sliding], "nothing is lost"
    assert (len(memory.prefixes), memory.prefixes.digest) == (0, ())


def test_the_next_turn_encodes_only_what_is_new() -> None:
    memory = Memory()
    memory.add(tokens("ab", tail=10))
    memory.run()
    assert memory.encoded == 2 * BLOCK_TOKENS + 10
    memory.add(tokens("abc", tail=3))
    memory.run()
    assert memory.encoded == 3 * BLOCK_TOKENS + 13
    assert memory.ended["2"].cached_tokens == memory.cached_at_start["2"] == 2 * BLOCK_TOKENS
    assert memory.ended["2"].work < memory.ended["1"].work
    assert memory.prefixes.digest[:3] == prefix_hashes(tokens("abc")), "the beginning was used last"
    assert (memory.prefixes.asked, memory.prefixes.found) == (5 * BLOCK_TOKENS, 2 * BLOCK_TOKENS)


@pytest.mark.parametrize("kept", [True, False])
def test_the_next_turn_finds_the_answer_before_it_where_answers_are_kept(kept: bool) -> None:
    """A prompt of 266 tokens and an answer of 640: 9 canvases of 64 are encoded, the last is not; 842 // 256 = 3."""
    memory = Memory(keep_answers=kept)
    first = memory.add(tokens("a", tail=10), max_tokens=10 * LENGTH)
    memory.run()
    assert len(memory.prefixes) == (3 if kept else 1)
    turn = [*first.request.prompt, *first.output, 8, 8]
    before = memory.encoded
    memory.add(turn)
    memory.run()
    found = (3 if kept else 1) * BLOCK_TOKENS
    assert memory.cached_at_start["2"] == memory.ended["2"].cached_tokens == found
    assert memory.encoded - before == len(turn) - found
    assert memory.prefixes.digest[:3] == prefix_hashes(turn), "the router finds it by the prompt's own hashes"


def test_an_answer_that_was_not_sent_back_as_it_was_is_not_found() -> None:
    memory = Memory(keep_answers=True)
    first = memory.add(tokens("a", tail=10), max_tokens=10 * LENGTH)
    memory.run()
    changed = [*first.request.prompt, *first.output, 8, 8]
    changed[600] += 1
    memory.add(changed)
    memory.run()
    assert memory.ended["2"].cached_tokens == 2 * BLOCK_TOKENS


def test_a_preempted_sequence_finds_its_own_answer() -> None:
    memory = Memory(keep_answers=True, full=24, sliding=24)
    memory.add(tokens("a"), max_tokens=12 * LENGTH)
    late = memory.add(tokens("b"), max_tokens=12 * LENGTH)
    begun_again: list[int] = []
    for _ in range(200):
        lost = late.lost and late.encoded == 0
        plan = memory.step()
        begun_again += [encode.start for encode in plan.encodes if lost and encode.sequence is late][:1]
    assert memory.scheduler.preemptions
    assert max(begun_again) >= 2 * BLOCK_TOKENS, "it found its prompt alone"
    assert memory.ended["2"].cached_tokens == 0, "what it wrote itself is not what was there"
    assert memory.ended["2"].completion_tokens == 12 * LENGTH


def test_choices_of_one_prompt_that_come_together_encode_it_once() -> None:
    memory = Memory(slots=3)
    for _ in range(3):
        memory.add(tokens("abc", tail=5))
    memory.run()
    assert memory.encoded == 3 * BLOCK_TOKENS + 3 * 5
    assert [memory.ended[name].cached_tokens for name in "123"] == [0, 3 * BLOCK_TOKENS, 3 * BLOCK_TOKENS]


def test_a_prompt_that_is_whole_in_the_cache_denoises_at_once() -> None:
    memory = Memory()
    memory.add(tokens("ab"))
    memory.run()
    memory.add(tokens("ab"))
    plan = memory.step()
    assert (plan.encodes, len(plan.denoises)) == ([], 1)


def test_unused_prefixes_go_before_a_sequence_is_preempted_and_the_oldest_first() -> None:
    memory = Memory(full=16, sliding=16)
    memory.add(tokens("ab"))
    memory.run()
    memory.add(tokens("c"))
    memory.run()
    memory.add(tokens("d", tail=1), max_tokens=3 * LENGTH)
    memory.run()
    assert memory.scheduler.preemptions == 0
    kept = memory.prefixes.digest
    assert set(prefix_hashes(tokens("c"))) <= set(kept)
    assert prefix_hashes(tokens("ab"))[1] not in kept, "the end of the oldest goes first"


def test_sliding_blocks_outside_the_window_are_not_needed() -> None:
    memory = Memory(full=64, sliding=20)
    memory.add(tokens("aaaa", tail=1))
    memory.run()
    # Room for the sliding blocks of others: those of the prefix's beginning go first.
    memory.prefixes.make_room(0, 4)
    memory.add(tokens("aaaa", tail=2))
    memory.run()
    assert memory.ended["2"].cached_tokens == 4 * BLOCK_TOKENS
    memory.add(tokens("a", tail=2))
    memory.run()
    assert memory.ended["3"].cached_tokens == 0, "this end's window is gone"


def test_two_prompts_of_one_hash_are_not_mistaken_for_each_other() -> None:
    kv = KvCache(64, 64, BLOCK, WINDOW)
    cache, one, other = PrefixCache(kv), SequenceKv(), SequenceKv()
    kv.extend(one, BLOCK_TOKENS)
    cache.keep(one, tokens("a"), (5,), 0)
    assert cache.adopt(other, tokens("b"), (5,), 0) == 0
    kv.extend(other, BLOCK_TOKENS)
    cache.keep(other, tokens("b"), (5,), 0)
    kv.close(other)
    assert cache.adopt(other, tokens("a"), (5,), 0) == BLOCK_TOKENS


def test_a_kept_block_is_spare_while_nobody_uses_it() -> None:
    pool = BlockPool("full", 2)
    (block,) = pool.take(1)
    pool.keep(block)
    assert (pool.free, pool.spare, pool.is_idle(block)) == (1, 0, False)
    pool.give_back(block)
    assert (pool.free, pool.spare, pool.is_idle(block)) == (1, 1, True)
    pool.share(block)
    assert pool.spare == 0
    pool.give_back(block)
    pool.drop(block)
    assert (pool.free, pool.spare) == (2, 0)


def test_blocks_across_the_borders_of_chunks_are_refused() -> None:
    with pytest.raises(ValueError, match="blocks of 24 tokens"):
        PrefixCache(KvCache(8, 8, 24, WINDOW))

"""Policy alone, with made-up step results: everybody ends, in turn, and every unit of work is accounted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from easel.engine.native.kv_cache import KvCache
from easel.engine.native.scheduler import Limits, Plan, Scheduler, Told
from easel.engine.native.sequence import Phase, Rules, Sequence, StepResult
from easel.protocol import (
    CanvasCommitted,
    CanvasProgress,
    CanvasStop,
    Denoising,
    Failed,
    Finished,
    GenerationRequest,
    Preempted,
    Started,
)

LENGTH, STOP = 8, 1
RULES = Rules(LENGTH, 4, 0.1, 1, 0.005, frozenset({STOP}))
MOST_WRITTEN = 512


class Bench:
    """A scheduler fed by hand. Canvases come out of `canvas(sequence)`; entropies are high unless it converges."""

    def __init__(self, slots: int = 2, blocks: int = 64, prefill: int = 512, window: int = 10) -> None:
        self.kv = KvCache(blocks, blocks, 4, window)
        self.scheduler = Scheduler(self.kv, Limits(slots, prefill), MOST_WRITTEN)
        self.told: list[Told] = []
        self.order = 0
        self.now = 100.0

    def add(self, rules: Rules = RULES, **request: Any) -> Sequence:
        self.order += 1
        given_ = {"id": str(self.order), "prompt": (5, 6, 7), "max_tokens": 20} | request
        sequence = Sequence(GenerationRequest(**given_), rules, self.now, self.order)
        self.scheduler.add(sequence)
        return sequence

    def step(self, entropy: float = 1.0, canvas: tuple[int, ...] = (9,) * LENGTH, step_s: float = 0.0) -> Plan:
        plan, told = self.scheduler.plan(self.now, step_s)
        results = {s: StepResult(canvas, (entropy,) * LENGTH, (True,) * LENGTH) for s in plan.denoises}
        told += self.scheduler.advance(plan, results, self.now, self.now, step_s)
        self.told += told
        self.check()
        return plan

    def check(self) -> None:
        scheduler = self.scheduler
        assert all(s.seated for s in scheduler.seated)
        assert not any(s.seated or s.kv.full.blocks or s.kv.sliding.blocks for s in scheduler.waiting)
        held = sum(len(s.kv.full.blocks) for s in scheduler.seated)
        assert held + self.kv.full.free == self.kv.full.blocks
        for sequence in scheduler.seated:
            assert len(sequence.kv.full.blocks) == self.kv.blocks_for(sequence.encoded)

    def of(self, sequence: Sequence) -> list[Any]:
        return [event for s, event in self.told if s is sequence]


def test_a_request_goes_through_its_phases_and_its_tokens_leave_before_the_commit() -> None:
    bench = Bench()
    sequence = bench.add(max_tokens=12)
    assert sequence.phase is Phase.WAITING
    plan = bench.step()
    assert [(e.start, e.stop) for e in plan.encodes] == [(0, 3)]
    assert plan.denoises == [sequence], "the first denoising step shares the step that ends the prompt"
    assert sequence.phase is Phase.DENOISE
    bench.step(entropy=0.0)
    assert [type(e) for e in bench.of(sequence)] == [Started, CanvasCommitted]
    assert sequence.phase is Phase.COMMIT
    plan = bench.step()
    assert [(e.start, e.stop) for e in plan.encodes] == [(3, 11)]
    assert plan.denoises == [sequence]
    bench.step(entropy=0.0)
    committed, finished = bench.of(sequence)[2:]
    assert (committed.canvas, committed.token_ids, committed.stop) == (1, (9,) * 4, CanvasStop.CONVERGED)
    assert finished.reason == "length"
    assert not bench.step(), "the last canvas is never encoded"
    assert finished.usage.denoising_steps == 4
    assert finished.usage.work == (3 + 8 + 4 * LENGTH) / 256


def test_prompts_are_cut_at_fixed_places_whatever_the_budget() -> None:
    cuts = []
    for budget in (16, 300, 512, 10_000):
        bench = Bench(blocks=400, prefill=budget)
        sequence = bench.add(prompt=tuple(range(2, 702)))
        found: list[tuple[int, int]] = []
        while sequence.encoded < 700:
            plan = bench.step()
            assert sum(e.stop - e.start for e in plan.encodes) <= max(budget, 256)
            found += [(e.start, e.stop) for e in plan.encodes]
        cuts.append(found)
    assert cuts == [[(0, 256), (256, 512), (512, 700)]] * 4


def test_prefill_is_held_to_its_budget_and_commits_are_not() -> None:
    bench = Bench(slots=4, blocks=400, prefill=256)
    early = bench.add(max_tokens=40)
    bench.step()
    bench.step(entropy=0.0)
    assert early.phase is Phase.COMMIT
    late = [bench.add(prompt=(5,) * 300) for _ in range(2)]
    plan = bench.step()
    assert [(e.sequence, e.stop) for e in plan.encodes] == [(early, 11), (late[0], 256)]


def test_a_long_prompt_is_taken_in_beside_canvases_that_step_every_time() -> None:
    """30,000 tokens among eight that decode: 512 a step, 256 once that is asked for, and nobody misses a step."""
    bench = Bench(slots=9, blocks=9_000)
    running = [bench.add(max_tokens=4_000) for _ in range(8)]
    bench.step()
    late = bench.add(prompt=(5,) * 30_000, max_tokens=LENGTH)
    taken = []
    while late.encoded < 30_000:
        if len(taken) == 20:
            bench.scheduler.limits.prefill_tokens_per_step = 256
        converges = len(taken) % 5 == 4  # commits are not paid for by the budget
        plan = bench.step(entropy=0.0 if converges else 1.0)
        assert set(running) <= set(plan.denoises)
        taken.append(sum(e.stop - e.start for e in plan.encodes if e.sequence is late))
    assert taken == [512] * 20 + [256] * 77 + [30_000 - 20 * 512 - 77 * 256]
    assert all(sequence.denoising_steps == 1 + len(taken) for sequence in running)
    assert late.denoising_steps == 1, "its first step came with its last chunk"


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    bench = Bench(slots=4, blocks=9_000)
    long = bench.add(prompt=(5,) * 10_000)
    bench.step()
    assert long.encoded == 512
    short, middle = bench.add(prompt=(6,) * 200), bench.add(prompt=(7,) * 600)
    plan = bench.step()
    assert [(e.sequence, e.start, e.stop) for e in plan.encodes] == [(long, 512, 768), (short, 0, 200)]
    assert plan.denoises == [short]
    assert {e.sequence for e in bench.step().encodes} == {long, middle}


def test_a_long_prompt_gets_on_however_many_short_ones_come() -> None:
    bench = Bench(slots=4, blocks=9_000)
    long = bench.add(prompt=(5,) * 5_000, max_tokens=LENGTH)
    steps = 0
    while long.encoded < 5_000:
        bench.add(prompt=(6,) * 256, max_tokens=LENGTH, rules=replace(RULES, max_steps=1))
        bench.step()
        steps += 1
    assert steps <= 20, "a chunk of 256 at every step"


def test_who_has_priority_is_prefilled_first_however_long() -> None:
    bench = Bench(slots=4, blocks=9_000)
    plain, urgent = bench.add(prompt=(5,) * 300), bench.add(prompt=(6,) * 2_000, priority=1)
    assert {e.sequence for e in bench.step().encodes} == {urgent}
    assert plain.seated


def test_cut_at_the_stop_token_and_say_which() -> None:
    bench = Bench()
    sequence = bench.add()
    canvas = (9, 9, STOP, 9, 9, 9, 9, 9)
    bench.step(canvas=canvas)
    bench.step(entropy=0.0, canvas=canvas)
    committed, finished = bench.of(sequence)[1:]
    assert committed.token_ids == (9, 9)
    assert (finished.reason, finished.stop_token_id, finished.usage.completion_tokens) == ("stop", STOP, 2)


@pytest.mark.parametrize(("stability", "steps"), [(0, 1), (1, 2), (2, 3), (3, 4)])
def test_stable_means_equal_to_as_many_canvases_before(stability: int, steps: int) -> None:
    bench = Bench()
    sequence = bench.add(rules=replace(RULES, stability=stability, max_steps=9), max_tokens=LENGTH)
    while bench.scheduler.sequences:
        bench.step(entropy=0.0)
    assert bench.of(sequence)[1].steps == steps


def test_step_cap_ends_a_canvas_that_never_converges() -> None:
    bench = Bench()
    sequence = bench.add(max_tokens=LENGTH)
    for _ in range(4):
        bench.step(entropy=1.0)
    committed = bench.of(sequence)[1]
    assert (committed.steps, committed.stop, committed.mean_entropy) == (4, CanvasStop.STEP_CAP, 1.0)


def test_reachable_scope_looks_no_further_than_the_client_will() -> None:
    for scope, expected in (("canvas", CanvasStop.STEP_CAP), ("reachable", CanvasStop.CONVERGED)):
        bench = Bench()
        sequence = bench.add(max_tokens=20, denoising=Denoising(stop_scope=scope))  # type: ignore[arg-type]
        step = 0
        while bench.scheduler.sequences:
            plan, told = bench.scheduler.plan(0.0, 0.0)
            step += 1
            result = StepResult((9, STOP, *range(step, step + 6)), (0.0, 0.0, *[1.0] * 6), (True,) * LENGTH)
            bench.told += told + bench.scheduler.advance(plan, {sequence: result}, 0.0, 0.0, 0.0)
        assert bench.of(sequence)[1].stop is expected


def test_reachable_scope_ends_at_max_tokens() -> None:
    bench = Bench()
    sequence = bench.add(max_tokens=3, denoising=Denoising(stop_scope="reachable"))
    for tail in (4, 5):
        bench.step(entropy=0.0, canvas=(9, 9, 9, *[tail] * 5))
    assert bench.of(sequence)[1].stop is CanvasStop.CONVERGED


def test_a_stop_token_before_min_tokens_does_not_end_an_answer() -> None:
    bench = Bench()
    canvas = (STOP, 9, 9, STOP, 9, 9, 9, 9)
    patient = bench.add(min_tokens=2, max_tokens=LENGTH)
    bench.step(canvas=canvas)
    bench.step(entropy=0.0, canvas=canvas)
    assert bench.of(patient)[1].token_ids == (STOP, 9, 9)


def test_deadline_commits_the_best_so_far() -> None:
    bench = Bench()
    sequence = bench.add(rules=replace(RULES, bounded_at=bench.now + 2.5))
    bench.step(step_s=1.0)
    bench.now += 2.0
    bench.step(step_s=1.0)  # another step would end at 3.0
    committed, finished = bench.of(sequence)[1:]
    assert (committed.stop, committed.token_ids, committed.steps) == (CanvasStop.DEADLINE, (9,) * LENGTH, 1)
    assert finished.reason == "deadline"
    assert not bench.scheduler.sequences


def test_deadline_between_canvases_keeps_what_is_there() -> None:
    bench = Bench()
    sequence = bench.add(rules=replace(RULES, bounded_at=bench.now + 5.0))
    bench.step(step_s=1.0)
    bench.step(entropy=0.0, step_s=1.0)
    bench.now += 4.5
    bench.step(step_s=1.0)
    assert [type(e) for e in bench.of(sequence)] == [Started, CanvasCommitted, Finished]
    assert bench.of(sequence)[-1].reason == "deadline"


def test_deadline_before_anything_is_an_error() -> None:
    bench = Bench(slots=1)
    bench.add()
    late = bench.add(rules=replace(RULES, bounded_at=bench.now + 1.0))
    bench.step()
    bench.now += 2.0
    bench.step()
    assert bench.of(late)[0].code == "deadline_exceeded"


def test_seats_go_by_priority_then_arrival() -> None:
    bench = Bench(slots=1)
    first, second, urgent = bench.add(), bench.add(), bench.add(priority=1)
    while bench.scheduler.sequences:
        bench.step(entropy=0.0)
    started = [sequence for sequence, event in bench.told if isinstance(event, Started)]
    assert started == [urgent, first, second]


def test_preempts_whoever_came_last_and_nobody_twice_told_started() -> None:
    bench = Bench(slots=3, blocks=10)
    old, young = bench.add(max_tokens=33), bench.add(max_tokens=33)
    while bench.scheduler.sequences:
        bench.step(entropy=0.0)
    assert not any(isinstance(e, Preempted) for e in bench.of(old))
    assert any(isinstance(e, Preempted) for e in bench.of(young))
    for sequence in (old, young):
        assert sum(isinstance(e, Started) for e in bench.of(sequence)) == 1
        assert bench.of(sequence)[-1].reason == "length"
    assert bench.scheduler.preemptions > 0


def test_fewer_slots_leave_seats_to_those_who_sit() -> None:
    bench = Bench(slots=2)
    bench.add(), bench.add(), bench.add()
    bench.step()
    bench.scheduler.limits.slots = 1
    assert len(bench.step().denoises) == 2


def test_cancelled_and_failed_give_everything_back() -> None:
    bench = Bench(slots=1)
    seated, waiting = bench.add(), bench.add()
    bench.step()
    bench.told += bench.scheduler.finish(waiting, "cancelled")
    assert bench.of(waiting)[-1].reason == "cancelled"
    from easel.errors import EngineFailed

    bench.told += bench.scheduler.fail(seated, EngineFailed("broken"))
    failed = bench.of(seated)[-1]
    assert (failed.code, failed.message, failed.retryable) == ("engine_failed", "broken", True)
    assert bench.kv.full.free == bench.kv.full.blocks
    assert not bench.scheduler.sequences


def test_progress_tells_what_changed_as_often_as_wanted() -> None:
    bench = Bench()
    sequence = bench.add(rules=replace(RULES, max_steps=10), progress_hz=2.0)
    bench.step(canvas=(1,) * 8)
    bench.step(canvas=(2,) * 8)
    bench.now += 0.5
    bench.step(canvas=(2, 3, *[1] * 6))
    told = [e for e in bench.of(sequence) if isinstance(e, CanvasProgress)]
    assert [(e.step, e.positions, e.token_ids) for e in told] == [
        (1, tuple(range(8)), (1,) * 8),
        (3, (0, 1), (2, 3)),
    ]


def test_remaining_work_counts_no_steps_that_a_request_will_not_take() -> None:
    bench = Bench()
    sequence = bench.add(max_tokens=2 * LENGTH)  # 4 steps a canvas at the most, and one commit
    assert sequence.remaining_work(16.0) == (3 + 2 * 4 * LENGTH + LENGTH) / 256
    bench.step()
    assert sequence.remaining_work(16.0) == ((2 * 4 - 1) * LENGTH + LENGTH) / 256
    assert sequence.remaining_work(3.0) == ((2 * 3 - 1) * LENGTH + LENGTH) / 256


def test_steps_a_canvas_are_learned() -> None:
    bench = Bench()
    bench.add(rules=replace(RULES, max_steps=48), max_tokens=400)
    before, work = bench.scheduler.steps_a_canvas, bench.scheduler.remaining_work
    assert work > 0
    for _ in range(40):
        bench.step(entropy=0.0)
    assert bench.scheduler.steps_a_canvas < before
    assert bench.scheduler.remaining_work < work


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_everybody_ends_and_nothing_is_lost(data: st.DataObject) -> None:
    slots, blocks = data.draw(st.integers(1, 4)), data.draw(st.integers(12, 40))
    bench = Bench(slots, blocks, prefill=data.draw(st.sampled_from([16, 512])), window=data.draw(st.integers(2, 20)))
    added: list[Sequence] = []
    for _ in range(400):
        if len(added) < 8 and data.draw(st.booleans()):
            sequence = bench.add(
                prompt=(5,) * data.draw(st.integers(1, 20)),
                max_tokens=data.draw(st.integers(1, 30)),
                priority=data.draw(st.integers(0, 1)),
            )
            assert bench.kv.fits(sequence.most_encoded(), 32)
            added.append(sequence)
        if len(added) == 8 and not bench.scheduler.sequences:
            break
        bench.step(entropy=data.draw(st.sampled_from([0.0, 0.0, 1.0])))
    assert not bench.scheduler.sequences, "somebody starves"
    for sequence in added:
        events = bench.of(sequence)
        committed = [e for e in events if isinstance(e, CanvasCommitted)]
        assert isinstance(events[0], Started)
        assert isinstance(events[-1], Finished)
        assert not any(isinstance(e, Finished | Failed) for e in events[:-1])
        assert sum(len(e.token_ids) for e in committed) == sequence.request.max_tokens
        assert [e.canvas for e in committed] == list(range(len(committed)))
    assert all(pool.free == pool.blocks for pool in bench.kv.pools)

"""The fake engine speaks the protocol: legal order of events, equal answers under any load, nothing left behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from types import SimpleNamespace

import pytest

from easel.engine import fake
from easel.engine.fake import FakeEngine, Script, endless_words, published_steps
from easel.errors import Draining, EaselError, EngineFailed, NotReady
from easel.protocol import (
    CanvasCommitted,
    CanvasProgress,
    CanvasStop,
    Denoising,
    Engine,
    EngineLimits,
    EngineState,
    Event,
    Failed,
    Finished,
    GenerationRequest,
    Sampling,
    Started,
)


def request(name: str = "a", **changes: object) -> GenerationRequest:
    return replace(GenerationRequest(id=name, prompt=(2, 5), max_tokens=40), **changes)  # type: ignore[arg-type]


async def collect(engine: FakeEngine, wanted: GenerationRequest) -> list[Event]:
    return [event async for event in engine.generate(wanted)]


def tokens(events: list[Event]) -> tuple[int, ...]:
    return tuple(token for event in events if isinstance(event, CanvasCommitted) for token in event.token_ids)


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    engine = FakeEngine(slots=2, step_s=0.0, step_s_per_canvas=0.0, canvas_length=16)
    await engine.start()
    yield engine
    await engine.stop()


async def test_is_an_engine(engine: FakeEngine) -> None:
    assert isinstance(engine, Engine)


async def test_events_come_in_a_legal_order_and_add_up(engine: FakeEngine) -> None:
    events = await collect(engine, request(progress_hz=1e9))
    assert isinstance(events[0], Started)
    last = events[-1]
    assert isinstance(last, Finished)
    assert last.reason == "length"
    committed = [event for event in events if isinstance(event, CanvasCommitted)]
    assert [event.canvas for event in committed] == [0, 1, 2]
    assert [len(event.token_ids) for event in committed] == [16, 16, 8]
    assert last.usage.denoising_steps == sum(event.steps for event in committed)
    assert last.usage.completion_tokens == 40
    assert any(isinstance(event, CanvasProgress) for event in events)


async def test_without_confidence_each_canvas_takes_all_its_steps(engine: FakeEngine) -> None:
    events = await collect(engine, request(denoising=Denoising(max_steps=48, confidence=0.0)))
    assert [event.steps for event in events if isinstance(event, CanvasCommitted)] == [48, 48, 48]
    usual = await collect(engine, request())
    assert any(event.steps < 48 for event in usual if isinstance(event, CanvasCommitted))


async def test_the_same_request_gets_the_same_answer_alone_and_in_company(engine: FakeEngine) -> None:
    wanted = [request(str(i), sampling=Sampling(seed=i)) for i in range(8)]
    alone = [tokens(await collect(engine, one)) for one in wanted]
    together = await asyncio.gather(*(collect(engine, one) for one in wanted))
    assert [tokens(events) for events in together] == alone
    assert len(set(alone)) > 1


async def test_a_resumed_request_goes_on_as_if_it_had_never_stopped(engine: FakeEngine) -> None:
    whole = tokens(await collect(engine, request()))
    rest = tokens(await collect(engine, request(resume=whole[:16])))
    assert whole[:16] + rest == whole


async def test_a_short_answer_ends_with_a_stop() -> None:
    engine = FakeEngine(step_s=0, step_s_per_canvas=0, script=Script(answer=lambda r: endless_words(r)[:3]))
    await engine.start()
    events = await collect(engine, request())
    assert isinstance(events[-1], Finished)
    assert (events[-1].reason, len(tokens(events))) == ("stop", 3)
    await engine.stop()


async def test_closing_the_iterator_frees_the_slot(engine: FakeEngine) -> None:
    events = engine.generate(request(max_tokens=100_000))
    await anext(events)
    assert engine.stats().sequences == 1
    await events.aclose()  # type: ignore[attr-defined]
    assert engine.stats().sequences == 0


async def test_cancel_ends_with_that_reason(engine: FakeEngine) -> None:
    task = asyncio.create_task(collect(engine, request(max_tokens=100_000)))
    while not engine.stats().sequences:
        await asyncio.sleep(0)
    assert engine.cancel("a")
    last = (await task)[-1]
    assert isinstance(last, Finished)
    assert last.reason == "cancelled"
    assert not engine.cancel("a")


async def test_a_deadline_commits_the_best_so_far(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(fake, "time", SimpleNamespace(time=lambda: now[0], perf_counter=time.perf_counter))
    events = []
    async for event in engine.generate(request(max_tokens=100_000, denoising=Denoising(deadline_at=2000.0))):
        events.append(event)
        if isinstance(event, CanvasCommitted):
            now[0] = 3000.0
    assert isinstance(events[-1], Finished)
    assert events[-1].reason == "deadline"
    committed = [event for event in events if isinstance(event, CanvasCommitted)]
    assert committed[-1].stop is CanvasStop.DEADLINE
    late = await collect(engine, request(denoising=Denoising(deadline_at=2000.0)))
    assert isinstance(late[-1], Failed)
    assert late[-1].code == "deadline_exceeded"


async def test_no_more_sequences_than_slots_and_the_rest_waits(engine: FakeEngine) -> None:
    tasks = [asyncio.create_task(collect(engine, request(str(i)))) for i in range(5)]
    seen = 0
    while not all(task.done() for task in tasks):
        seen = max(seen, engine.stats().sequences)
        await asyncio.sleep(0)
    assert seen == 2
    assert engine.stats().remaining_work == 0


async def test_limits_change_while_it_runs(engine: FakeEngine) -> None:
    await engine.reconfigure(EngineLimits(slots=1, max_denoising_steps=3))
    events = await collect(engine, request())
    committed = [event for event in events if isinstance(event, CanvasCommitted)]
    assert {(event.steps, event.stop) for event in committed} == {(3, CanvasStop.STEP_CAP)}
    assert engine.stats().slots == 1


async def test_without_a_bound_a_canvas_at_the_checkpoints_cap_is_at_the_cap() -> None:
    """`None` in the settings reaches engines as a bound that nothing reaches."""
    engine = FakeEngine(step_s=0.0, canvas_length=16, script=Script(steps=lambda wanted, canvas: fake.STEP_CAP))
    await engine.start()
    await engine.reconfigure(EngineLimits(max_denoising_steps=1024))
    committed = [event for event in await collect(engine, request()) if isinstance(event, CanvasCommitted)]
    assert {event.stop for event in committed} == {CanvasStop.STEP_CAP}
    await engine.stop()


async def test_a_scripted_failure_fails_that_request_alone() -> None:
    def fail(wanted: GenerationRequest, canvas: int) -> EaselError | None:
        return EngineFailed("poisoned") if wanted.id == "bad" and canvas == 1 else None

    engine = FakeEngine(step_s=0, step_s_per_canvas=0, canvas_length=16, script=Script(fail=fail))
    await engine.start()
    bad, good = await asyncio.gather(collect(engine, request("bad")), collect(engine, request("good")))
    assert bad[-1] == Failed("engine_failed", "poisoned", True)
    assert isinstance(good[-1], Finished)
    await engine.stop()


async def test_draining_finishes_what_runs_and_refuses_what_comes(engine: FakeEngine) -> None:
    running = asyncio.create_task(collect(engine, request()))
    while not engine.stats().sequences:
        await asyncio.sleep(0)
    draining = asyncio.create_task(engine.drain())
    await asyncio.sleep(0)
    with pytest.raises(Draining):
        await collect(engine, request("b"))
    await draining
    assert isinstance((await running)[-1], Finished)


async def test_takes_nothing_before_it_is_ready() -> None:
    with pytest.raises(NotReady):
        await collect(FakeEngine(), request())


async def test_stopping_fails_what_runs(engine: FakeEngine) -> None:
    running = asyncio.create_task(collect(engine, request(max_tokens=100_000)))
    while not engine.stats().sequences:
        await asyncio.sleep(0)
    await engine.stop()
    last = (await running)[-1]
    assert isinstance(last, Failed)
    assert (last.code, last.retryable) == ("engine_stopped", True)
    assert engine.stats().state is EngineState.STOPPED


def test_steps_follow_what_was_published() -> None:
    drawn = [published_steps(request(sampling=Sampling(seed=i)), 0) for i in range(2000)]
    assert min(drawn) >= 10
    assert 0.18 < sum(steps == 48 for steps in drawn) / len(drawn) < 0.24

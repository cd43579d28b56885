"""The replica's shell over the fake engine: its life, its health, its limits and what it exports."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any, cast

import pytest

from easel.engine.fake import FakeEngine, Script
from easel.errors import EngineFailed
from easel.protocol import EngineState, EngineStats, Event, Finished, GenerationRequest, KvPool
from easel.rayserve import replica as module
from easel.rayserve.replica import EngineReplica
from easel.settings import ModelSettings
from easel.telemetry import names
from easel.telemetry.engine_account import EngineAccount
from easel.telemetry.recorder import MemoryRecorder

LONG = GenerationRequest("long", (1, 2), 100_000)


class Patient(FakeEngine):
    """A fake whose statistics can be overridden, as a broken engine's would be."""

    def __init__(self) -> None:
        super().__init__(slots=2, step_s=0.001, script=Script(steps=lambda request, canvas: 48))
        self.override: dict[str, Any] = {}

    def stats(self) -> EngineStats:
        return replace(super().stats(), **self.override)


@pytest.fixture
async def engine() -> Patient:
    return Patient()


@pytest.fixture
async def recorder() -> MemoryRecorder:
    return MemoryRecorder()


@pytest.fixture
async def replica(engine: Patient, recorder: MemoryRecorder) -> AsyncIterator[EngineReplica]:
    made = object.__new__(EngineReplica)
    account = EngineAccount("easel", recorder)
    await cast("Any", made).__init__("easel", ModelSettings(), lambda model: engine, account, 30.0)
    yield made
    await made.close()


async def test_loads_before_it_counts_as_up(replica: EngineReplica) -> None:
    assert (await replica.stats()).state is EngineState.READY


async def told(replica: EngineReplica, request: GenerationRequest) -> list[Event]:
    return [event async for bundle in replica.generate(request) for event in bundle]


async def test_generates(replica: EngineReplica) -> None:
    events = await told(replica, GenerationRequest("a", (1,), 8))
    assert isinstance(events[-1], Finished)


async def test_counts_what_canvases_and_requests_took(replica: EngineReplica, recorder: MemoryRecorder) -> None:
    request = GenerationRequest("a", (1, 2, 3), 300)
    [finished] = [event for event in await told(replica, request) if isinstance(event, Finished)]
    assert recorder.total(names.CANVASES, model="easel", stop="step_cap") == 2
    assert recorder.total(names.STEPS_PER_CANVAS, model="easel") == 96
    assert recorder.total(names.PROMPT_TOKENS, model="easel") == 3
    assert recorder.total(names.OUTPUT_TOKENS, model="easel") == 300
    assert recorder.total(names.WORK, model="easel") == pytest.approx(finished.usage.work)


async def test_closing_the_generator_frees_the_slot(replica: EngineReplica) -> None:
    async with aclosing(cast("Any", replica.generate(LONG))) as events:
        await anext(events)
        assert (await replica.stats()).sequences == 1
    assert (await replica.stats()).sequences == 0


async def test_cancelling_the_task_frees_the_slot(replica: EngineReplica) -> None:
    async def consume() -> None:
        async for _ in replica.generate(LONG):
            pass

    task = asyncio.create_task(consume())
    while (await replica.stats()).sequences == 0:
        await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (await replica.stats()).sequences == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"state": EngineState.FAILED, "failure": "out of memory"}, "out of memory"),
        ({"state": EngineState.STOPPED}, "stopped"),
        ({"last_step_at": time.time() - 60}, "last turned"),
    ],
)
async def test_health_notices(replica: EngineReplica, engine: Patient, override: dict[str, Any], message: str) -> None:
    await replica.check_health()
    engine.override = override
    with pytest.raises(EngineFailed, match=message):
        await replica.check_health()


async def test_one_that_was_told_to_stop_is_not_ill(replica: EngineReplica, engine: Patient) -> None:
    await replica.close()
    assert engine.stats().state is EngineState.STOPPED
    await replica.check_health()


async def test_a_loop_that_was_busy_for_less_is_healthy(replica: EngineReplica, engine: Patient) -> None:
    engine.override = {"last_step_at": time.time() - 2}
    await replica.check_health()
    engine.override = {"state": EngineState.DRAINING, "last_step_at": time.time() - 60}
    await replica.check_health()


async def test_limits_are_taken_up_and_a_bound_is_lifted(replica: EngineReplica) -> None:
    async def steps() -> int:
        events = await told(replica, GenerationRequest("a", (1,), 8))
        assert isinstance(events[-1], Finished)
        return events[-1].usage.denoising_steps

    await replica.reconfigure({"slots": 1, "max_denoising_steps": 3, "prefill_tokens_per_step": None})
    assert (await replica.stats()).slots == 1
    assert await steps() == 3
    await replica.reconfigure({"slots": 2, "max_denoising_steps": None})
    assert await steps() == 48


async def test_the_log_level_is_taken_up(replica: EngineReplica) -> None:
    logger = logging.getLogger("easel")
    before = logger.level
    try:
        await replica.reconfigure({"slots": 2, "log_level": "ERROR"})
        assert logger.level == logging.ERROR
        with pytest.raises(ValueError, match="log_level: 'LOUD'"):
            await replica.reconfigure({"log_level": "LOUD"})
        assert (await replica.stats()).slots == 2
    finally:
        logger.setLevel(before)


async def test_an_unknown_limit_is_refused(replica: EngineReplica) -> None:
    with pytest.raises(ValueError, match="no such live limit: solts"):
        await replica.reconfigure({"solts": 3})


async def test_exports_gauges_and_what_was_added_to_counters(
    replica: EngineReplica, engine: Patient, recorder: MemoryRecorder
) -> None:
    recorder.values.clear()
    pool = KvPool("full", blocks=8, free=3, block_tokens=32)
    for total in (10.0, 10.0, 25.0):
        counters = {names.STEPS.name: total + 1000, names.PREEMPTIONS.name: 0.0}
        engine.override = {"counters": counters, "kv_pools": (pool,), "remaining_work": 7.5}
        replica._statistics.export(engine.stats(), time.time())
    assert recorder.total(names.STEPS, model="easel") == 1025.0
    assert recorder.values[names.KV_BLOCKS_FREE.name, (("model", "easel"), ("pool", "full"))] == [3, 3, 3]
    assert recorder.total(names.REMAINING_WORK) == 22.5


async def test_statistics_that_fail_do_not_end_the_export(
    replica: EngineReplica, engine: Patient, recorder: MemoryRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STATS_PERIOD_S", 0.001)
    engine.override = {"counters": None}
    exporter = asyncio.create_task(replica._export())
    await asyncio.sleep(0.01)
    engine.override = {}
    recorder.values.clear()
    while not recorder.values:
        await asyncio.sleep(0.001)
    exporter.cancel()

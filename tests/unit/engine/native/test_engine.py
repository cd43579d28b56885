"""The engine as its callers see it, with a real thread and a tiny random model."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from easel.engine.native import engine as engine_module
from easel.engine.native.assembly import assemble
from easel.engine.native.engine import NativeEngine
from easel.engine.native.runner import Runner
from easel.errors import ConfigurationError, ContextLengthExceeded, Draining, EngineFailed, InvalidRequest, NotReady
from easel.prefixes import prefix_hashes
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
    GpuStats,
    Sampling,
    Started,
)
from easel.settings import EngineSettings
from tests.unit.engine.native.tiny import reference, save

SETTINGS = EngineSettings(
    device="cpu", threads=2, slots=4, context_tokens=512, kv_block_tokens=8, prefill_tokens_per_step=64
)


@pytest.fixture
async def engine(checkpoint: Path) -> AsyncIterator[NativeEngine]:
    engine = NativeEngine(checkpoint, SETTINGS)
    await engine.start()
    yield engine
    await engine.stop()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("easel-")]


def _request(id_: str = "a", max_tokens: int = 16, steps: int = 3, **fields: Any) -> GenerationRequest:
    base = GenerationRequest(
        id=id_, prompt=tuple(range(5, 25)), max_tokens=max_tokens, ignore_eos=True,
        denoising=Denoising(max_steps=steps),
    )  # fmt: skip
    return replace(base, **fields)


async def _events(engine: NativeEngine, request: GenerationRequest) -> list[Event]:
    return [event async for event in engine.generate(request)]


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


def _tokens(events: list[Event]) -> list[int]:
    return [token for event in events if isinstance(event, CanvasCommitted) for token in event.token_ids]


async def test_events_come_in_order_and_end_once(engine: NativeEngine) -> None:
    assert isinstance(engine, Engine)
    events = await _events(engine, _request(max_tokens=20, progress_hz=1000.0))
    assert isinstance(events[0], Started)
    assert events[0].runtime.endswith(", deterministic")
    assert isinstance(events[-1], Finished)
    committed = [event for event in events if isinstance(event, CanvasCommitted)]
    assert [event.canvas for event in committed] == [0, 1, 2]
    assert [len(event.token_ids) for event in committed] == [8, 8, 4]
    assert [event.steps for event in committed] == [3, 3, 3]
    assert any(isinstance(event, CanvasProgress) for event in events)
    usage = events[-1].usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.canvases, usage.denoising_steps) == (20, 20, 3, 9)


async def test_sixteen_at_once_say_what_each_says_alone(engine: NativeEngine) -> None:
    requests = [_request(str(i), max_tokens=1 + 3 * i, sampling=Sampling(seed=i)) for i in range(16)]
    together = await asyncio.gather(*(_events(engine, request) for request in requests))
    for request, events in zip(requests, together, strict=True):
        assert len(_tokens(events)) == request.max_tokens
        assert _tokens(await _events(engine, request)) == _tokens(events)
    stats = engine.stats()
    assert (stats.state, stats.sequences, stats.waiting, stats.remaining_work) == (EngineState.READY, 0, 0, 0.0)
    assert all(pool.free == pool.blocks for pool in stats.kv_pools)
    assert stats.step_time.samples > 0
    assert stats.counters["easel_engine_steps_total"] > 0


async def test_a_prefix_from_the_cache_changes_no_token(engine: NativeEngine, checkpoint: Path) -> None:
    request = _request(prompt=tuple(5 + i % 20 for i in range(300)), max_tokens=20)
    first, again = await _events(engine, request), await _events(engine, request)
    assert _tokens(first) == _tokens(again)
    starts = [event.cached_tokens for event in (*first, *again) if isinstance(event, Started)]
    ends = [event.usage.cached_tokens for event in (*first, *again) if isinstance(event, Finished)]
    assert starts == ends == [0, 256]
    assert engine.stats().prefix_digest == prefix_hashes(request.prompt)
    assert all(pool.free == pool.blocks for pool in engine.stats().kv_pools), "kept blocks are there to be had"
    forgetful = NativeEngine(checkpoint, SETTINGS.model_copy(update={"prefix_cache": False}))
    await forgetful.start()
    try:
        for _ in range(2):
            events = await _events(forgetful, request)
            assert _tokens(events) == _tokens(first)
            assert isinstance(events[-1], Finished)
            assert events[-1].usage.cached_tokens == 0
    finally:
        await forgetful.stop()


@pytest.mark.parametrize(("exact", "found"), [(True, 256), (False, 512)])
async def test_the_next_turn_of_a_chat_finds_the_answer_where_bits_may_differ(
    tmp_path: Path, exact: bool, found: int
) -> None:
    """A prompt of 500 tokens and two committed canvases of 8: 512 only with the first of them, and half the second."""
    settings = SETTINGS.model_copy(update={"context_tokens": 1024, "kv_block_tokens": 32})
    engine = NativeEngine(save(reference(sliding_window=600), tmp_path), settings, exact=exact)
    await engine.start()
    try:
        first = _request(prompt=tuple(5 + i % 20 for i in range(500)), max_tokens=24)
        answer = _tokens(await _events(engine, first))
        turn = _request(prompt=(*first.prompt, *answer, 7, 8), max_tokens=4)
        events = await _events(engine, turn)
        assert isinstance(events[-1], Finished)
        assert events[-1].usage.cached_tokens == found
        assert engine.stats().prefix_digest[:2] == prefix_hashes(turn.prompt)
    finally:
        await engine.stop()


async def test_logprobs_come_with_the_canvas_where_asked(engine: NativeEngine) -> None:
    events = await _events(engine, _request(max_tokens=11, sampling=Sampling(logprobs=2)))
    for event in events:
        if isinstance(event, CanvasCommitted):
            assert event.logprobs is not None
            assert len(event.logprobs) == len(event.token_ids)
            for token, logprob in zip(event.token_ids, event.logprobs, strict=True):
                assert logprob.top[0] == (token, logprob.logprob)
                assert len(logprob.top) == 2
                assert logprob.logprob <= 0


async def test_what_fp32_does_not_hold_draws_the_likeliest_and_fails_nobody(engine: NativeEngine) -> None:
    greedy = await _events(engine, _request(sampling=Sampling(temperature=0.0)))
    assert _tokens(greedy) != _tokens(await _events(engine, _request()))
    for sampling in (Sampling(temperature=1e-46), Sampling(temperature=5e-5), Sampling(top_p=1e-46)):
        assert _tokens(await _events(engine, _request(sampling=sampling))) == _tokens(greedy)


async def test_closing_the_iterator_frees_the_slot(engine: NativeEngine) -> None:
    async with aclosing(engine.generate(_request(max_tokens=400, steps=40))) as events:  # type: ignore[type-var]
        async for event in events:
            assert isinstance(event, Started)
            break
    await _until(lambda: engine.stats().sequences == 0)
    assert not engine.cancel("a"), "it is gone"
    assert all(pool.free == pool.blocks for pool in engine.stats().kv_pools)


async def test_cancel_ends_with_its_reason(engine: NativeEngine) -> None:
    reader = asyncio.create_task(_events(engine, _request(max_tokens=400, steps=40)))
    await _until(lambda: engine.stats().sequences == 1)
    assert engine.cancel("a")
    finished = (await reader)[-1]
    assert isinstance(finished, Finished)
    assert finished.reason == "cancelled"
    assert not engine.cancel("a")
    assert not engine.cancel("never heard of")


async def test_deadline_brings_the_best_so_far(engine: NativeEngine) -> None:
    await _events(engine, _request())  # so that it knows how long a step takes
    denoising = Denoising(max_steps=10_000, deadline_at=time.time() + 2.0, confidence=0.0)
    events = await _events(engine, _request(max_tokens=8, denoising=denoising))
    [committed] = [event for event in events if isinstance(event, CanvasCommitted)]
    assert committed.stop is CanvasStop.DEADLINE
    assert isinstance(events[-1], Finished)
    assert events[-1].reason == "length"  # the one canvas there was to be
    assert len(_tokens(events)) == 8
    late = Denoising(deadline_at=time.time() - 1)
    failed = (await _events(engine, _request(denoising=late)))[-1]
    assert isinstance(failed, Failed)
    assert failed.code == "deadline_exceeded"


async def test_refuses_before_the_first_event(engine: NativeEngine) -> None:
    with pytest.raises(ContextLengthExceeded):
        await _events(engine, _request(max_tokens=493))
    with pytest.raises(InvalidRequest, match="token ids"):
        await _events(engine, _request(prompt=(96,)))
    reader = asyncio.create_task(_events(engine, _request("twice", max_tokens=400)))
    await _until(lambda: engine.stats().sequences == 1)
    with pytest.raises(InvalidRequest, match="in flight"):
        await _events(engine, _request("twice"))
    engine.cancel("twice")
    assert isinstance((await reader)[-1], Finished)


async def test_drains_by_finishing_what_runs(engine: NativeEngine) -> None:
    readers = [asyncio.create_task(_events(engine, _request(str(i), max_tokens=40))) for i in range(6)]
    await _until(lambda: engine.stats().sequences == 4)
    await engine.drain()
    assert engine.stats().state is EngineState.DRAINING
    with pytest.raises(Draining):
        await _events(engine, _request("late"))
    for reader in readers:
        assert len(_tokens(await reader)) == 40


async def test_stop_fails_what_runs(checkpoint: Path) -> None:
    engine = NativeEngine(checkpoint, SETTINGS)
    with pytest.raises(NotReady):
        await _events(engine, _request())
    await engine.start()
    readers = [asyncio.create_task(_events(engine, _request(str(i), max_tokens=400, steps=48))) for i in range(6)]
    await _until(lambda: engine.stats().sequences == 4)
    await engine.stop()
    for reader in readers:
        failed = (await reader)[-1]
        assert isinstance(failed, Failed)
        assert (failed.code, failed.retryable) == ("engine_stopped", True)
    assert engine.stats().state is EngineState.STOPPED
    with pytest.raises(NotReady):
        await _events(engine, _request())


async def test_a_step_that_raises_fails_everybody_and_the_engine(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = NativeEngine(checkpoint, SETTINGS)
    await engine.start()
    run = Runner.run

    def break_later(self: Runner, plan: Any) -> Any:
        if any(sequence.step == 2 for sequence in plan.denoises):
            raise RuntimeError("a secret of the machine")
        return run(self, plan)

    monkeypatch.setattr(Runner, "run", break_later)
    for events in await asyncio.gather(*(_events(engine, _request(str(i), max_tokens=100)) for i in range(6))):
        failed = events[-1]
        assert isinstance(failed, Failed)
        assert (failed.code, failed.retryable) == ("engine_failed", True)
        assert "secret" not in failed.message
    await _until(lambda: engine.stats().state is EngineState.FAILED)
    assert "a secret of the machine" in engine.stats().failure
    assert "a step failed" in caplog.text
    with pytest.raises(EngineFailed):
        await _events(engine, _request())
    await engine.stop()
    assert engine.stats().state is EngineState.FAILED


async def test_a_step_that_runs_out_of_memory_names_settings(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(self: Runner, plan: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")

    engine = NativeEngine(checkpoint, SETTINGS)
    await engine.start()
    monkeypatch.setattr(Runner, "run", full)
    failed = (await _events(engine, _request()))[-1]
    assert isinstance(failed, Failed)
    assert "memory" not in failed.message
    await _until(lambda: engine.stats().state is EngineState.FAILED)
    for told in (engine.stats().failure, caplog.text):
        assert "lower slots" in told
        assert "Tried to allocate 1.00 GiB" in told
    await engine.stop()


async def test_a_step_that_hangs_fails_everybody_and_the_engine_stops_without_it(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = NativeEngine(checkpoint, SETTINGS.model_copy(update={"step_timeout_s": 2.0}))
    await engine.start()
    run, let_go = Runner.run, threading.Event()

    def hang_later(self: Runner, plan: Any) -> Any:
        if any(sequence.step == 2 for sequence in plan.denoises):
            let_go.wait()
        return run(self, plan)

    monkeypatch.setattr(Runner, "run", hang_later)
    for events in await asyncio.gather(*(_events(engine, _request(str(i), max_tokens=100)) for i in range(6))):
        failed = events[-1]
        assert isinstance(failed, Failed)
        assert (failed.code, failed.retryable) == ("engine_failed", True)
    assert engine.stats().state is EngineState.FAILED
    assert "a step has not ended for" in engine.stats().failure
    with pytest.raises(EngineFailed):
        await _events(engine, _request())
    await engine.stop()
    assert not engine._loop.join(0), "the thread is still in its step"
    let_go.set()
    assert await asyncio.to_thread(engine._loop.join, 30)


async def test_an_engine_that_was_stopped_while_it_loaded_leaves_no_watch(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go = threading.Event()

    def late(*arguments: Any) -> Any:
        let_go.wait(30)
        return assemble(*arguments)

    monkeypatch.setattr(engine_module, "assemble", late)
    engine = NativeEngine(checkpoint, SETTINGS)
    starting = asyncio.create_task(engine.start())
    await asyncio.sleep(0)
    stopping = asyncio.create_task(engine.stop())
    await asyncio.sleep(0)
    let_go.set()
    await asyncio.gather(starting, stopping)
    assert engine.stats().state is EngineState.STOPPED
    assert engine._watcher is None


async def test_a_gpu_that_fails_ends_the_engine_and_its_memory_is_in_the_statistics(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Driver:
        xid: ClassVar[list[int]] = []

        def read(self) -> GpuStats:
            return GpuStats("card", 3, 4, 0.5)

        def xids(self) -> list[int]:
            return self.xid

    monkeypatch.setattr(engine_module, "find_driver", Driver)
    monkeypatch.setattr(engine_module, "assemble", lambda *a: replace(assemble(*a), device="cuda"))
    engine = NativeEngine(checkpoint, SETTINGS)
    await engine.start()
    assert engine.stats().gpu == GpuStats("card", 3, 4, 0.5)
    Driver.xid = [79]
    await _until(lambda: engine.stats().state is EngineState.FAILED)
    assert "Xid 79" in engine.stats().failure
    await engine.stop()


async def test_start_raises_what_is_wrong_with_the_checkpoint(tmp_path: Path) -> None:
    engine = NativeEngine(tmp_path, SETTINGS)
    with pytest.raises(ConfigurationError, match=r"config\.json"):
        await engine.start()
    assert engine.stats().state is EngineState.FAILED
    await engine.stop()


async def test_slots_cannot_be_raised_above_what_the_runner_has_room_for(
    engine: NativeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runner, "most_slots", 3)
    await engine.reconfigure(EngineLimits(slots=3))
    with pytest.raises(InvalidRequest, match="above 3") as refused:
        await engine.reconfigure(EngineLimits(slots=4))
    assert refused.value.param == "slots"


async def test_limits_change_while_it_runs(engine: NativeEngine) -> None:
    await engine.reconfigure(EngineLimits(slots=2, max_denoising_steps=2))
    readers = [asyncio.create_task(_events(engine, _request(str(i), max_tokens=200))) for i in range(4)]
    await _until(lambda: engine.stats().slots == 2 and engine.stats().sequences == 2)
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    events = await _events(engine, _request(max_tokens=8))
    assert [event.steps for event in events if isinstance(event, CanvasCommitted)] == [2]
    with pytest.raises(InvalidRequest, match="slots"):
        await engine.reconfigure(EngineLimits(slots=0))


async def test_an_idle_loop_shows_that_it_is_alive(engine: NativeEngine) -> None:
    first = engine.stats().last_step_at
    await _until(lambda: engine.stats().last_step_at > first)


async def test_a_reader_that_does_not_read_costs_one_progress_event_a_canvas(engine: NativeEngine) -> None:
    events = engine.generate(_request(max_tokens=8, steps=30, progress_hz=1e6))
    assert isinstance(await anext(events), Started)
    await _until(lambda: engine.stats().sequences == 0)
    left = [event async for event in events]
    assert [type(event) for event in left] == [CanvasProgress, CanvasCommitted, Finished]


async def test_bfloat16_and_a_small_cache_are_settings(checkpoint: Path) -> None:
    engine = NativeEngine(checkpoint, SETTINGS.model_copy(update={"dtype": "bfloat16", "kv_tokens": 64}))
    await engine.start()
    assert {pool.name: pool.blocks for pool in engine.stats().kv_pools} == {"full": 8, "sliding": 8}
    assert len(_tokens(await _events(engine, _request()))) == 16
    with pytest.raises(ContextLengthExceeded):
        await _events(engine, _request(max_tokens=60))
    await engine.stop()

"""The vLLM engine over the recorded interface: what it hands over, what it makes of outputs, and how things end."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from easel.engine.native.sequence import Rules
from easel.engine.vllm.engine import VllmEngine
from easel.engine.vllm.interface import load_interface
from easel.engine.vllm.seats import Seats
from easel.engine.vllm.translation import Canvases, engine_args
from easel.errors import ConfigurationError, ContextLengthExceeded, Draining, EngineFailed, InvalidRequest, NotReady
from easel.protocol import (
    CanvasCommitted,
    CanvasStop,
    Denoising,
    EngineLimits,
    EngineState,
    Event,
    Failed,
    Finished,
    GenerationRequest,
    Sampling,
    Started,
)
from easel.settings import EngineSettings, ModelSettings
from tests.contract.engines.recorded_vllm import NEUTRAL, RECORD, ClientError, RecordedLLM, Script, recorded

MODEL = ModelSettings(checkpoint="embedded:tiny", engine=EngineSettings(kind="vllm", slots=2, context_tokens=512))
EOS = 106


def words(prompt: tuple[int, ...]) -> list[int]:
    return [128 + index % 100 for index in range(600)]


def ends_after(count: int) -> Script:
    return lambda prompt: [*words(prompt)[:count], EOS, *range(20)]


@asynccontextmanager
async def running(script: Script = words, together: int = 1, **settings: Any) -> AsyncIterator[VllmEngine]:
    chosen = MODEL.engine.model_copy(update=settings)
    engine = VllmEngine(MODEL.folder, chosen, recorded(16, script, together))
    await engine.start()
    yield engine
    await engine.stop()


def llm() -> RecordedLLM:
    return RecordedLLM.started[-1]


def _request(id_: str = "a", max_tokens: int = 40, **fields: Any) -> GenerationRequest:
    return replace(GenerationRequest(id=id_, prompt=(2, 130, 131), max_tokens=max_tokens), **fields)


async def _events(engine: VllmEngine, request: GenerationRequest) -> list[Event]:
    return [event async for event in engine.generate(request)]


def _committed(events: list[Event]) -> list[CanvasCommitted]:
    return [event for event in events if isinstance(event, CanvasCommitted)]


async def test_what_is_handed_over() -> None:
    async with running(top := words, max_denoising_steps=30) as engine:
        await _events(engine, _request(sampling=Sampling(top_p=0.9, top_k=7, logprobs=2), stop_token_ids=(9,)))
        await _events(engine, _request(ignore_eos=True, denoising=Denoising(max_steps=5)))
        arguments, [first, second] = llm().arguments, llm().params
    assert top is words
    assert (first.n, first.max_tokens, first.top_p, first.top_k, first.logprobs) == (1, 40, 0.9, 7, 2)
    assert first.stop_token_ids == [1, 9, 50, 106]
    assert second.stop_token_ids == []
    assert first.extra_args == {"diffusion_max_steps": 30}
    assert second.extra_args == {"diffusion_max_steps": 5}
    for params in (first, second):
        assert params.output_kind == "DELTA"
        assert params.ignore_eos
        assert params.prompt_logprobs is None, "it ends vLLM's engine"
        assert all(getattr(params, name) == value for name, value in NEUTRAL.items())
    assert arguments.model == str(MODEL.folder)
    assert (arguments.max_num_seqs, arguments.max_model_len, arguments.max_num_batched_tokens) == (2, 512, 544)
    assert arguments.skip_tokenizer_init
    assert not arguments.enable_log_requests


@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize(
    ("script", "max_tokens", "sizes", "reason", "stop"),
    [
        (words, 40, [16, 16, 8], "length", None),
        (words, 32, [16, 16], "length", None),
        (ends_after(20), 40, [16, 4], "stop", EOS),
        (ends_after(16), 40, [16, 0], "stop", EOS),
        (ends_after(0), 40, [0], "stop", EOS),
        (ends_after(31), 40, [16, 15], "stop", EOS),
    ],
)
async def test_canvases_and_ends(
    script: Script, max_tokens: int, sizes: list[int], reason: str, stop: int | None, together: int
) -> None:
    async with running(script, together) as engine:
        events = await _events(engine, _request(max_tokens=max_tokens, sampling=Sampling(logprobs=3)))
    committed, last = _committed(events), events[-1]
    assert isinstance(events[0], Started)
    assert [len(event.token_ids) for event in committed] == sizes
    assert [event.canvas for event in committed] == list(range(len(sizes)))
    assert [token for event in committed for token in event.token_ids] == words(())[: sum(sizes)]
    for event in committed:
        assert (event.steps, event.stop) == (0, CanvasStop.UNKNOWN)
        assert event.started_at <= event.finished_at
        assert event.logprobs is not None
        assert [len(entry.top) for entry in event.logprobs] == [3] * len(event.token_ids)
        assert [entry.top[0][0] for entry in event.logprobs] == list(event.token_ids)
    assert isinstance(last, Finished)
    assert (last.reason, last.stop_token_id) == (reason, stop)
    assert (last.usage.completion_tokens, last.usage.canvases) == (sum(sizes), len(sizes))
    assert last.usage.denoising_steps == 0
    assert last.usage.work == pytest.approx((3 + len(sizes) * 21 * 16 - 16) / 256)


async def test_requests_beyond_the_slots_wait_here_and_go_by_priority() -> None:
    order: list[str] = []

    async def run(engine: VllmEngine, request: GenerationRequest) -> None:
        async for event in engine.generate(request):
            if isinstance(event, Started):
                order.append(request.id)

    async with running() as engine:
        llm().hold = hold = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for id_, priority in (("a", 0), ("b", 0), ("c", 0), ("d", 5), ("e", 0)):
                group.create_task(run(engine, _request(id_, priority=priority)))
                await asyncio.sleep(0.001)
            stats = engine.stats()
            assert (stats.slots, stats.sequences, stats.waiting) == (2, 2, 3)
            assert stats.remaining_work > 0
            await engine.reconfigure(EngineLimits(slots=1))
            hold.set()
        assert order == ["a", "b", "d", "c", "e"]
        assert llm().most_active == 2
        stats = engine.stats()
        assert (stats.sequences, stats.waiting, stats.remaining_work) == (0, 0, 0.0)


async def test_a_deadline_ends_with_the_canvases_that_there_are() -> None:
    async with running() as engine:
        llm().hold = asyncio.Event()
        soon = Denoising(deadline_at=1.0)
        for _ in range(3):
            events = await _events(engine, _request(denoising=soon))
            assert isinstance(events[-1], Failed)
            assert events[-1].code == "deadline_exceeded", "nothing came, so there is nothing to answer"
        assert not llm().active
        assert engine.stats().sequences == 0
        llm().hold.set()
        stream = engine.generate(_request(denoising=Denoising(deadline_at=time.time() + 3600)))
        events = []
        async for event in stream:
            events.append(event)
            if isinstance(event, CanvasCommitted) and event.canvas == 0:
                llm().hold.clear()
                engine._running["a"].end("deadline")
    assert isinstance(events[-1], Finished)
    assert (events[-1].reason, events[-1].usage.completion_tokens) == ("deadline", len(_committed(events)) * 16)
    assert len(_committed(events)) in (1, 2)


@pytest.mark.parametrize("how", ["cancel", "close", "task"])
async def test_cancelling_aborts_in_vllm_and_frees_the_seat(how: str) -> None:
    async with running(slots=1) as engine:
        llm().hold = hold = asyncio.Event()
        events: list[Event] = []

        async def read(stream: Any) -> None:
            async for event in stream:
                events.append(event)

        stream = engine.generate(_request("gone"))
        reading = asyncio.create_task(read(stream))
        while not llm().active:
            await asyncio.sleep(0.001)
        if how == "cancel":
            assert engine.cancel("gone")
            await reading
            assert isinstance(events[-1], Finished)
            assert events[-1].reason == "cancelled"
        else:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            if how == "close":
                await stream.aclose()  # type: ignore[attr-defined]
        while engine.stats().sequences:
            await asyncio.sleep(0.001)
        assert llm().aborted == ["gone"]
        assert not engine.cancel("gone")
        hold.set()
        assert len(_committed(await _events(engine, _request("gone")))) == 3


async def test_cancelling_what_waits_never_reaches_vllm() -> None:
    async with running(slots=1) as engine:
        llm().hold = hold = asyncio.Event()
        first = asyncio.create_task(_events(engine, _request("first")))
        second = asyncio.create_task(_events(engine, _request("second")))
        third = asyncio.create_task(_events(engine, _request("third", denoising=Denoising(deadline_at=1.0))))
        while engine.stats().waiting != 1:
            await asyncio.sleep(0.001)
        assert engine.cancel("second")
        assert isinstance((await second)[-1], Finished)
        assert [type(event) for event in await third] == [Failed]
        hold.set()
        assert len(_committed(await first)) == 3
        assert len(llm().params) == 1


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("seed", {"sampling": Sampling(seed=1)}),
        ("temperature", {"sampling": Sampling(temperature=0.0)}),
        ("logit_bias", {"sampling": Sampling(logit_bias=((5, 1.0),))}),
        ("min_tokens", {"min_tokens": 1}),
        ("progress_hz", {"progress_hz": 5.0}),
        ("canvas_length", {"denoising": Denoising(canvas_length=8)}),
        ("logprobs", {"sampling": Sampling(logprobs=65)}),
        ("prompt", {"prompt": (5000,)}),
    ],
)
async def test_refused_before_vllm_sees_it(param: str, fields: dict[str, Any]) -> None:
    async with running() as engine:
        with pytest.raises(InvalidRequest) as caught:
            await _events(engine, _request(**fields))
        assert caught.value.param == param
        with pytest.raises(ContextLengthExceeded):
            await _events(engine, _request(max_tokens=512))
        assert not llm().params
        assert engine.stats().waiting == 0


async def test_what_vllm_refuses_or_breaks_on_is_told(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    async with running() as engine:

        def refuse(params: Any) -> None:
            raise ClientError("too long")

        monkeypatch.setattr(llm(), "_check", refuse)
        [_, failed] = await _events(engine, _request())
        assert isinstance(failed, Failed)
        assert (failed.code, failed.retryable) == ("invalid_value", False)
        assert "too long" in failed.message

        def break_(params: Any) -> None:
            raise RuntimeError("secret words of a prompt")

        monkeypatch.setattr(llm(), "_check", break_)
        [_, failed] = await _events(engine, _request())
        assert isinstance(failed, Failed)
        assert failed.code == "engine_failed"
        assert "secret" not in failed.message
        assert engine.stats().state is EngineState.READY
        assert engine.stats().sequences == 0


async def test_death_of_the_engine_process_is_a_failed_engine() -> None:
    async with running() as engine:
        llm().hold = hold = asyncio.Event()
        dying = asyncio.create_task(_events(engine, _request()))
        while not llm().active:
            await asyncio.sleep(0.001)
        llm().errored = True
        assert engine.stats().state is EngineState.FAILED
        hold.set()
        assert isinstance((await dying)[-1], Failed)
        assert "died" in engine.stats().failure
        with pytest.raises(EngineFailed):
            await _events(engine, _request())


async def test_stopping_and_draining() -> None:
    async with running() as engine:
        llm().hold = asyncio.Event()
        both = [asyncio.create_task(_events(engine, _request(str(i)))) for i in range(3)]
        while engine.stats().waiting != 1:
            await asyncio.sleep(0.001)
        draining = asyncio.create_task(engine.drain())
        await asyncio.sleep(0)
        with pytest.raises(Draining):
            await _events(engine, _request("late"))
        await engine.stop()
        await draining
        for events in await asyncio.gather(*both):
            assert isinstance(events[-1], Failed)
            assert events[-1].code == "engine_stopped"
        assert llm().down
        with pytest.raises(NotReady):
            await _events(engine, _request("later"))


async def test_live_limits() -> None:
    async with running() as engine:
        await engine.reconfigure(EngineLimits(slots=2, prefill_tokens_per_step=512, max_denoising_steps=3))
        finished = (await _events(engine, _request()))[-1]
        assert llm().params[0].extra_args == {"diffusion_max_steps": 3}
        assert isinstance(finished, Finished)
        assert finished.usage.work == pytest.approx((3 + 3 * (3 + 1) * 16 - 16) / 256), "no more steps than it may take"
        for limits in (EngineLimits(slots=3), EngineLimits(prefill_tokens_per_step=64), EngineLimits(slots=0)):
            with pytest.raises(InvalidRequest):
                await engine.reconfigure(limits)


@pytest.mark.parametrize(
    ("name", "value"),
    [("deterministic", True), ("kv_tokens", 4096), ("kv_block_tokens", 16), ("threads", 2), ("device", "cpu")],
)
def test_settings_that_would_be_ignored_are_refused(name: str, value: Any) -> None:
    settings = MODEL.engine.model_copy(update={name: value})
    with pytest.raises(ConfigurationError, match=name):
        engine_args(Path("folder"), settings, 16, 512)


def _output(tokens: list[int], finish: str | None = None, logprobs: Any = None, outputs: int = 1) -> Any:
    one = SimpleNamespace(token_ids=tokens, logprobs=logprobs, finish_reason=finish)
    return SimpleNamespace(outputs=[one] * outputs, finished=finish is not None, num_cached_tokens=2)


def test_outputs_that_are_not_as_recorded_are_no_guess() -> None:
    def canvases(**sampling: Any) -> Canvases:
        rules = Rules(16, 48, 0.1, 1, 0.005, frozenset({EOS}))
        return Canvases(_request(sampling=Sampling(**sampling)), rules, 0.0)

    for output in (_output([1], outputs=2), _output([128], "stop"), _output([], "stop"), _output([1], "repetition")):
        with pytest.raises(ValueError, match="vLLM"):
            canvases().take(output, 1.0)
    with pytest.raises(ValueError, match="0 of 1"):
        canvases(logprobs=1).take(_output([128]), 1.0)
    ours = canvases()
    [committed] = ours.take(_output([5], "abort"), 1.0)
    assert (ours.reason, committed.token_ids, ours.usage().cached_tokens) == ("cancelled", (5,), 2)


async def test_a_seat_that_is_given_to_somebody_who_leaves_is_given_on() -> None:
    seats = Seats(1)
    await seats.take(0)
    leaving, staying = (asyncio.create_task(seats.take(0)) for _ in range(2))
    await asyncio.sleep(0)
    seats.give_back()  # to the one that leaves
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await staying
    assert (seats.taken, seats.waiting) == (1, 0)


def test_the_record_is_what_vllm_has() -> None:
    """Where vLLM imports: names, parameters and defaults of the real thing against the record."""
    pytest.importorskip("vllm", reason="vLLM is not installed: it needs a GPU host")
    real = load_interface()
    for name in ("generate", "shutdown", "from_engine_args"):
        recorded_ = RECORD["callables"][f"AsyncLLM.{name}"]
        parameters = inspect.signature(getattr(real.AsyncLLM, name)).parameters
        kept = [one for one in recorded_["positional"] if one not in ("cls",) or name != "from_engine_args"]
        assert list(parameters) == [*kept, *recorded_["keyword_only"]]
    known = set(inspect.signature(real.AsyncEngineArgs).parameters)
    assert known >= set(engine_args(MODEL.folder, MODEL.engine, 16, 512))
    params = real.SamplingParams()
    for name in RECORD["refused_for_diffusion"]:
        assert getattr(params, name) in (NEUTRAL[name], None, [])
    assert [kind.name for kind in real.RequestOutputKind] == RECORD["fields"]["RequestOutputKind"]

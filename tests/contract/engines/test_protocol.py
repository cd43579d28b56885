"""What every engine keeps to, whatever decodes in it: the events, the accounts, cancelling, and what it refuses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from easel.capabilities import TABLE, supports
from easel.errors import ContextLengthExceeded, InvalidRequest, UnsupportedParameter
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
from tests.contract.engines.conftest import Case
from tests.contract.engines.kinds import BYTE, CANVAS, CONTEXT

# transformers' generate imports torch's compiler, which warns about itself.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
on_one_loop = pytest.mark.asyncio(loop_scope="module")

PROMPT = (2,)
"""A prompt without a question, to which the checkpoint has no answer: in two steps every draw is to be seen."""


def make(id_: str = "a", max_tokens: int = 40, **fields: Any) -> GenerationRequest:
    """To its `max_tokens`, in few steps."""
    base = GenerationRequest(
        id=id_, prompt=PROMPT, max_tokens=max_tokens, ignore_eos=True, denoising=Denoising(max_steps=2)
    )
    return replace(base, **fields)


async def events_of(engine: Engine, request: GenerationRequest) -> list[Event]:
    return [event async for event in engine.generate(request)]


def canvases(events: list[Event]) -> list[CanvasCommitted]:
    return [event for event in events if isinstance(event, CanvasCommitted)]


def tokens(events: list[Event]) -> list[int]:
    return [token for event in canvases(events) for token in event.token_ids]


def end(events: list[Event]) -> Finished:
    last = events[-1]
    assert isinstance(last, Finished), last
    return last


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


@on_one_loop
async def test_it_says_what_it_is(case: Case) -> None:
    assert isinstance(case.engine, Engine)
    assert case.engine.name == case.kind.kind
    assert case.engine.supports == supports(case.kind.kind)
    stats = case.engine.stats()
    assert (stats.state, stats.sequences, stats.waiting, stats.remaining_work) == (EngineState.READY, 0, 0, 0.0)
    assert stats.slots >= 1
    assert stats.last_step_at == pytest.approx(time.time(), abs=60)


@pytest.mark.parametrize("max_tokens", [1, CANVAS, CANVAS + 1, 40])
@on_one_loop
async def test_events_and_accounts(case: Case, max_tokens: int) -> None:
    events = await events_of(case.engine, make(max_tokens=max_tokens))
    committed, last = canvases(events), end(events)
    assert isinstance(events[0], Started)
    assert events[0].waited_s >= 0
    assert not [event for event in events[1:-1] if isinstance(event, Started | Finished | Failed)]
    assert [event.canvas for event in committed] == list(range(len(committed)))
    assert [len(event.token_ids) for event in committed[:-1]] == [CANVAS] * (len(committed) - 1)
    assert len(tokens(events)) == max_tokens
    assert last.reason == "length"
    assert last.stop_token_id is None
    for event in committed:
        assert event.logprobs is None
        assert event.started_at <= event.finished_at
    usage = last.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(PROMPT), max_tokens)
    assert usage.canvases == len(committed) == -(-max_tokens // CANVAS)
    assert usage.denoising_steps == sum(event.steps for event in committed)
    assert usage.work > 0
    if case.kind.tells_steps:
        assert {event.steps for event in committed} == {2}
        assert {event.stop for event in committed} <= {CanvasStop.STEP_CAP, CanvasStop.CONVERGED}
    else:
        assert {(event.steps, event.stop) for event in committed} == {(0, CanvasStop.UNKNOWN)}


@on_one_loop
async def test_alone_and_in_company_it_says_the_same(case: Case) -> None:
    if not case.kind.seeded:
        pytest.skip("no seeds: answers differ by chance")
    requests = [make(str(index), 10 + 9 * index, sampling=Sampling(seed=index)) for index in range(5)]
    together = await asyncio.gather(*(events_of(case.engine, request) for request in requests))
    for request, events in zip(requests, together, strict=True):
        assert tokens(await events_of(case.engine, request)) == tokens(events)
    assert len({tuple(tokens(events)[:10]) for events in together}) == len(together), "each seed has its own draws"


@on_one_loop
async def test_choices_of_one_seed_differ(case: Case) -> None:
    if not case.kind.seeded:
        pytest.skip("no seeds: answers differ by chance")
    answers = [tokens(await events_of(case.engine, make(choice=choice))) for choice in (0, 1, 0)]
    assert answers[0] == answers[2] != answers[1]


@pytest.mark.parametrize("how", ["cancel", "close"])
@on_one_loop
async def test_leaving_frees_the_slot(case: Case, how: str) -> None:
    engine = case.engine
    gone = [make(f"gone{index}", 400, denoising=Denoising(max_steps=8)) for index in range(4)]
    streams = [engine.generate(request) for request in gone]
    for stream in streams[: engine.stats().slots]:
        assert isinstance(await anext(stream), Started)
    if how == "cancel":
        rest = [asyncio.create_task(_rest(stream)) for stream in streams]
        await asyncio.sleep(0)
        assert [engine.cancel(request.id) for request in gone] == [True] * 4
        for events in await asyncio.gather(*rest):
            assert end(events).reason == "cancelled"
            assert end(events).usage.completion_tokens == len(tokens(events)) < 400
        assert not engine.cancel(gone[0].id)
    else:
        for stream in streams:
            await stream.aclose()  # type: ignore[attr-defined]
    await until(lambda: not engine.stats().sequences and not engine.stats().waiting)
    assert engine.stats().remaining_work == 0.0
    assert len(tokens(await events_of(engine, make(gone[0].id)))) == 40


async def _rest(stream: Any) -> list[Event]:
    return [event async for event in stream]


@on_one_loop
async def test_what_does_not_fit_is_refused_by_name(case: Case) -> None:
    if case.kind.kind == "fake":
        pytest.skip("the fake has neither a context nor a vocabulary")
    with pytest.raises(ContextLengthExceeded):
        await events_of(case.engine, make(max_tokens=CONTEXT))
    for param, fields in (("prompt", {"prompt": (9999,)}), ("stop_token_ids", {"stop_token_ids": (-1,)})):
        with pytest.raises(InvalidRequest) as caught:
            await events_of(case.engine, make(**fields))
        assert caught.value.param == param


@on_one_loop
async def test_an_id_that_is_in_flight_is_refused(case: Case) -> None:
    stream = case.engine.generate(make("twice", 400, denoising=Denoising(max_steps=8)))
    assert isinstance(await anext(stream), Started)
    with pytest.raises(InvalidRequest, match="in flight") as caught:
        await events_of(case.engine, make("twice"))
    assert caught.value.param == "id"
    await stream.aclose()  # type: ignore[attr-defined]
    await until(lambda: not case.engine.stats().sequences)


@on_one_loop
async def test_leaving_an_answer_that_is_there_ends_no_other_of_its_id(case: Case) -> None:
    unread = case.engine.generate(make("same", CANVAS))
    assert isinstance(await anext(unread), Started)
    await until(lambda: not case.engine.stats().sequences)
    running = case.engine.generate(make("same", 200, denoising=Denoising(max_steps=8)))
    assert isinstance(await anext(running), Started)
    await unread.aclose()  # type: ignore[attr-defined]
    assert end(await _rest(running)).reason == "length"


@pytest.mark.parametrize("name", ["slots", "prefill_tokens_per_step", "max_denoising_steps"])
@on_one_loop
async def test_a_limit_below_one_is_refused_by_name(case: Case, name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"{name}: 0") as caught:
        await case.engine.reconfigure(EngineLimits(**{name: 0}))
    assert caught.value.param == name


@on_one_loop
async def test_the_bound_on_steps_in_force_is_in_the_statistics(case: Case) -> None:
    await case.engine.reconfigure(EngineLimits(max_denoising_steps=7))
    await until(lambda: case.engine.stats().max_denoising_steps == 7)
    await case.engine.reconfigure(EngineLimits(slots=1))
    await until(lambda: case.engine.stats().slots == 1)
    assert case.engine.stats().max_denoising_steps == 7
    await case.engine.reconfigure(EngineLimits(slots=2, max_denoising_steps=1024))


def sampled(**fields: Any) -> dict[str, Any]:
    return {"sampling": Sampling(**fields)}


def denoised(**fields: Any) -> dict[str, Any]:
    return {"denoising": Denoising(**({"max_steps": 2} | fields))}


A, B = BYTE + 97, BYTE + 98
ASKED: dict[str, dict[str, Any]] = {
    "seed": sampled(seed=9),
    "temperature": sampled(temperature=0.5),
    "top_p": sampled(top_p=0.5),
    "top_k": sampled(top_k=3),
    "min_p": sampled(min_p=0.2),
    "logit_bias": sampled(logit_bias=((A, -100.0),)),
    "presence_penalty": sampled(presence_penalty=1.0),
    "frequency_penalty": sampled(frequency_penalty=1.0),
    "logprobs": sampled(logprobs=2),
    "grammar": sampled(grammar="root ::= x"),
    "min_tokens": {"min_tokens": 5},
    "ignore_eos": {"ignore_eos": True},
    "stop_token_ids": {"stop_token_ids": (5,)},
    "resume": {"resume": (BYTE,) * CANVAS},
    "pinned": {"pinned": ((0, A),)},
    "max_steps": denoised(max_steps=3),
    "entropy_bound": denoised(entropy_bound=0.5),
    "stability": denoised(stability=2),
    "confidence": denoised(confidence=0.5),
    "canvas_length": denoised(canvas_length=CANVAS),
    "stop_scope": denoised(stop_scope="reachable"),
    "deadline_at": denoised(deadline_at=4e9),
    "progress_hz": {"progress_hz": 1e6},
}
"""Each parameter of the table, set to something but its default."""


def test_every_parameter_of_the_table_is_tried() -> None:
    assert set(ASKED) == set(TABLE)


@pytest.mark.parametrize("field", TABLE)
@on_one_loop
async def test_a_parameter_is_served_or_refused_as_the_table_says(case: Case, field: str) -> None:
    request = make(**ASKED[field])
    if TABLE[field][case.kind.kind].works:
        assert (
            len(tokens(await events_of(case.engine, request))) == 40 - len(request.resume) or field == "stop_token_ids"
        )
        return
    with pytest.raises(UnsupportedParameter) as caught:
        await events_of(case.engine, request)
    assert caught.value.param == field
    assert f"the {case.kind.kind} engine" in caught.value.message
    assert case.engine.stats().waiting == 0


EFFECTS: dict[str, set[str]] = {
    "seed": {"fake", "native", "reference"},
    "logit_bias": {"fake", "native", "reference"},
    "logprobs": {"fake", "native", "reference", "vllm"},
    "stop_token_ids": {"fake", "native", "reference", "vllm"},
    "min_tokens": {"fake", "native", "reference"},
    "max_steps": {"fake", "native", "reference"},
    "confidence": {"native", "reference"},
    "deadline_at": {"fake", "native", "reference", "vllm"},
    "progress_hz": {"fake", "native", "reference"},
    "resume": {"fake", "native"},
    "canvas_length": {"fake", "native", "reference", "vllm"},
    "pinned": {"native"},
}
"""What is looked at below, and on which engines: where it works and its effect can be told from outside."""


def test_effects_are_looked_for_where_the_table_promises_them() -> None:
    for field, kinds in EFFECTS.items():
        assert {kind for kind, support in TABLE[field].items() if support.works} >= kinds


@pytest.mark.parametrize("field", EFFECTS)
@on_one_loop
async def test_a_parameter_does_what_it_says(case: Case, field: str) -> None:
    if case.kind.kind not in EFFECTS[field]:
        pytest.skip(TABLE[field][case.kind.kind].words or "its effect is not to be seen from outside")
    engine = case.engine
    plain = await events_of(engine, make())
    said = tokens(plain)
    asked = await events_of(engine, make(**ASKED[field]))
    match field:
        case "seed":
            assert tokens(asked) != said
            assert tokens(await events_of(engine, make(**ASKED[field]))) == tokens(asked)
        case "logit_bias":
            forced = await events_of(engine, make(**sampled(logit_bias=((A, 100.0),))))
            assert set(tokens(forced)) == {A}
            banned = await events_of(engine, make(**sampled(logit_bias=((said[0], -100.0),))))
            assert said[0] not in tokens(banned)
        case "logprobs":
            for event in canvases(asked):
                assert event.logprobs is not None
                assert len(event.logprobs) == len(event.token_ids)
                for entry in event.logprobs:
                    assert entry.logprob <= 0.0
                    assert len(entry.top) == 2
                    assert entry.top[0][1] >= entry.top[1][1]
        case "stop_token_ids" | "min_tokens":
            stop = said[20]
            first = said.index(stop)
            stopped = await events_of(engine, make(stop_token_ids=(stop,)))
            assert tokens(stopped) == said[:first]
            assert (end(stopped).reason, end(stopped).stop_token_id) == ("stop", stop)
            if field == "min_tokens":
                later = await events_of(engine, make(stop_token_ids=(stop,), min_tokens=first + 1))
                assert len(tokens(later)) > first
        case "max_steps":
            one = await events_of(engine, make(denoising=Denoising(max_steps=1)))
            assert {event.steps for event in canvases(one)} == {1}
        case "confidence":
            easy = await events_of(engine, make(**denoised(confidence=100.0, stability=0, max_steps=5)))
            never = await events_of(engine, make(**denoised(confidence=0.0, stability=0, max_steps=5)))
            assert {(event.steps, event.stop) for event in canvases(easy)} == {(1, CanvasStop.CONVERGED)}
            assert {(event.steps, event.stop) for event in canvases(never)} == {(5, CanvasStop.STEP_CAP)}
        case "deadline_at":
            late = await events_of(engine, make(**denoised(deadline_at=1.0)))
            assert isinstance(late[-1], Failed)
            assert (late[-1].code, late[-1].retryable) == ("deadline_exceeded", False)
            assert not canvases(late)
        case "progress_hz":
            shown = [event for event in asked if isinstance(event, CanvasProgress)]
            assert {event.canvas for event in shown} <= {0, 1, 2}
            assert shown
            assert {len(shown[0].positions), len(shown[0].token_ids), len(shown[0].entropies)} == {CANVAS}
            assert tokens(asked) == said
        case "resume":
            going_on = await events_of(engine, make(resume=tuple(said[:CANVAS])))
            assert tokens(going_on) == said[CANVAS:]
            assert [event.canvas for event in canvases(going_on)] == [1, 2]
        case "canvas_length":
            with pytest.raises(InvalidRequest) as caught:
                await events_of(engine, make(**denoised(canvas_length=CANVAS - 1)))
            assert caught.value.param == "canvas_length"
        case "pinned":
            assert tokens(asked)[0] == A

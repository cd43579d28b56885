"""Choices run side by side, and none of them outlives its call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from easel.api.answer_text import AnswerText
from easel.api.choices import Delta, Outcome, SideBySide, run_choice
from easel.api.detokenizer import ByteLevelDetokenizer
from easel.errors import EaselError, EngineFailed, QueueFull
from easel.protocol import CanvasCommitted, CanvasStop, Event, Failed, Finished, GenerationRequest, Started, Usage
from tests.unit.api.edge import until

REQUEST = GenerationRequest(id="a", prompt=(1,) * 256, max_tokens=64)
BYTES = {byte: bytes([byte]) for byte in range(256)}


def committed(text: str) -> CanvasCommitted:
    return CanvasCommitted(0, tuple(text.encode()), 3, CanvasStop.CONVERGED, 0.0, 1.0)


class Scripted:
    """Plays events; an exception among them is raised, `...` waits for ever. Says whether it was closed."""

    def __init__(self, *events: object) -> None:
        self.events = events
        self.asked = 0
        self.closed = False

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
        try:
            for event in self.events:
                self.asked += 1
                if event is ...:
                    await asyncio.Event().wait()
                if isinstance(event, BaseException):
                    raise event
                yield event  # type: ignore[misc]
        finally:
            self.closed = True

    async def ready(self) -> str | None:
        return None


def choice(backend: Scripted, index: int = 0, *stops: str):  # type: ignore[no-untyped-def]
    return run_choice(backend, REQUEST, index, AnswerText(lambda: ByteLevelDetokenizer(BYTES), stops), 256)


async def all_of(backend: Scripted, *stops: str) -> list[Delta]:
    return [delta async for delta in choice(backend, 0, *stops)]


async def to_the_end(side: SideBySide) -> None:
    while not side.ended:
        await side.next()


async def test_the_first_delta_comes_with_the_first_event() -> None:
    backend = Scripted(Started(0.0), ...)
    deltas = choice(backend)
    assert await anext(deltas) == Delta(0)
    await deltas.aclose()
    assert backend.closed


async def test_an_outcome_has_the_engines_usage() -> None:
    usage = Usage(256, 8, 2, 1, 3, 4.5)
    deltas = await all_of(Scripted(Started(0.0), committed("ab"), Finished("stop", usage)))
    assert deltas[1:] == [Delta(0, "ab", True, 2, 3), Delta(0, outcome=Outcome("stop", ((3, "converged"),), 2, 8, 4.5))]


async def test_a_stop_string_ends_the_work_before_the_last_delta_is_out() -> None:
    backend = Scripted(Started(0.0, cached_tokens=128), committed("abS"), committed("TOPcd"), ...)
    deltas = await all_of(backend, "STOP")
    assert "".join(delta.text for delta in deltas) == "ab"
    assert backend.closed
    assert backend.asked == 3
    # half a prompt, and two canvases of three steps and a commit
    assert deltas[-1].outcome == Outcome("stop", ((3, "converged"),) * 2, 6, 128, 8.5)


async def test_what_was_held_back_for_a_stop_string_comes_out_at_the_end() -> None:
    deltas = await all_of(Scripted(committed("abSTO"), Finished("length", Usage())), "STOP")
    assert [delta.text for delta in deltas] == ["", "ab", "STO"]


async def test_a_stop_string_may_be_completed_by_the_end_of_a_broken_character() -> None:
    backend = Scripted(CanvasCommitted(0, (ord("a"), 0xE2), 1, CanvasStop.STEP_CAP, 0, 1), Finished("length", Usage()))
    deltas = await all_of(backend, "\ufffd")
    assert "".join(delta.text for delta in deltas) == "a"
    assert deltas[-1].outcome is not None
    assert deltas[-1].outcome.reason == "stop"


@pytest.mark.parametrize(
    ("failed", "error", "retryable"),
    [
        (Failed("queue_full", "x", True), "internal_error", True),
        (Failed("engine_failed", "It broke.", True), "engine_failed", True),
        (Failed("engine_failed", "It always breaks.", False), "engine_failed", False),
        (Failed("invalid_value", "No.", False, "n"), "invalid_value", False),
    ],
)
async def test_a_failed_event_becomes_the_error_it_stands_for(failed: Failed, error: str, retryable: bool) -> None:
    backend = Scripted(Started(0.0), failed)
    with pytest.raises(EaselError) as caught:
        await all_of(backend)
    assert caught.value.code == error
    assert caught.value.retryable is retryable
    assert caught.value.param == failed.param or error == "internal_error"
    assert backend.closed


async def test_one_failure_closes_all_choices() -> None:
    endless, broken = Scripted(Started(0.0), ...), Scripted(Started(0.0), EngineFailed("x"))
    side = SideBySide([choice(endless, 0), choice(broken, 1)])
    with pytest.raises(EngineFailed):
        await to_the_end(side)
    assert not endless.closed
    await side.close()
    assert endless.closed
    assert broken.closed


async def test_silence_disturbs_nothing() -> None:
    gate = asyncio.Event()

    class Slow(Scripted):
        async def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
            yield Started(0.0)
            await gate.wait()
            yield committed("a")
            yield Finished("stop", Usage())

    side = SideBySide([choice(Slow())])
    assert await side.next(0.001) == Delta(0)
    assert await side.next(0.001) is None
    assert await side.next(0.001) is None
    gate.set()
    assert await side.next() == Delta(0, "a", True, 1, 3)
    assert not side.ended
    last = await side.next()
    assert last is not None
    assert last.outcome is not None
    assert side.ended
    await side.close()


async def test_closing_goes_on_where_the_closer_is_cancelled() -> None:
    ended = asyncio.Event()

    class Slow(Scripted):
        async def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
            try:
                yield Started(0.0)
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.01)
                ended.set()

    side = SideBySide([choice(Slow())])
    await side.next()
    await side.next(0.001)
    closing = asyncio.create_task(side.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await until(ended.is_set)


async def test_closing_before_the_beginning_asks_for_nothing() -> None:
    backend = Scripted(QueueFull("x"))
    side = SideBySide([choice(backend)])
    await side.close()
    assert backend.asked == 0


async def test_a_slow_reader_holds_back_its_own_work() -> None:
    backend = Scripted(*[committed("a")] * 50, Finished("stop", Usage()))
    side = SideBySide([choice(backend)])
    await side.next()
    for _ in range(20):
        await asyncio.sleep(0)
    assert backend.asked <= 2
    await side.close()


async def test_the_first_delta_says_what_decodes() -> None:
    deltas = await all_of(Scripted(Started(0.0, runtime="native on H100"), committed("ab"), Finished("stop", Usage())))
    assert [delta.runtime for delta in deltas] == ["native on H100", "", ""]

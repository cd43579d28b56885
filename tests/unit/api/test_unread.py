"""A slow reader loses nothing that is final, costs little, and holds nobody up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from easel.api.choices import Delta
from easel.api.unread import Unread, keep_up
from easel.errors import EngineFailed
from easel.protocol import CanvasCommitted, CanvasProgress, CanvasStop
from tests.unit.api.edge import until


def progress(canvas: int, step: int, *positions: int) -> Delta:
    count = len(positions)
    return Delta(0, progress=CanvasProgress(canvas, step, positions, (step,) * count, (0.5,) * count, (True,) * count))


def canvas(number: int) -> Delta:
    return Delta(0, "x", True, canvas=CanvasCommitted(number, (9,), 5, CanvasStop.CONVERGED, 0.0, 1.0))


async def read(unread: Unread) -> list[Delta]:
    unread.end()
    found = []
    while (delta := await unread.get()) is not None:
        found.append(delta)
    return found


async def test_unread_progress_of_a_canvas_becomes_one() -> None:
    unread = Unread()
    for step in range(1, 1000):
        unread.put(progress(0, step, 7, 8 + step % 3))
    assert len(unread) == 1
    [merged] = await read(unread)
    assert merged.progress == CanvasProgress(0, 999, (7, 8, 9, 10), (999, 999, 997, 998), (0.5,) * 4, (True,) * 4)


async def test_every_canvas_waits_and_one_state_at_most() -> None:
    unread = Unread()
    for number in range(50):
        for step in range(1, 20):
            unread.put(progress(number, step, step))
            assert len(unread) == number + 1
        unread.put(canvas(number))
    found = await read(unread)
    assert [delta.canvas.canvas for delta in found if delta.canvas] == list(range(50))
    states = [delta.progress for delta in found if delta.progress]
    assert [(state.canvas, len(state.positions)) for state in states] == [(49, 19)]
    assert found.index(Delta(0, progress=states[0])) == 49  # after the canvases before its own


async def test_reads_on_without_a_reader_and_raises_after_what_came_before() -> None:
    ended = asyncio.Event()

    async def deltas() -> AsyncGenerator[Delta, None]:
        try:
            for step in range(1, 100):
                yield progress(0, step, step)
            yield canvas(0)
            raise EngineFailed("It broke.")
        finally:
            ended.set()

    kept = keep_up(deltas())
    assert (await anext(kept)).progress is not None
    await until(ended.is_set)
    state = await anext(kept)
    if state.progress is not None:
        assert await anext(kept) == canvas(0)
    else:
        assert state == canvas(0)
    with pytest.raises(EngineFailed):
        await anext(kept)


async def test_a_cancellation_from_below_ends_the_reading_too() -> None:
    """Whoever waits for the next one would wait for ever."""

    async def deltas() -> AsyncGenerator[Delta, None]:
        yield Delta(0)
        raise asyncio.CancelledError

    kept = keep_up(deltas())
    await anext(kept)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(anext(kept), 5)


@pytest.mark.parametrize("begun", [False, True])
async def test_closing_closes_what_it_reads(begun: bool) -> None:
    state: list[str] = []

    async def deltas() -> AsyncGenerator[Delta, None]:
        try:
            state.append("begun")
            yield Delta(0)
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            state.append("closed")

    kept = keep_up(deltas())
    if begun:
        await anext(kept)
    await kept.aclose()
    assert state == (["begun", "closed"] if begun else [])

"""What is there together travels together, and nothing waits, is lost or left running."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easel.errors import EngineFailed
from easel.protocol import Event, Started
from easel.rayserve.bundles import bundled


class Told:
    """Events by a script: a number is an event, `wait` lets others run first, an error is raised."""

    def __init__(self, script: list[Any]) -> None:
        self.script = script
        self.closed = False

    async def __call__(self) -> AsyncIterator[Event]:
        try:
            for item in self.script:
                if isinstance(item, Exception):
                    raise item
                if item == "wait":
                    await asyncio.sleep(0.001)
                elif item == "for ever":
                    await asyncio.Event().wait()
                else:
                    yield Started(float(item))
        finally:
            self.closed = True


async def bundles(told: Told) -> list[list[float]]:
    return [[cast("Started", event).at for event in bundle] async for bundle in bundled(told())]


async def test_what_is_there_goes_together_and_nothing_waits() -> None:
    assert await bundles(Told([1, "wait", 2, 3, "wait", 4])) == [[1], [2, 3], [4]]
    assert await bundles(Told([])) == []


@given(st.lists(st.one_of(st.integers(0, 9), st.just("wait"))))
def test_every_event_comes_once_and_in_order(script: list[Any]) -> None:
    told = asyncio.run(bundles(Told(script)))
    assert [event for bundle in told for event in bundle] == [item for item in script if item != "wait"]
    assert all(told)


@pytest.mark.parametrize("script", [[1, 2], [1, 2, "wait"]])
async def test_an_error_comes_after_what_was_before_it(script: list[Any]) -> None:
    told, seen = Told([*script, EngineFailed("gone")]), list[Event]()

    async def read() -> None:
        async for bundle in bundled(told()):
            seen.extend(bundle)

    with pytest.raises(EngineFailed):
        await read()
    assert len(seen) == 2
    assert told.closed


async def test_the_first_event_does_not_wait_for_the_second_and_closing_closes() -> None:
    told = Told([1, "for ever"])
    async with aclosing(cast("Any", bundled(told()))) as stream:
        assert await asyncio.wait_for(anext(stream), 5) == (Started(1.0),)
        assert not told.closed
    assert told.closed


async def test_cancelling_whoever_waits_closes() -> None:
    told = Told([1, "for ever"])

    async def read() -> None:
        async with aclosing(cast("Any", bundled(told()))) as stream:
            async for _ in stream:
                pass

    task = asyncio.create_task(read())
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert told.closed

"""Events that are there at one moment travel in one message: what a message costs, an event does not.

A chunk of a Serve handle's stream costs its ingress about as much as all else that it does for a request. The last
canvas and the end of a request always come together, and so does more where a reader is behind. Owns: what goes
together, and that nothing waits for company. Refuses to know: what an event says.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from easel.protocol import Event

Bundle = tuple[Event, ...]
"""Events in order, at least one."""


async def bundled(events: AsyncIterator[Event]) -> AsyncIterator[Bundle]:
    """The same events, those that need not be waited for together with the one before. Raises what `events` raises,
    after all that came before. Closes `events` when it is closed itself."""
    ahead: asyncio.Future[Event] | None = None
    try:
        while True:
            try:
                bundle = [await (anext(events) if ahead is None else ahead)]
            except StopAsyncIteration:
                return
            ahead = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0)
            while ahead.done() and ahead.exception() is None:
                bundle.append(ahead.result())
                ahead = asyncio.ensure_future(anext(events))
                await asyncio.sleep(0)
            yield tuple(bundle)
    finally:
        if ahead is not None and not ahead.done():
            ahead.cancel()
            await asyncio.gather(ahead, return_exceptions=True)
        elif ahead is not None and not ahead.cancelled():
            ahead.exception()  # looked at, so that nobody warns of it
        close: Any = getattr(events, "aclose", None)
        if close is not None:
            await close()

"""Events on their way to the one who reads them, in bounded memory however slowly that is.

Lives on the event loop. What must not be lost (all but progress) is bounded by the request itself: a canvas holds its
tokens once. Progress that has not been read is merged with what comes after it, so there is never more than one of it.
"""

from __future__ import annotations

import asyncio
from collections import deque

from easel.protocol import CanvasProgress, Event, merge_progress


class Mailbox:
    """Events of one request, in order."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._arrived = asyncio.Event()

    def __len__(self) -> int:
        return len(self._events)

    def put(self, event: Event) -> None:
        """Add an event. Progress replaces unread progress before it, and keeps what that alone has told."""
        if isinstance(event, CanvasProgress) and self._events and isinstance(self._events[-1], CanvasProgress):
            event = merge_progress(self._events.pop(), event)  # type: ignore[arg-type]  # just seen to be progress
        self._events.append(event)
        self._arrived.set()

    async def get(self) -> Event:
        """The next event, when there is one."""
        while not self._events:
            self._arrived.clear()
            await self._arrived.wait()
        return self._events.popleft()

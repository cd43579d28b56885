"""Deltas of one choice that wait for a slow reader, in bounded memory.

Owns: that a choice's events are read as they come, whoever reads its deltas and however slowly, so that nothing behind
it waits or piles up. What is final waits in full: an answer's text and tokens, once. Of progress there is never more
than one unread, which tells all that those before it told of the same canvas.
Refuses to know: what the deltas say otherwise, sockets.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import replace

from easel.api.choices import Delta
from easel.protocol import merge_progress


class Unread:
    """Deltas of one choice, in order, and how they ended."""

    def __init__(self) -> None:
        self._deltas: deque[Delta] = deque()
        self._failure: BaseException | None = None
        self._ended = False
        self._moved = asyncio.Event()

    def __len__(self) -> int:
        return len(self._deltas)

    def put(self, delta: Delta) -> None:
        """Add one. Progress takes the place of unread progress; of an older canvas, that is worth nothing any more."""
        if delta.progress is not None:
            for place, waiting in enumerate(self._deltas):
                if waiting.progress is not None:
                    del self._deltas[place]
                    delta = replace(delta, progress=merge_progress(waiting.progress, delta.progress))
                    break
        self._deltas.append(delta)
        self._moved.set()

    def end(self, failure: BaseException | None = None) -> None:
        """Nothing follows; `failure` is raised once all that came before it has been read."""
        self._ended, self._failure = True, failure
        self._moved.set()

    async def get(self) -> Delta | None:
        """The next one; None after the last. Raises what `end` was given."""
        while not self._deltas and not self._ended:
            self._moved.clear()
            await self._moved.wait()
        if self._deltas:
            return self._deltas.popleft()
        if self._failure is not None:
            raise self._failure
        return None


async def keep_up(deltas: AsyncGenerator[Delta, None]) -> AsyncGenerator[Delta, None]:
    """The same deltas, read as they come. Closing it closes `deltas`, and returns when that is done."""
    unread = Unread()
    reading = asyncio.create_task(_read(deltas, unread))
    try:
        while (delta := await unread.get()) is not None:
            yield delta
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await deltas.aclose()


async def _read(deltas: AsyncGenerator[Delta, None], unread: Unread) -> None:
    try:
        async for delta in deltas:
            unread.put(delta)
    except (Exception, asyncio.CancelledError) as error:  # whoever cancelled what: a reader is not left waiting
        unread.end(error)
    else:
        unread.end()

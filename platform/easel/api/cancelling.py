"""Calls that can be ended from outside: DELETE /v1/requests/{id}.

A call is known by the id of its request and by that of its answer, to the key that made it and to nobody else. What of
it is committed stays its answer; one of which nothing has begun fails.

Owns: which calls of this process run, and how each of their choices is made to end. Refuses to know: HTTP beyond the
one route, replicas, and how the other processes are asked (`elsewhere`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from easel.api.request_log import RequestNotes, notes
from easel.errors import RequestCancelled, RequestNotFound

T = TypeVar("T")
MOST_SHOWN = 128

Elsewhere = Callable[[str, str], Awaitable[bool]]
"""Asks the other processes of the service to cancel by owner and id; says whether one of them had such a call. Raises
an `EaselError` where it cannot tell."""


async def nowhere(owner: str, request_id: str) -> bool:
    """There is no other process."""
    return False


class Halt:
    """Ends the choices of one call early. A choice takes its events through `following`."""

    def __init__(self) -> None:
        self.asked = False
        self.refuses = False
        """Asked before anything had begun: there is no answer that could end here."""
        self._begun = False
        self._choices: set[_Following[Any]] = set()

    def following(self, items: AsyncIterator[T]) -> _Following[T]:
        """`items` until somebody asks for the end. To be closed."""
        return _Following(items, self)

    def began(self) -> None:
        """Something of the call runs."""
        self._begun = True

    def ask(self) -> None:
        """End it. Again does nothing."""
        if self.asked:
            return
        self.asked, self.refuses = True, not self._begun
        for choice in tuple(self._choices):
            choice.end()

    def check(self) -> None:
        """Raises `RequestCancelled` where the end was asked for before anything began."""
        if self.refuses:
            raise RequestCancelled("The request was cancelled before it was started.")


class _Following(AsyncIterator[T]):
    """The items of one choice. Whoever waits for one is woken by the end; whoever does not finds it later, and the work
    behind is closed meanwhile: a client that reads nothing holds no slot."""

    def __init__(self, items: AsyncIterator[T], halt: Halt) -> None:
        self._items = items
        self._halt = halt
        self._waiting: asyncio.Task[Any] | None = None
        self._closing: asyncio.Task[None] | None = None
        halt._choices.add(self)

    async def __anext__(self) -> T:
        if self._halt.asked:
            raise StopAsyncIteration
        self._waiting = asyncio.current_task()
        try:
            return await anext(self._items)
        except asyncio.CancelledError:
            if not self._halt.asked:
                raise
            # Ours, and meant for this wait alone: the task goes on to tell how the choice ended.
            if self._waiting is not None:
                self._waiting.uncancel()
            raise StopAsyncIteration from None
        finally:
            self._waiting = None

    def end(self) -> None:
        """From the event loop, at any time."""
        if self._waiting is not None:
            self._waiting.cancel()
        else:
            self._closing = asyncio.create_task(_close(self._items))

    async def aclose(self) -> None:
        """Closes the items, unless that is under way."""
        self._halt._choices.discard(self)
        if self._closing is None:
            await _close(self._items)
        else:
            await asyncio.shield(self._closing)


async def _close(items: AsyncIterator[Any]) -> None:
    close = getattr(items, "aclose", None)
    if close is not None:
        await close()


class RunningCalls:
    """Calls of this process, by who made them. One event loop calls it."""

    def __init__(self, elsewhere: Elsewhere = nowhere) -> None:
        self._elsewhere = elsewhere
        self._halts: dict[tuple[str, str], set[Halt]] = {}

    @contextmanager
    def holding(self, owner: str, *ids: str) -> Iterator[Halt]:
        """A call runs, under each of these ids. Ids are the clients' own, so several calls may have the same."""
        halt = Halt()
        for one in ids:
            self._halts.setdefault((owner, one), set()).add(halt)
        try:
            yield halt
        finally:
            for one in ids:
                left = self._halts.get((owner, one), set())
                left.discard(halt)
                if not left:
                    self._halts.pop((owner, one), None)

    def cancel(self, owner: str, request_id: str) -> bool:
        """End that owner's calls of that id in this process. False where there is none."""
        found = tuple(self._halts.get((owner, request_id), ()))
        for halt in found:
            halt.ask()
        return bool(found)

    async def cancel_anywhere(self, owner: str, request_id: str) -> bool:
        """The same in the whole service; the others are asked only where it is not here. Raises as `Elsewhere`."""
        here = self.cancel(owner, request_id)
        return here or await self._elsewhere(owner, request_id)


class CancelRoute:
    """DELETE /v1/requests/{id}."""

    def __init__(self, running: RunningCalls) -> None:
        self._running = running

    def add_to(self, app: FastAPI) -> None:
        """Registers the route."""
        app.add_api_route("/v1/requests/{request_id:path}", self.cancel, methods=["DELETE"], response_model=None)

    async def cancel(self, request: Request, request_id: str) -> Response:
        """Ends the caller's calls of that id. 404 where it has none: unknown, ended, or another key's."""
        if not await self._running.cancel_anywhere(owner_of(notes(request.scope)), request_id):
            shown = request_id[:MOST_SHOWN]
            raise RequestNotFound(f"No request '{shown}' of yours is waiting or running.", "request_id")
        return JSONResponse({"id": request_id, "object": "request", "cancelled": True})


def owner_of(known: RequestNotes) -> str:
    """Whose calls the caller may cancel: those made with the same key. Without keys, everybody's."""
    return known.key.id if known.key else ""

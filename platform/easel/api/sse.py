"""Server-sent events: framing, heartbeats, and an end for every stream that a client cannot mistake.

Owns: the bytes of a stream and the promise that it ends in `[DONE]` or in an error event, or because the client left.
An SDK takes a stream that merely ends for a complete answer.

Refuses to know: what the events say, where they come from.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from easel.api.request_log import note
from easel.errors import ClientGone

DONE = b"data: [DONE]\n\n"
HEARTBEAT = b": keep-alive\n\n"
"""A comment: clients skip it."""

T = TypeVar("T")


def event(data: Mapping[str, Any]) -> bytes:
    """One event. Escaped to ASCII, since some clients take U+2028 for the end of a line."""
    return b"data: " + json.dumps(data, separators=(",", ":")).encode("ascii") + b"\n\n"


class EventStream(Response):
    """Sends what `parts` yields. Closes it as soon as the client has left, also while it is silent.

    The framework's own streaming response waits for the next part before it notices, with servers that tell of a
    disconnect only when asked.
    """

    media_type = "text/event-stream"
    charset = "utf-8"

    def __init__(self, parts: AsyncIterator[bytes], close: Callable[[], Awaitable[None]]) -> None:
        """`close` is called once nothing more is sent, whether or not `parts` was ever begun."""
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._parts = parts
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_client_leaves(receive, self._send(send))
        except ClientGone as error:  # nobody is left to be told
            note(scope, error)
        finally:
            await self._close()

    async def _send(self, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for part in self._parts:
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except OSError:  # what servers raise when they find the connection closed
            raise ClientGone("The client left.") from None


async def unless_client_leaves(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns. It is cancelled, and has ended, when this raises.

    Raises:
        ClientGone: the client left before `work` was done.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone("The client left.")
        return working.result()
    finally:
        # A future of its own, so that cleaning up goes on even where this task is cancelled again.
        leaving.cancel()
        working.cancel()
        await asyncio.shield(asyncio.gather(working, leaving, return_exceptions=True))


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

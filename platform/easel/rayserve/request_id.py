"""One request id in an answer: Serve's replica adds the header too, so ours is taken out under Serve.

Owns: that header. Both say the same, because Serve hands the id that it adds to the API as the request's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.datastructures import MutableHeaders

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "x-request-id"


class LeaveRequestIdToServe:
    """Outermost in an ingress replica."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if HEADER in headers:
                    del headers[HEADER]
            await send(message)

        await self._app(scope, receive, sending)

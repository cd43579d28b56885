"""What surrounds every request, as plain ASGI: its id, its log line, its metrics, and the limit on its body.

Owns: the last word on exceptions: whatever gets here becomes a 500 with a fixed text, and a traceback in the log.
Refuses to know: routes and models, but for the notes that they leave.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from easel.api.failures import error_response, internal_error
from easel.api.request_log import KEY, RequestNotes, note
from easel.errors import BodyTooLarge, ClientGone
from easel.telemetry.names import REQUEST_SECONDS, REQUESTS
from easel.telemetry.recorder import Recorder

access = logging.getLogger("easel.access")

PROBES = frozenset({"/healthz", "/readyz"})
"""Logged at DEBUG while they succeed: they come every few seconds."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


class RequestLog:
    """Outermost. One JSON line for each request, after its last byte."""

    def __init__(self, app: ASGIApp, recorder: Recorder) -> None:
        self._app = app
        self._recorder = recorder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        known = _begin(Headers(scope=scope))
        scope.setdefault("state", {})[KEY] = known

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                known.status = message["status"]
                sent = MutableHeaders(scope=message)
                sent["x-request-id"] = known.id
                sent.update(known.headers)
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except OSError as error:
            if known.status == 0:
                await self._last_resort(error, known, scope, receive, sending)
            else:  # what servers raise when they find the connection closed
                known.error = ClientGone("The client left.")
        except Exception as error:
            await self._last_resort(error, known, scope, receive, sending)
        finally:
            self._finish(known, scope)

    async def _last_resort(
        self, error: Exception, known: RequestNotes, scope: Scope, receive: Receive, send: Send
    ) -> None:
        known.error = internal_error(error, known.id)
        if known.status == 0:
            await error_response(known.error)(scope, receive, send)
        else:
            raise error  # half an answer is out: the server must break the connection

    def _finish(self, known: RequestNotes, scope: Scope) -> None:
        seconds = time.perf_counter() - known.arrived
        route = getattr(scope.get("route"), "path", "unmatched")
        if known.error is None and known.status == 0:
            known.error = ClientGone("The client left.")
        code = known.error.code if known.error else "ok" if known.status < 400 else "error"
        self._recorder.add(REQUESTS, model=known.model, route=route, code=code)
        self._recorder.observe(REQUEST_SECONDS, seconds, model=known.model, route=route)
        fine = known.status < 400 and code == "ok"
        level = logging.INFO
        if fine and route in PROBES:
            level = logging.DEBUG
        elif known.error is not None and known.error.status >= 500:
            level = logging.WARNING if known.error.retryable else logging.ERROR
        if not access.isEnabledFor(level):
            return
        line = {
            "ts": round(time.time(), 3),
            "level": logging.getLevelName(level),
            "event": "request",
            "request_id": known.id,
            "trace_id": known.trace_id,
            "method": scope["method"],
            "route": route,
            "status": known.status,
            "code": code,
            "seconds": round(seconds, 4),
            "model": known.model,
            "key": known.key.id if known.key else None,
            "error": f"{type(known.error).__name__}: {known.error.message}" if known.error else None,
        }
        access.log(level, json.dumps({key: value for key, value in line.items() if value is not None}))


def _begin(headers: Headers) -> RequestNotes:
    """The client's request id where it is a decent one, else a new one."""
    wanted = headers.get("x-request-id", "")
    known = RequestNotes(wanted if _REQUEST_ID.fullmatch(wanted) else "req_" + secrets.token_hex(16))
    traceparent = headers.get("traceparent", "")
    found = _TRACEPARENT.fullmatch(traceparent)
    if found:
        known.traceparent, known.trace_id = traceparent, found[1]
    return known


class BodyLimit:
    """413 for bodies over the limit: at once where the length is announced, else as soon as too much has come.

    The connection stays open, so that the server reads and forgets the rest: closing it while bytes are on their way
    would reset it, and the client would see that instead of the answer.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > self._max_bytes:
            error = self._error()
            note(scope, error)
            await error_response(error)(scope, receive, send)
            return
        received = 0

        async def counting() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > self._max_bytes:
                    raise self._error()
            return message

        await self._app(scope, counting, send)

    def _error(self) -> BodyTooLarge:
        return BodyTooLarge(f"The body of the request is larger than the {self._max_bytes} bytes allowed.")

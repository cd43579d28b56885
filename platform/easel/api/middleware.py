"""What surrounds every request, as plain ASGI: its id, its log line, its metrics, and the limit on its body.

Owns: the last word on exceptions: whatever gets here becomes a 500 with a fixed text, and a traceback in the log.
Refuses to know: routes and models, but for the notes that they leave.
"""

from __future__ import annotations

import logging
import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from easel.api.failures import error_response, internal_error
from easel.api.request_log import KEY, RequestNotes, note, outcome
from easel.errors import BodyTooLarge, ClientGone
from easel.telemetry import logs
from easel.telemetry.names import OPEN_REQUESTS, REQUEST_SECONDS, REQUESTS, TENANT_REQUESTS
from easel.telemetry.recorder import Recorder
from easel.telemetry.spans import REQUEST, STREAM
from easel.telemetry.tracing import TRACEPARENT, OpenSpan, Tracer, trace_id

access = logging.getLogger("easel.access")

PROBES = frozenset({"/healthz", "/readyz"})
"""Logged at DEBUG while they succeed: they come every few seconds."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
GENERATION = {"/chat/completions": "chat", "/completions": "text_completion"}
"""Ends of paths whose calls are traced, and what OpenTelemetry calls what they do."""


class RequestLog:
    """Outermost. One log line for each request, after its last byte. `model`: its name in traces."""

    def __init__(self, app: ASGIApp, recorder: Recorder, tracer: Tracer, model: str) -> None:
        self._app = app
        self._recorder = recorder
        self._tracer = tracer
        self._model = model
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        known = self._begin(scope)
        scope.setdefault("state", {})[KEY] = known
        streams: list[OpenSpan] = []

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                known.status = message["status"]
                sent = MutableHeaders(scope=message)
                sent["x-request-id"] = known.id
                sent.update(known.headers)
                if sent.get("content-type", "").startswith("text/event-stream"):
                    streams.append(self._tracer.begin(STREAM, known.traceparent))
            await send(message)

        try:
            with logs.about(known.traceparent, request_id=known.id):
                await self._app(scope, receive, sending)
        except OSError as error:
            if known.status == 0:
                await self._last_resort(error, known, scope, receive, sending)
            else:  # what servers raise when they find the connection closed
                known.error = ClientGone("The client left.")
        except Exception as error:
            await self._last_resort(error, known, scope, receive, sending)
        finally:
            for stream in streams:
                stream.end()
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
        self._count(known, route, code, seconds)
        fine = known.status < 400 and code == "ok"
        level = logging.INFO
        if fine and route in PROBES:
            level = logging.DEBUG
        elif known.error is not None and known.error.status >= 500:
            level = logging.WARNING if known.error.retryable else logging.ERROR
        if access.isEnabledFor(level):
            with logs.about(known.traceparent):
                access.log(level, "request", extra=_line(known, scope["method"], route, code, seconds))

    def _begin(self, scope: Scope) -> RequestNotes:
        """The client's request id where it is a decent one, else a new one; and the call's span."""
        headers = Headers(scope=scope)
        wanted = headers.get("x-request-id", "")
        known = RequestNotes(wanted if _REQUEST_ID.fullmatch(wanted) else "req_" + secrets.token_hex(16))
        theirs = headers.get("traceparent", "")
        known.traceparent = theirs if TRACEPARENT.fullmatch(theirs) else None
        operation = _operation(scope)
        if operation is not None:
            known.span = self._tracer.begin(REQUEST, known.traceparent, name=f"{operation} {self._model}")
            known.traceparent = known.span.traceparent
        self._open += 1
        self._recorder.set(OPEN_REQUESTS, self._open)
        return known

    def _count(self, known: RequestNotes, route: str, code: str, seconds: float) -> None:
        self._open -= 1
        self._recorder.set(OPEN_REQUESTS, self._open)
        self._recorder.add(REQUESTS, model=known.model, route=route, code=code)
        if known.operation is not None:
            ended = outcome(known.error)
            tenant = known.tenant or "none"
            self._recorder.add(TENANT_REQUESTS, model=known.model, tenant=tenant, tier=known.tier, outcome=ended)
            self._recorder.observe(
                REQUEST_SECONDS, seconds, known.traceparent, model=known.model, operation=known.operation
            )
        _end_span(known, route, code)


def _operation(scope: Scope) -> str | None:
    if scope["method"] != "POST":
        return None
    return next((what for end, what in GENERATION.items() if scope["path"].endswith(end)), None)


def _end_span(known: RequestNotes, route: str, code: str) -> None:
    span = known.span
    span.set("http.request.method", "POST")
    span.set("http.route", route)
    span.set("http.response.status_code", known.status)
    span.set("gen_ai.provider.name", "easel")
    span.set("gen_ai.request.model", known.model)
    span.set("gen_ai.operation.name", known.operation or "none")
    span.set("gen_ai.usage.input_tokens", known.prompt_tokens)
    span.set("gen_ai.usage.output_tokens", known.output_tokens)
    span.set("gen_ai.response.finish_reasons", tuple(known.finish_reasons))
    span.set("easel.request_id", known.id)
    span.set("easel.tenant", known.tenant or "none")
    span.set("easel.tier", known.tier)
    if code != "ok":
        span.set("error.type", code)
    span.end(error=None if code == "ok" else code)


def _line(known: RequestNotes, method: str, route: str, code: str, seconds: float) -> dict[str, dict[str, object]]:
    generation: dict[str, object] = {}
    if known.operation is not None:
        generation = {
            "call": known.call,
            "tier": known.tier,
            "prompt_tokens": known.prompt_tokens,
            "output_tokens": known.output_tokens,
            "canvases": known.canvases,
            "denoising_steps": known.denoising_steps,
        }
    return logs.said(
        request_id=known.id,
        trace_id=trace_id(known.traceparent),
        method=method,
        route=route,
        status=known.status,
        code=code,
        seconds=round(seconds, 4),
        model=known.model,
        key=known.key.id if known.key else None,
        tenant=known.tenant or None,
        error=f"{type(known.error).__name__}: {known.error.message}" if known.error else None,
        **generation,
    )


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

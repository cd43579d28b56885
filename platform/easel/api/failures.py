"""Errors as HTTP: the body in OpenAI's shape, the headers that tell SDKs whether and when to try again.

Owns: what of a failure a client sees. Of an unexpected one it sees a fixed sentence, and the log gets the traceback.
Refuses to know: which errors there are (`easel.errors`) and who raises them.
"""

from __future__ import annotations

import logging
import math
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse

from easel.api import request_log
from easel.errors import ClientGone, EaselError, InternalError, InvalidRequest, MethodNotAllowed, NotFound

logger = logging.getLogger("easel.api")

INTERNAL = "The server had an error while processing your request. The request id helps to find out why."


def internal_error(error: BaseException, request_id: str) -> InternalError:
    """What a client is told of an exception that nobody expected; the log is told the rest."""
    logger.error("unexpected error in request %s", request_id, exc_info=error)
    return InternalError(INTERNAL)


def headers(error: EaselError) -> dict[str, str]:
    """`retry-after` for both kinds of client, and `x-should-retry: false` where SDKs would try in vain."""
    found = {}
    if error.retry_after_s is not None:
        found["retry-after"] = str(math.ceil(error.retry_after_s))
        found["retry-after-ms"] = str(math.ceil(error.retry_after_s * 1000))
    if error.status >= 500 and not error.retryable:
        found["x-should-retry"] = "false"
    return found


def error_response(error: EaselError, **more: str) -> JSONResponse:
    """The answer to a call that failed before its answer began."""
    return JSONResponse(error.body(), error.status, {**headers(error), **more})


def add_handlers(app: FastAPI) -> None:
    """Every error that a route lets out, and those of routing itself, become OpenAI's shape."""

    @app.exception_handler(EaselError)
    async def easel_error(request: Request, error: EaselError) -> JSONResponse:
        request_log.note(request.scope, error)
        return error_response(error)

    @app.exception_handler(ClientDisconnect)
    async def client_left(request: Request, error: ClientDisconnect) -> JSONResponse:
        return await easel_error(request, ClientGone("The client left."))

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> JSONResponse:
        method, path = request.method, request.url.path
        failure: EaselError
        if error.status_code == 404:
            failure = NotFound(f"Invalid URL ({method} {path[:256]})")
        elif error.status_code == 405:
            failure = MethodNotAllowed(f"Not allowed to {method} on {path[:256]}")
        else:
            failure = InvalidRequest(str(error.detail))
        request_log.note(request.scope, failure)
        return error_response(failure, **_allowed(error))


def _allowed(error: HTTPException) -> dict[str, Any]:
    """The `Allow` header that comes with a 405."""
    return {name.lower(): value for name, value in (error.headers or {}).items() if name.lower() == "allow"}

"""Ids, limits, log lines and metrics surround every request, whatever becomes of it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from easel.api.middleware import BodyLimit, RequestLog
from easel.engine.fake import FakeEngine, Script
from easel.errors import EngineFailed
from easel.protocol import GenerationRequest
from easel.telemetry.logs import JsonLines
from easel.telemetry.names import FIRST_CANVAS_SECONDS, LOG_FIELDS, REQUEST_SECONDS, REQUESTS
from easel.telemetry.recorder import MemoryRecorder
from easel.telemetry.tracing import NullTracer
from tests.unit.api.edge import EngineBackend, Stream, edge, saying, served

SECRET = "a secret of ours"


class Broken(EngineBackend):
    """Fails as code with a bug does."""

    def __init__(self, after: int) -> None:
        super().__init__(FakeEngine(step_s=0.0))
        self._after = after

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Any]:  # type: ignore[override]
        seen = 0
        if seen == self._after:
            raise ZeroDivisionError(SECRET)
        async for event in self.engine.generate(request):
            yield event
            seen += 1
            if seen == self._after:
                raise ZeroDivisionError(SECRET)


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [json.loads(JsonLines().format(record)) for record in caplog.records if record.name == "easel.access"]


async def test_the_clients_request_id_comes_back_and_a_missing_or_odd_one_is_replaced(checkpoint: Path) -> None:
    async with edge(checkpoint) as e:
        given = await e.client.get("/healthz", headers={"x-request-id": "mine-1"})
        assert given.headers["x-request-id"] == "mine-1"
        for wanted in ({}, {"x-request-id": "a b"}, {"x-request-id": "x" * 500}, {"x-request-id": ""}):
            response = await e.client.get("/nothing", headers=wanted)
            assert response.headers["x-request-id"].startswith("req_")


async def test_one_json_line_for_each_request_with_known_fields_only(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "easel.access")
    async with edge(checkpoint, saying("x")) as e:
        headers = {"x-request-id": "mine-1", "traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
        await e.client.post("/v1/completions", json={"model": "easel", "prompt": "secret prompt"}, headers=headers)
        await e.client.get("/nothing/at/all")
        await e.client.get("/healthz")
    first, second = lines(caplog)
    assert set(first) <= {field.name for field in LOG_FIELDS}
    seconds, stamp = first.pop("seconds"), first.pop("ts")
    assert seconds > 0
    assert stamp > 0
    assert first.pop("call").startswith("cmpl-")
    assert first == {
        "logger": "easel.access",
        "tier": "balanced",
        "prompt_tokens": 14,
        "output_tokens": 1,
        "canvases": 1,
        "denoising_steps": 2,
        "level": "INFO",
        "event": "request",
        "request_id": "mine-1",
        "trace_id": "a" * 32,
        "method": "POST",
        "route": "/v1/completions",
        "status": 200,
        "code": "ok",
        "model": "easel",
    }
    assert second["route"] == "unmatched"
    assert second["code"] == "not_found"
    assert "secret" not in caplog.text


async def test_the_line_of_a_broken_answer_has_what_was_committed_until_then(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "easel.access")
    script = Script(steps=lambda request, canvas: 3, fail=lambda request, canvas: EngineFailed("x") if canvas else None)
    async with edge(checkpoint, script) as e:
        for stream in (False, True):
            await e.complete(stream=stream, max_tokens=40)
    for line in lines(caplog):
        assert (line["code"], line["output_tokens"], line["canvases"], line["denoising_steps"]) == (
            "engine_failed",
            16,
            1,
            3,
        )


async def test_metrics_count_a_broken_stream_by_its_error(checkpoint: Path) -> None:
    script = Script(fail=lambda request, canvas: EngineFailed("x") if canvas else None)
    async with edge(checkpoint, script) as e:
        route = "/v1/completions"
        assert (await e.complete(stream=True, max_tokens=40)).status_code == 200
        assert e.recorder.total(REQUESTS, model="easel", route=route, code="engine_failed") == 1
        await e.complete()
        assert e.recorder.total(REQUESTS, model="easel", route=route, code="ok") == 1
        await e.complete(model="made up by a client")
        assert e.recorder.total(REQUESTS, model="none", route=route, code="model_not_found") == 1
        await e.complete(max_tokens=10**6)
        assert e.recorder.total(REQUESTS, model="easel", route=route, code="context_length_exceeded") == 1
        assert (
            len(e.recorder.values[FIRST_CANVAS_SECONDS.name, (("model", "easel"), ("operation", "text_completion"))])
            == 2
        )
        assert e.recorder.total(REQUEST_SECONDS) > 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("after", [0, 1])
async def test_what_nobody_expected_is_logged_and_never_shown(
    checkpoint: Path, caplog: pytest.LogCaptureFixture, stream: bool, after: int
) -> None:
    backend = Broken(after)
    await backend.engine.start()
    async with edge(checkpoint, backend=backend) as e:
        response = await e.complete(stream=stream)
        assert SECRET not in response.text
        assert "ZeroDivisionError" not in response.text
        assert SECRET in caplog.text
        assert e.recorder.total(REQUESTS, code="internal_error") == 1
        if stream and after:
            body = Stream.of(response.text)
            assert not body.done
            assert body.events[-1]["error"]["code"] == "internal_error"
        else:
            assert response.status_code == 500
            assert response.json()["error"]["code"] == "internal_error"
            assert response.headers["x-request-id"]
    assert backend.busy == 0
    await backend.engine.stop()


async def test_bodies_over_the_limit_get_a_413_before_they_are_read(checkpoint: Path) -> None:
    async with edge(checkpoint, saying("x"), api={"max_body_bytes": 2000}) as e:
        response = await e.complete(user="x" * 2000)
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "request_too_large"
        assert response.headers["x-request-id"]
        assert (await e.complete(user="x" * 1000)).status_code == 200


async def test_a_chunked_body_without_a_length_is_cut_at_the_limit(checkpoint: Path) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 100_000:
            sent += 100
            yield b" " * 100

    async with edge(checkpoint, api={"max_body_bytes": 2000}) as e:
        response = await e.client.post("/v1/completions", content=endless())
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "request_too_large"
    assert sent == 2100, "not a block more than it takes to see"


@pytest.mark.parametrize("length", [b"Content-Length: 8000000", b"Transfer-Encoding: chunked"])
async def test_a_client_that_is_still_sending_reads_the_whole_refusal(checkpoint: Path, length: bytes) -> None:
    """Over a real server: closing the connection too early would reset it."""
    async with edge(checkpoint, api={"max_body_bytes": 2000}) as e, served(e.app) as url:
        parts = urlsplit(url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n" + length + b"\r\n\r\n")
        block = b" " * 80_000
        for _ in range(100):
            writer.write(block if length.startswith(b"Content") else b"13880\r\n" + block + b"\r\n")
            await writer.drain()
        if not length.startswith(b"Content"):
            writer.write(b"0\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 413")
        assert b"request_too_large" in await reader.readuntil(b"}}")
        # The connection is good for the next request.
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        writer.close()


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b'{"model": "easel", "prompt": "a"}', {"content-type": "application/x-www-form-urlencoded"}, 200),
        (b'{"model": "easel", "prompt": "a"}', {}, 200),
        (b'{"model": "easel", "prompt": "a"}', {"content-encoding": "gzip"}, 400),
        (b'{"model": "easel", "prompt": "a"', {}, 400),
        (b"model=easel", {"content-type": "application/x-www-form-urlencoded"}, 400),
        (b"[1]", {}, 400),
        (b"", {}, 400),
        (b"\xff\xfe", {}, 400),
        (b'{"model": "easel", "prompt": "\\ud800"}', {}, 400),
        (b"[" * 100_000, {}, 400),
        (b'{"model": "easel", "prompt": "a", "temperature": NaN}', {}, 400),
        (b'{"model": "easel", "prompt": "a", "temperature": 1e999}', {}, 400),
        (b'{"model": "easel", "prompt": "a", "seed": ' + b"9" * 5000 + b"}", {}, 400),
        (b'{"model": "easel", "prompt": "a", "' + b"x" * 100_000 + b'": 1}', {}, 400),
    ],
)
async def test_whatever_parses_as_json_is_taken_and_the_rest_refused(
    checkpoint: Path, content: bytes, headers: dict[str, str], status: int
) -> None:
    async with edge(checkpoint, saying("x")) as e:
        response = await e.client.post("/v1/completions", content=content, headers=headers)
        assert response.status_code == status, response.text
        if status == 400:
            assert response.json()["error"]["type"] == "invalid_request_error"
            assert len(response.text) < 1000


@pytest.mark.parametrize(
    ("begun", "error", "code", "raised"),
    [
        (False, OSError("disk"), "internal_error", False),
        (True, OSError("closed"), "client_gone", False),
        (True, ZeroDivisionError(), "internal_error", True),
        (False, ZeroDivisionError(), "internal_error", False),
        (False, None, "client_gone", False),
    ],
)
async def test_whatever_comes_out_of_the_application_is_counted(
    begun: bool, error: Exception | None, code: str, raised: bool
) -> None:
    """Half an answer cannot be taken back: then the server must hear of it, and break the connection."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        if error:
            raise error

    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    recorder = MemoryRecorder()
    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    call = RequestLog(app, recorder, NullTracer(), "easel")(scope, receive, send)
    if raised:
        with pytest.raises(ZeroDivisionError):
            await call
    else:
        await call
    assert recorder.total(REQUESTS, code=code, route="unmatched", model="none") == 1
    statuses = [message["status"] for message in sent if "status" in message]
    assert statuses == ([200] if begun else [500] if error else [])


async def test_other_protocols_pass_through() -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    nothing: Any = None
    await RequestLog(BodyLimit(app, 10), MemoryRecorder(), NullTracer(), "easel")(
        {"type": "lifespan"}, nothing, nothing
    )
    assert seen == ["lifespan"]

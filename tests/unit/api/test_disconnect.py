"""A client that leaves frees its slots at once: over a real server, with a raw socket that is simply closed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from easel.engine.fake import Script
from easel.telemetry.names import REQUESTS
from tests.unit.api.edge import edge, served, until

ENDLESS = Script(steps=lambda request, canvas: 48)
"""Never done within a test's time: 480 tokens are 30 canvases of 48 steps of 20 ms."""


async def send(url: str, body: dict[str, object]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    raw = json.dumps({"model": "easel", "prompt": "Hi", "max_tokens": 480} | body).encode()
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(raw) + raw)
    await writer.drain()
    return reader, writer


@pytest.mark.parametrize("body", [{}, {"stream": True}, {"n": 3}, {"n": 3, "stream": True}])
async def test_leaving_frees_every_slot(checkpoint: Path, body: dict[str, object]) -> None:
    async with edge(checkpoint, ENDLESS, step_s=0.02) as e, served(e.app) as url:
        reader, writer = await send(url, body)
        await until(lambda: e.backend.busy == body.get("n", 1))
        if "stream" in body:
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()
        await until(lambda: e.backend.busy == 0)
        await until(lambda: e.recorder.total(REQUESTS, code="client_gone") == 1)


async def test_leaving_before_a_slot_was_free_leaves_the_line(checkpoint: Path) -> None:
    async with edge(checkpoint, ENDLESS, step_s=0.02, slots=1) as e, served(e.app) as url:
        _, first = await send(url, {"stream": True})
        await until(lambda: e.backend.busy == 1)
        _, second = await send(url, {"stream": True})
        await until(lambda: e.backend.busy == 2)
        second.close()
        await until(lambda: e.backend.busy == 1)
        first.close()
        await until(lambda: e.backend.busy == 0)


async def test_a_client_that_stops_sending_is_gone_too(checkpoint: Path) -> None:
    async with edge(checkpoint, ENDLESS, step_s=0.02) as e, served(e.app) as url:
        _, writer = await send(url, {"stream": True})
        await until(lambda: e.backend.busy == 1)
        writer.transport.abort()
        await until(lambda: e.backend.busy == 0)


async def test_leaving_in_the_middle_of_a_body_begins_nothing(checkpoint: Path) -> None:
    async with edge(checkpoint, ENDLESS) as e, served(e.app) as url:
        parts = urlsplit(url)
        _, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{")
        await writer.drain()
        writer.close()
        await until(lambda: e.recorder.total(REQUESTS, code="client_gone") == 1)
        assert not e.backend.requests


async def test_a_server_task_that_is_cancelled_frees_every_slot(checkpoint: Path) -> None:
    """As when a replica is stopped: nobody tells of a disconnect, the task just ends."""
    async with edge(checkpoint, ENDLESS, step_s=0.02) as e:
        for body in ({"n": 2}, {"n": 2, "stream": True}):
            asking = asyncio.create_task(e.complete(max_tokens=480, **body))
            await until(lambda: e.backend.busy == 2)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await until(lambda: e.backend.busy == 0)

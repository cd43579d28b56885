"""Readers that do not read, over a real server and raw sockets: they skip states, lose no canvas, hold nobody up."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from easel.api import unread
from easel.engine.fake import Script
from easel.protocol import CanvasProgress, Event, GenerationRequest
from easel.telemetry.names import REQUESTS
from tests.unit.api.edge import EngineBackend, Stream, edge, served, until, write_checkpoint
from tests.unit.api.replay import replays

SMALL = 4096
"""Bytes that the kernel keeps on each side of a connection. The server's own buffer has 64 KiB."""
CANVAS = 128
SCRIPT = Script(steps=lambda request, canvas: 40)
API = {"max_progress_hz": 1000.0}
TOKENS = 480
CANVASES = 4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), canvas_length=CANVAS)


class Counting(EngineBackend):
    """Counts the states that the engine told, and keeps what reading them took."""

    states = 0

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:  # type: ignore[override]
        async for event in super().generate(request):
            self.states += isinstance(event, CanvasProgress)
            yield event


class Reader:
    """A client that reads when told to."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection

    @classmethod
    async def ask(cls, url: str, **body: Any) -> Reader:
        parts = urlsplit(url)
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connection, (parts.hostname, parts.port))
        options = {"include_progress": True, "progress_hz": 1000}
        wanted = {"model": "easel", "prompt": "Hi", "max_tokens": TOKENS, "stream": True, "stream_options": options}
        raw = json.dumps(wanted | body).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        await loop.sock_sendall(connection, head % len(raw) + raw)
        return cls(connection)

    async def read(self) -> Stream:
        """All of it, out of its chunks."""
        loop, raw = asyncio.get_running_loop(), b""
        while part := await loop.sock_recv(self.connection, 1 << 16):
            raw += part
        self.connection.close()
        head, _, rest = raw.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        body = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        return Stream.of(body.decode())


class Watched(unread.Unread):
    """Keeps the most that ever waited."""

    most = 0

    def put(self, delta: Any) -> None:
        super().put(delta)
        type(self).most = max(self.most, len(self))


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> type[Watched]:
    monkeypatch.setattr(Watched, "most", 0)
    monkeypatch.setattr(unread, "Unread", Watched)
    return Watched


@pytest.mark.parametrize("readers", [1, 16])
async def test_a_reader_that_does_not_read_skips_states_and_no_canvas(
    checkpoint: Path, watched: type[Watched], readers: int
) -> None:
    async with edge(checkpoint, SCRIPT, api=API, slots=16, canvas_length=CANVAS, step_s=0.003) as e:
        behind = Counting(e.backend.engine)
        async with edge(checkpoint, api=API, backend=behind) as slow, served(slow.app, send_buffer=SMALL) as url:
            asleep = [await Reader.ask(url, seed=seed) for seed in range(readers)]
            await until(lambda: len(behind.requests) == readers)
            # Nobody reads a byte, and the engine goes on to the end of every answer.
            await until(lambda: behind.busy == 0)
            assert behind.engine.stats().counters["easel_engine_steps_total"] >= CANVASES * 40
            assert watched.most <= CANVASES + 3  # the canvases, one state, and how the answer began and ended
            streams = [await reader.read() for reader in asleep]
            await until(lambda: slow.recorder.total(REQUESTS, code="ok") == readers)
        for seed, stream in enumerate(streams):
            assert stream.done
            [replay] = replays(stream.events).values()
            whole = (await e.complete(max_tokens=TOKENS, seed=seed)).json()["choices"][0]["text"]
            assert replay.text() == stream.text() == whole
            assert replay.committed == CANVASES
        told = sum(replay.states for stream in streams for replay in replays(stream.events).values())
        assert told < behind.states * 0.9


async def test_a_reader_that_does_not_read_holds_nobody_up(checkpoint: Path) -> None:
    async with (
        edge(checkpoint, SCRIPT, api=API, slots=4, canvas_length=CANVAS, step_s=0.003) as e,
        served(e.app, send_buffer=SMALL) as url,
    ):
        asleep = await Reader.ask(url)
        await until(lambda: e.backend.busy == 1)
        awake = await (await Reader.ask(url, n=2, seed=3)).read()
        assert [replay.committed for replay in replays(awake.events).values()] == [CANVASES] * 2
        assert all(replay.text() == awake.text(index) for index, replay in replays(awake.events).items())
        assert (await asleep.read()).done


async def test_a_reader_that_vanishes_without_reading_frees_its_slots(checkpoint: Path) -> None:
    endless = Script(steps=lambda request, canvas: 48)
    async with (
        edge(checkpoint, endless, api=API, canvas_length=CANVAS, step_s=0.02) as e,
        served(e.app, send_buffer=SMALL) as url,
    ):
        reader = await Reader.ask(url, n=3)
        await until(lambda: e.backend.busy == 3)
        steps = e.backend.engine.stats().counters["easel_engine_steps_total"]
        await until(lambda: e.backend.engine.stats().counters["easel_engine_steps_total"] > steps + 5)
        reader.connection.close()
        await until(lambda: e.backend.busy == 0)
        await until(lambda: e.recorder.total(REQUESTS, code="client_gone") == 1)

"""The edge over a fake engine, for tests: in memory, or behind a real server on a loopback port.

The fake decodes nothing but keeps slots and time, so a slot that is not given back shows.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from easel.api.app import create_app
from easel.engine.fake import BYTE_OFFSET, FakeEngine, Script
from easel.protocol import EngineState, Event, GenerationRequest
from easel.settings import AppSettings
from easel.telemetry.recorder import MemoryRecorder
from ops.training.tokenizer import write_tokenizer

CANVAS = 16
CONTEXT = 512


def write_checkpoint(folder: Path, **config: Any) -> Path:
    """All of a checkpoint that the edge reads."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder, max_length=CONTEXT)
    text = {"vocab_size": 384, "max_position_embeddings": CONTEXT, "bos_token_id": 2}
    data = {"model_type": "diffusion_gemma", "canvas_length": CANVAS, "text_config": text} | config
    (folder / "config.json").write_text(json.dumps(data))
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 2, "eos_token_id": [1, 106, 50]}))
    return folder


def spell(text: str) -> tuple[int, ...]:
    """Token ids of a text in the byte-level tokenizer."""
    return tuple(BYTE_OFFSET + byte for byte in text.encode())


def saying(text: str) -> Script:
    """An engine that answers everything with one text, in two denoising steps a canvas."""
    return Script(answer=lambda request: spell(text), steps=lambda request, canvas: 2)


class EngineBackend:
    """A bare engine as a backend. Keeps what it was asked."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.requests: list[GenerationRequest] = []

    def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
        self.requests.append(request)
        return self.engine.generate(request)

    async def ready(self) -> str | None:
        state = self.engine.stats().state
        return None if state is EngineState.READY else f"The engine is {state}."

    @property
    def busy(self) -> int:
        """Sequences that hold a slot or wait for one."""
        stats = self.engine.stats()
        return stats.sequences + stats.waiting


@dataclass
class Edge:
    """What a test holds."""

    app: FastAPI
    client: httpx.AsyncClient
    backend: Any
    recorder: MemoryRecorder
    settings: AppSettings

    async def complete(self, **body: Any) -> httpx.Response:
        return await self.client.post("/v1/completions", json={"model": "easel", "prompt": "Hi", **body})

    async def chat(self, **body: Any) -> httpx.Response:
        messages = [{"role": "user", "content": "Hi"}]
        return await self.client.post("/v1/chat/completions", json={"model": "easel", "messages": messages, **body})


@dataclass
class Stream:
    """An event stream, taken apart."""

    events: list[dict[str, Any]] = field(default_factory=list)
    comments: list[str] = field(default_factory=list)
    done: bool = False

    @classmethod
    def of(cls, text: str) -> Stream:
        stream = cls()
        assert text.endswith("\n\n")
        for block in text[:-2].split("\n\n"):
            if block.startswith(":"):
                stream.comments.append(block)
            elif block == "data: [DONE]":
                stream.done = True
            else:
                assert not stream.done, "something came after [DONE]"
                stream.events.append(json.loads(block.removeprefix("data: ")))
        return stream

    def text(self, index: int = 0) -> str:
        """Of one choice."""
        found = [choice for event in self.events for choice in event.get("choices", []) if choice["index"] == index]
        return "".join(choice["text"] if "text" in choice else choice["delta"].get("content", "") for choice in found)


@asynccontextmanager
async def edge(
    checkpoint: Path,
    script: Script | None = None,
    *,
    api: dict[str, Any] | None = None,
    names: tuple[str, ...] = ("easel", "easel/alias"),
    context_tokens: int = CONTEXT,
    backend: Any = None,
    limits: Any = None,
    kind: str = "native",
    model: dict[str, Any] | None = None,
    **engine: Any,
) -> AsyncIterator[Edge]:
    """An application in memory. `engine`: arguments of `FakeEngine`; by default its steps take no time. `kind`: the
    engine that the settings name, whose table the application goes by."""
    fake = FakeEngine(**({"step_s": 0.0, "step_s_per_canvas": 0.0, "canvas_length": CANVAS} | engine), script=script)
    await fake.start()
    behind = backend or EngineBackend(fake)
    behaviour = {"kind": kind, "context_tokens": context_tokens}
    named = {"checkpoint": str(checkpoint), "names": names, "engine": behaviour} | (model or {})
    settings = AppSettings.model_validate({"models": {"default": named}, "api": api or {}})
    recorder = MemoryRecorder()
    app = create_app(settings, behind, recorder, limits)
    try:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://edge", timeout=30) as client:
            yield Edge(app, client, behind, recorder, settings)
    finally:
        await fake.stop()


@asynccontextmanager
async def served(app: FastAPI, send_buffer: int | None = None) -> AsyncIterator[str]:
    """The same application behind uvicorn on a free loopback port. Yields its address.

    `send_buffer`: bytes that the kernel keeps for a client that does not read.
    """
    listener = socket.socket()
    if send_buffer is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, lifespan="off", ws="none", timeout_graceful_shutdown=1)
    )
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await until(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await running
        listener.close()


async def until(condition: Any) -> None:
    """Returns when the condition holds; the test's own timeout ends it otherwise."""
    while not condition():
        await asyncio.sleep(0.005)

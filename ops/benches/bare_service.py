"""The API over a native engine in this process, on a real socket: what benches of progress streams ask.

No Ray and no router, so that what is measured is the engine, the API and HTTP. The tiny checkpoint; each canvas takes
16 steps, whatever the model says: it would be done before there is anything to tell.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "platform")]

import httpx  # noqa: E402
import uvicorn  # noqa: E402

from easel.api.app import create_app  # noqa: E402
from easel.engine.native.engine import NativeEngine  # noqa: E402
from easel.protocol import EngineState, Event, GenerationRequest  # noqa: E402
from easel.settings import AppSettings  # noqa: E402

TINY = ROOT / "platform" / "easel" / "checkpoints" / "tiny"
STEPS = 16


class Bare:
    """An engine as a backend."""

    def __init__(self, engine: NativeEngine) -> None:
        self.engine = engine

    def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
        denoising = replace(request.denoising, max_steps=STEPS, confidence=1e-9)
        return self.engine.generate(replace(request, ignore_eos=True, denoising=denoising))

    async def ready(self) -> str | None:
        state = self.engine.stats().state
        return None if state is EngineState.READY else str(state)


@asynccontextmanager
async def serving(slots: int, context_tokens: int) -> AsyncIterator[tuple[httpx.AsyncClient, NativeEngine]]:
    """A client of the service, and its engine."""
    engine_settings = {"slots": slots, "context_tokens": context_tokens}
    settings = AppSettings.model_validate(
        {"models": {"default": {"checkpoint": str(TINY), "names": ["tiny"], "engine": engine_settings}}}
    )
    engine = NativeEngine(TINY, settings.model.engine)
    await engine.start()
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(create_app(settings, Bare(engine)), log_config=None, lifespan="off", ws="none")
    )
    task = asyncio.create_task(server.serve(sockets=[listener]))
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        async with httpx.AsyncClient(base_url=address, timeout=600, trust_env=False) as client:
            while not server.started:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            yield client, engine
    finally:
        server.should_exit = True
        await task
        await engine.stop()

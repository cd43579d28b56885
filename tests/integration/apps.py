"""Serve applications for the tests: the real ones, around fake engines that do what the prompt tells them to.

fail N    fails instead of committing canvas N
slow      takes 48 denoising steps a canvas
freeze    stops the engine's loop for good
die       ends the process
hold F    says nothing after the first canvas until file F is there; if the client leaves first, writes F.left
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any, cast

from ray.serve import Application

from easel.engine.fake import FakeEngine, Script
from easel.errors import EngineFailed
from easel.protocol import CanvasCommitted, EngineStats, Event, GenerationRequest
from easel.rayserve.app import application
from easel.settings import ModelSettings, parse
from tests.integration.script import SLOTS, STEP_S, fail, steps, text


class Scripted(FakeEngine):
    async def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
        if text(request) == "die":
            os._exit(1)
        if "refuse" in text(request):
            raise EngineFailed("The engine was told to fail.")
        held = text(request).removeprefix("hold ") if text(request).startswith("hold ") else None
        async with aclosing(cast("Any", super().generate(request))) as events:
            async for event in events:
                yield event
                if held and isinstance(event, CanvasCommitted):
                    await until_there(held)
                    held = None


async def until_there(name: str) -> None:
    """The end of the generator is how an engine hears that a client has left."""
    try:
        while not os.path.exists(name):
            await asyncio.sleep(0.02)
    except (asyncio.CancelledError, GeneratorExit):
        with open(name + ".left", "w"):
            pass
        raise


def scripted(model: ModelSettings) -> FakeEngine:
    return Scripted(SLOTS, STEP_S, step_s_per_canvas=0.001, script=Script(steps=steps, fail=fail))


class Freezing(FakeEngine):
    """Its loop can hang as a device does: events stop, statistics get old, the rest of the process lives on."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._frozen: float | None = None

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
        async with aclosing(cast("Any", super().generate(request))) as events:
            async for event in events:
                if "freeze" in text(request):
                    self._frozen = super().stats().last_step_at
                    if self._loop is not None:
                        self._loop.cancel()
                yield event

    def stats(self) -> EngineStats:
        stats = super().stats()
        if self._frozen is None:
            return stats
        return replace(stats, last_step_at=self._frozen)


def freezing(model: ModelSettings) -> FakeEngine:
    return Freezing(SLOTS, STEP_S)


def build(args: Mapping[str, object]) -> Application:
    return application(parse({"app": dict(args)}, "args").app, scripted)


def build_freezing(args: Mapping[str, object]) -> Application:
    return application(parse({"app": dict(args)}, "args").app, freezing, stuck_after_s=0.5)

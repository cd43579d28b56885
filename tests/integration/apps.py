"""Serve applications for the tests: the real ones, around fake engines that do what the prompt tells them to.

fail N    fails instead of committing canvas N
slow      takes 48 denoising steps a canvas
freeze    stops the engine's loop for good
die       ends the process
hold F    keeps its slot after the first canvas, and goes no further until file F is there
hold N F  the same after N canvases

If the client of the last two leaves before F is there, the engine writes F.left.
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
from easel.protocol import EngineStats, Event, GenerationRequest
from easel.rayserve.app import application
from easel.settings import ModelSettings, parse
from tests.integration.script import SLOTS, STEP_S, fail, held, steps, text


class Scripted(FakeEngine):
    async def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
        if text(request) == "die":
            os._exit(1)
        if "refuse" in text(request):
            raise EngineFailed("The engine was told to fail.")
        try:
            async with aclosing(cast("Any", super().generate(request))) as events:
                async for event in events:
                    yield event
        except (asyncio.CancelledError, GeneratorExit):  # how an engine hears that a client has left
            if (file := held(request)) is not None:
                file.with_name(file.name + ".left").touch()
            raise

    def _advance(self, sequence: Any) -> None:
        if held(sequence.request, sequence.canvases) is None:
            super()._advance(sequence)


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

"""The real application around a fake engine that breaks when it is told to: what drills deploy.

Told by a prompt, which each replica obeys that gets it:

fault fail     from now on every request fails
fault die      the process ends, and with it what is in it
fault freeze   the loop stops turning for good, as on a device that hangs
fault drag     something holds up the loop: steps take about twice what the engine expects
fault capped   no canvas converges any more
fault leak     sequences of clients that leave keep their slots
fault none     as it was
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any, cast

from ray.serve import Application

from easel.engine.fake import BYTE_OFFSET, STEP_CAP, FakeEngine, Script, published_steps
from easel.errors import EaselError, EngineFailed
from easel.protocol import EngineStats, Event, FinishReason, GenerationRequest
from easel.rayserve.app import application
from easel.settings import ModelSettings, parse

WORD = "fault "
STUCK_AFTER_S = 90.0
"""Instead of 120: a drill shows the alert at 60 s and the replacement after it."""
HELD_UP_S = 0.03


def told(request: GenerationRequest) -> str | None:
    """The fault that a prompt asks for."""
    text = bytes(token - BYTE_OFFSET for token in request.prompt if 0 <= token - BYTE_OFFSET < 256).decode("latin-1")
    return text.partition(WORD)[2].split()[0] if WORD in text else None


class FaultyEngine(FakeEngine):
    """See the module."""

    def __init__(self, slots: int, step_s: float, step_s_per_canvas: float) -> None:
        super().__init__(slots, step_s, step_s_per_canvas, script=Script(steps=self._steps_of, fail=self._fails))
        self._fault = "none"
        self._frozen_at: float | None = None
        self._holder: asyncio.Task[None] | None = None
        self._over: set[Any] = set()
        self._leaked: list[Any] = []

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
        fault = told(request)
        if fault is not None:
            self._become(fault)
        async with aclosing(cast("Any", super().generate(request))) as events:
            async for event in events:
                yield event

    def _become(self, fault: str) -> None:
        self._fault = fault
        if self._holder is not None:
            self._holder.cancel()
            self._holder = None
        if fault == "die":
            os._exit(1)
        if fault == "drag":
            self._holder = asyncio.create_task(_hold_up())
        if fault == "freeze" and self._loop is not None:
            self._frozen_at = time.time()
            self._loop.cancel()
        if fault == "none":
            leaked, self._leaked = self._leaked, []
            for sequence in leaked:
                self._remove(sequence)

    def stats(self) -> EngineStats:
        stats = super().stats()
        return stats if self._frozen_at is None else replace(stats, last_step_at=self._frozen_at)

    def _finish(self, sequence: Any, reason: FinishReason) -> None:
        self._over.add(sequence)
        super()._finish(sequence, reason)

    def _remove(self, sequence: Any) -> None:
        left = sequence in self._seated and sequence not in self._over
        self._over.discard(sequence)
        if self._fault == "leak" and left and len(self._leaked) < self._slots - 1:
            self._leaked.append(sequence)
            return
        super()._remove(sequence)

    def _advance(self, sequence: Any) -> None:
        if sequence not in self._leaked:
            super()._advance(sequence)

    def _steps_of(self, request: GenerationRequest, canvas: int) -> int:
        return STEP_CAP if self._fault == "capped" else published_steps(request, canvas)

    def _fails(self, request: GenerationRequest, canvas: int) -> EaselError | None:
        return EngineFailed("The engine was told to fail.") if self._fault == "fail" else None


async def _hold_up() -> None:
    """What a process with too little of a core looks like: each turn of the loop comes late."""
    while True:
        time.sleep(HELD_UP_S)  # noqa: ASYNC251  # the point of it
        await asyncio.sleep(0.001)


def faulty(model: ModelSettings) -> FaultyEngine:
    engine = model.engine
    return FaultyEngine(engine.slots, engine.fake_step_ms / 1000, engine.fake_step_ms_per_canvas / 1000)


def build(args: Mapping[str, object]) -> Application:
    """For `import_path`."""
    return application(parse({"app": dict(args)}, "args").app, faulty, stuck_after_s=STUCK_AFTER_S)


def build_impatient(args: Mapping[str, object]) -> Application:
    """The same, with health checks that fail a second after the loop stopped."""
    return application(parse({"app": dict(args)}, "args").app, faulty, stuck_after_s=1.0)

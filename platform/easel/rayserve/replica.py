"""The engine deployment: a shell that holds one engine in one Serve replica.

Owns: the engine's life inside a replica (load, live limits, health, drain, stop) and the export of its statistics
and of what its requests took.
Refuses to know: how the engine decodes, and which requests it is given.

With Serve's throughput mode this code shares the replica's event loop with Serve itself, so nothing here may block:
an engine keeps its work in a thread or process of its own.

Life: Serve awaits `__init__`, which loads the model; then `reconfigure` with the live limits; from then on the replica
counts as running. At the end Serve stops sending requests, waits until those in hand are answered, at most
`graceful_shutdown_timeout_s`, and has `close` called.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Any, cast

from easel.errors import EngineFailed
from easel.protocol import (
    CanvasCommitted,
    Engine,
    EngineLimits,
    EngineState,
    EngineStats,
    Event,
    Finished,
    GenerationRequest,
)
from easel.rayserve.bundles import Bundle, bundled
from easel.rayserve.config import LIVE_LIMITS
from easel.rayserve.statistics import to_plain
from easel.settings import ModelSettings
from easel.telemetry import names
from easel.telemetry.recorder import NullRecorder, Recorder

logger = logging.getLogger("ray.serve")

STUCK_AFTER_S = 120.0
"""A loop whose last turn is longer ago has stopped turning. A step takes milliseconds on a GPU and a second or two on
a CPU at worst; what may take a minute is the first step at a new shape, while kernels are compiled."""

STATS_PERIOD_S = 1.0
"""Between two exports of statistics. Ray's agent is scraped every few seconds at most."""

NO_BOUND = 1024
"""`max_denoising_steps` where none is set: the most that the setting allows, so that a bound can be lifted live."""


class EngineReplica:
    """See the module. `name` is what the model is called in metrics, `make_engine` makes an engine, not started yet."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it: that is how a replica loads before it counts as up
        self,
        name: str,
        model: ModelSettings,
        make_engine: Callable[[ModelSettings], Engine],
        recorder: Recorder | None = None,
        stuck_after_s: float = STUCK_AFTER_S,
    ) -> None:
        self._name = name
        self._stuck_after_s = stuck_after_s
        self._recorder = recorder or NullRecorder()
        self._counted: dict[str, float] = {}
        """Totals already exported: the engine gives totals, a counter wants what was added."""
        self._exporter: asyncio.Task[None] | None = None
        self._closed = False
        began = time.monotonic()
        self._engine = make_engine(model)
        logger.info("loading %s with engine %s", model.checkpoint, self._engine.name)
        await self._engine.start()
        logger.info("%s is ready after %.1f s", model.checkpoint, time.monotonic() - began)
        self._exporter = asyncio.get_running_loop().create_task(self._export())

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Bundle]:
        """The events of one request: those that are there together are one chunk of the handle's stream.

        Serve cancels this generator when the caller cancels or is gone; closing the engine's iterator frees the slot.
        """
        async with aclosing(cast("Any", bundled(self._engine.generate(request)))) as bundles:
            async for bundle in bundles:
                for event in bundle:
                    self._count(event)
                yield bundle

    def _count(self, event: Event) -> None:
        """What a canvas and a finished request took, into the metrics."""
        model, recorder = self._name, self._recorder
        if isinstance(event, CanvasCommitted):
            recorder.add(names.CANVASES, 1.0, model=model, stop=str(event.stop))
            if event.steps:  # 0: the engine does not say
                recorder.observe(names.STEPS_PER_CANVAS, event.steps, model=model)
        elif isinstance(event, Finished):
            recorder.add(names.PROMPT_TOKENS, event.usage.prompt_tokens, model=model)
            recorder.add(names.OUTPUT_TOKENS, event.usage.completion_tokens, model=model)
            recorder.add(names.WORK, event.usage.work, model=model)

    async def stats(self) -> EngineStats:
        """The engine's snapshot."""
        return self._engine.stats()

    async def record_routing_stats(self) -> dict[str, Any]:
        """The same for every ingress, by way of Serve's controller."""
        return to_plain(self._engine.stats())

    async def reconfigure(self, user_config: Mapping[str, int | None]) -> None:
        """Take up live limits: `slots`, `prefill_tokens_per_step`, `max_denoising_steps`. None lifts a bound."""
        unknown = sorted(set(user_config) - set(LIVE_LIMITS))
        if unknown:
            raise ValueError(f"user_config: no such live limit: {', '.join(unknown)}; there are {LIVE_LIMITS}")
        limits = dict(user_config)
        if "max_denoising_steps" in limits and limits["max_denoising_steps"] is None:
            limits["max_denoising_steps"] = NO_BOUND
        await self._engine.reconfigure(EngineLimits(**limits))

    async def check_health(self) -> None:
        """Serve replaces a replica in which this raises three times running.

        One that was told to stop is not ill: a new controller that finds it would count that as a failed start.
        """
        stats = self._engine.stats()
        if stats.state is EngineState.FAILED or (stats.state is EngineState.STOPPED and not self._closed):
            raise EngineFailed(f"The engine is {stats.state}: {stats.failure or 'no reason given'}")
        age = time.time() - stats.last_step_at
        if stats.state is EngineState.READY and stats.last_step_at > 0 and age > self._stuck_after_s:
            raise EngineFailed(f"The engine's loop last turned {age:.0f} s ago.")

    async def close(self) -> None:
        """Stop the engine. Called once, when the last request is answered or the time for that is over."""
        self._closed = True
        if self._exporter is not None:
            self._exporter.cancel()
            await asyncio.gather(self._exporter, return_exceptions=True)
        await self._engine.stop()

    async def _export(self) -> None:
        while True:
            # An engine whose statistics fail goes on decoding; the health check is what decides over it.
            with contextlib.suppress(Exception):
                self._record(self._engine.stats())
            await asyncio.sleep(STATS_PERIOD_S)

    def _record(self, stats: EngineStats) -> None:
        model = self._name
        self._recorder.set(names.SLOTS, stats.slots, model=model)
        self._recorder.set(names.SLOTS_BUSY, stats.sequences, model=model)
        self._recorder.set(names.WAITING, stats.waiting, model=model)
        self._recorder.set(names.REMAINING_WORK, stats.remaining_work, model=model)
        for pool in stats.kv_pools:
            self._recorder.set(names.KV_BLOCKS_FREE, pool.free, model=model, pool=pool.name)
        for metric in (names.STEPS, names.PREEMPTIONS):
            total = stats.counters.get(metric.name, 0.0)
            self._recorder.add(metric, total - self._counted.get(metric.name, 0.0), model=model)
            self._counted[metric.name] = total

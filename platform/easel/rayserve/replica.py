"""The engine deployment: a shell that holds one engine in one Serve replica.

Owns: the engine's life inside a replica (load, live limits, health, drain, stop), and that its requests and statistics
are accounted for.
Refuses to know: how the engine decodes, which requests it is given, and what they count as.

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

from easel.errors import EaselError, EngineFailed, InternalError
from easel.protocol import Engine, EngineLimits, EngineState, EngineStats, GenerationRequest
from easel.rayserve import beginnings
from easel.rayserve.bundles import Bundle, bundled
from easel.rayserve.config import LIVE_LIMITS, LOG_LEVEL
from easel.rayserve.statistics import to_plain
from easel.settings import ModelSettings
from easel.telemetry import logs, names
from easel.telemetry.engine_account import EngineAccount
from easel.telemetry.statistics import StatisticsExport

logger = logging.getLogger("easel.replica")

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
        account: EngineAccount | None = None,
        stuck_after_s: float = STUCK_AFTER_S,
    ) -> None:
        self._stuck_after_s = stuck_after_s
        self._account = account or EngineAccount(name)
        self._statistics = StatisticsExport(name, self._account.recorder)
        self._exporter: asyncio.Task[None] | None = None
        self._closed = False
        began = time.monotonic()
        self._engine = make_engine(model)
        logger.info("loading %s with engine %s", model.checkpoint, self._engine.name)
        await self._engine.start()
        took = time.monotonic() - began
        logger.info("%s is ready after %.1f s", model.checkpoint, took)
        self._account.recorder.set(names.LOAD_SECONDS, took, model=name)
        beginnings.of_engine(self._account.recorder, name)
        self._exporter = asyncio.get_running_loop().create_task(self._export())

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Bundle]:
        """The events of one request: those that are there together are one chunk of the handle's stream.

        Serve cancels this generator when the caller cancels or is gone; closing the engine's iterator frees the slot.
        """
        followed = self._account.follow(request)
        try:
            async with aclosing(cast("Any", bundled(self._engine.generate(request)))) as bundles:
                async for bundle in bundles:
                    for event in bundle:
                        followed.saw(event)
                    yield bundle
        except Exception as error:
            followed.end(error.code if isinstance(error, EaselError) else InternalError.code)
            raise
        finally:
            followed.end()

    async def stats(self) -> EngineStats:
        """The engine's snapshot."""
        return self._engine.stats()

    async def record_routing_stats(self) -> dict[str, Any]:
        """The same for every ingress, by way of Serve's controller."""
        return to_plain(self._engine.stats())

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Take up what is live: `slots`, `prefill_tokens_per_step` and `max_denoising_steps`, where None lifts a bound;
        `log_level`."""
        known = (*LIVE_LIMITS, LOG_LEVEL)
        unknown = sorted(set(user_config) - set(known))
        if unknown:
            raise ValueError(f"user_config: no such live limit: {', '.join(unknown)}; there are {known}")
        limits = dict(user_config)
        level = limits.pop(LOG_LEVEL, None)
        if level is not None:
            logs.set_level(level)
        if "max_denoising_steps" in limits and limits["max_denoising_steps"] is None:
            limits["max_denoising_steps"] = NO_BOUND
        await self._engine.reconfigure(EngineLimits(**limits))

    async def check_health(self) -> None:
        """Serve replaces a replica in which this raises three times running.

        One that was told to stop is not ill: a new controller that finds it would count that as a failed start.
        """
        illness = self._illness(self._engine.stats())
        if illness is not None:
            logger.error("the health check fails: %s", illness)
            self._account.recorder.add(names.HEALTH_FAILURES, model=self._account.model)
            raise EngineFailed(illness)

    def _illness(self, stats: EngineStats) -> str | None:
        if stats.state is EngineState.FAILED or (stats.state is EngineState.STOPPED and not self._closed):
            return f"The engine is {stats.state}: {stats.failure or 'no reason given'}"
        age = time.time() - stats.last_step_at
        if stats.state is EngineState.READY and stats.last_step_at > 0 and age > self._stuck_after_s:
            return f"The engine's loop last turned {age:.0f} s ago."
        return None

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
                self._statistics.export(self._engine.stats(), time.time())
            self._account.settle()
            await asyncio.sleep(STATS_PERIOD_S)

"""One ingress's reports to the work-reporting actor, and what it learns of the other ingresses by them.

Owns: that a report goes out ten times a second as long as this process lives, whatever becomes of the actor, and that
work which is held while no replica runs gets one started. Refuses to know: what is reported.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from easel.router.router import Router

logger = logging.getLogger("easel.reporting")

PERIOD_S = 0.1
TIMEOUT_S = 1.0
"""For one report. The next one says what it would have said."""

HELD_S = 2.0
"""Work held so long with no replica in sight: one request goes into Serve's handle, which starts a replica whatever the
autoscaling policy says or cannot say."""

NONE_YET = "none yet"
"""Stands for the replica that is to come: lets one request go."""


class Reporter:
    """`find` returns the actor's handle and may block; `targets` are those of autoscaling, told to the policy; `late`
    is told by how many seconds the event loop came back late to each report."""

    def __init__(
        self,
        router: Router,
        find: Callable[[], Any],
        late: Callable[[float], object] = lambda seconds: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.targets: dict[str, Any] = {}
        self._router = router
        self._find = find
        self._late = late
        self._clock = clock
        self._actor: Any = None
        self._held_since: float | None = None

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            began = self._clock()
            await self.report()
            ended = self._clock()
            pause = max(0.0, PERIOD_S - (ended - began))
            await asyncio.sleep(pause)
            self._late(max(0.0, self._clock() - ended - pause))

    async def report(self) -> None:
        """Once. Raises nothing."""
        report = self._router.report()
        self._let_one_go(report.queued_requests)
        try:
            if self._actor is None:
                self._actor = await asyncio.to_thread(self._find)
            others = await asyncio.wait_for(self._actor.put.remote(asdict(report), self.targets), TIMEOUT_S)
        except Exception as error:  # restarting, or its node is gone: this ingress goes on by itself
            logger.warning("the work-reporting actor did not answer: %s", type(error).__name__)
            self._actor = None
            await asyncio.sleep(PERIOD_S)
            return
        self._router.ingresses({one["ingress"]: one["queued_requests"] + one["running_requests"] for one in others})

    def _let_one_go(self, queued: int) -> None:
        if not queued or self._router.placement.replicas:
            self._held_since = None
            return
        now = self._clock()
        self._held_since = now if self._held_since is None else self._held_since
        if now - self._held_since >= HELD_S:
            self._held_since = None
            self._router.replicas([NONE_YET])

"""Knows whether a deployment has a running replica, without asking Serve's controller each time.

Owns: one cached answer, refreshed by a thread and at most once in `max_age_s`, shared by all who ask. Refuses to know:
what the replicas do.

When the controller cannot be asked, because the head node is away, the last answer holds: replicas go on serving
without it. A call to a controller that is being restarted does not fail but waits for it, so nobody waits long for the
answer either.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

logger = logging.getLogger("easel.watch")

MAX_AGE_S = 1.0
"""How old an answer may be. The controller itself notices a death at its next health check, up to 2 s later."""

ANSWER_S = 1.0
"""How long the controller is waited for, by all who ask together. What it says later counts from then on."""


def count_running(application: str, deployment: str) -> int:
    """Replicas of a deployment that run, by Serve's own account. Blocks for a call to the controller."""
    from ray import serve

    overview = serve.status().applications[application].deployments[deployment]
    return int(overview.replica_states.get("RUNNING", 0))


class ReplicaWatch:
    """Counts running replicas. `count` blocks, so it runs in a thread."""

    def __init__(
        self,
        count: Callable[[], int],
        max_age_s: float = MAX_AGE_S,
        clock: Callable[[], float] = time.monotonic,
        answer_s: float = ANSWER_S,
    ) -> None:
        self._count = count
        self._max_age_s = max_age_s
        self._answer_s = answer_s
        self._clock = clock
        self._running = 0
        self._taken_at: float | None = None
        self._asked_at = 0.0
        self._refresh: asyncio.Task[None] | None = None

    async def running(self) -> int:
        """How many run; 0 until that was found out once."""
        if self._taken_at is None or self._clock() - self._taken_at >= self._max_age_s:
            if self._refresh is None or self._refresh.done():
                self._refresh, self._asked_at = asyncio.get_running_loop().create_task(self._ask()), self._clock()
            # Not awaited itself: one caller who leaves must not take the answer from the others.
            left = self._asked_at + self._answer_s - self._clock()
            await asyncio.wait({self._refresh}, timeout=max(0.0, left))
        return self._running

    async def _ask(self) -> None:
        try:
            self._running = await asyncio.to_thread(self._count)
        except KeyError:  # Serve does not know the application or deployment yet
            self._running = 0
        except Exception as error:  # whatever keeps the controller from answering, the last answer holds
            logger.warning("the controller did not say which replicas run: %s", type(error).__name__)
        self._taken_at = self._clock()

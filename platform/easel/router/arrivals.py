"""How fast work comes in, lately.

Owns: one decaying sum. Refuses to know: whose work it is and what becomes of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable


class ArrivalRate:
    """Units of work a second over about `memory_s` seconds. `clock`: seconds that only go forward."""

    def __init__(self, clock: Callable[[], float], memory_s: float = 10.0) -> None:
        self._clock = clock
        self._memory_s = memory_s
        self._sum = 0.0
        self._at = self._began = clock()

    def came(self, work: float) -> None:
        """So much asked to come in, now."""
        self._fade()
        self._sum += work

    def rate(self) -> float:
        """Units of work a second."""
        self._fade()
        # At first there is less than the memory to divide by; a second at least, or one request would be a flood.
        known = max(1.0, min(self._at - self._began, 60.0 * self._memory_s))
        return self._sum / (self._memory_s * (1.0 - math.exp(-known / self._memory_s)))

    def _fade(self) -> None:
        now = self._clock()
        self._sum *= math.exp(-(now - self._at) / self._memory_s)
        self._at = now

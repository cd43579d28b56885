"""Whose time a replica's devices spend: at each moment evenly that of all requests in its slots.

Every canvas in a step has as many rows as every other, so a step costs each of them the same part. What nobody is
there for is idle. So all shares and the idle time add up to devices times seconds, whatever comes and goes.

Owns: that division. Refuses to know: prices, and what a request is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Who = TypeVar("Who", bound=Hashable)


class DeviceTime(Generic[Who]):
    """See the module. `devices`: GPUs, or 1 for a CPU; `clock` in seconds, only forward."""

    def __init__(self, devices: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._devices = devices
        self._clock = clock
        self._since = clock()
        self._there: dict[Who, int] = {}
        self._spent: dict[Who, float] = {}
        self._idle = 0.0

    def begin(self, who: Who) -> None:
        """A request of theirs has a slot."""
        self._pass()
        self._there[who] = self._there.get(who, 0) + 1

    def end(self, who: Who) -> None:
        """It has it no longer."""
        self._pass()
        self._there[who] -= 1
        if not self._there[who]:
            del self._there[who]

    def settle(self) -> tuple[dict[Who, float], float]:
        """Device-seconds by whose they were, and idle ones, since this was asked last."""
        self._pass()
        spent, idle = self._spent, self._idle
        self._spent, self._idle = {}, 0.0
        return spent, idle

    def _pass(self) -> None:
        now = self._clock()
        passed, self._since = self._devices * (now - self._since), now
        everybody = sum(self._there.values())
        if not everybody:
            self._idle += passed
        for who, requests in self._there.items():
            self._spent[who] = self._spent.get(who, 0.0) + passed * requests / everybody

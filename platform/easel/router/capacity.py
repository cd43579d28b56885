"""What replicas can do, and which part of it this ingress may fill.

Owns: throughput from the step-time model, the efficient number of canvases, the split of seats between ingresses, and
the measured rate at which held work leaves. Refuses to know: tenants, and how a replica is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from easel.protocol import EngineState, EngineStats, StepTimeModel

EFFICIENCY = 0.9
"""Of the throughput with every slot taken: what an efficient number of canvases reaches."""

PREFILL_A_STEP = 2.0
"""Units of prefill in one step of an engine: `prefill_tokens_per_step` as it is by default."""

LEAST_STEPS = 5
"""Steps that a replica has to have done before the speed of its steps says anything: the first may load and compile."""

PRIOR_S = 2.0
"""Seconds over which what is measured takes the step-time model's place."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What one ingress may fill."""

    seats: int = 0
    """Requests that it may have with replicas at once. 0: hold everything."""
    work_per_s: float = 0.0
    """Its share of what the replicas do with those seats taken, in units of work. 0: not known."""
    replicas: int = 0
    """That are ready, all of them."""


def efficient_canvases(step_time: StepTimeModel, slots: int, efficiency: float = EFFICIENCY) -> int:
    """The fewest canvases side by side that reach `efficiency` of the throughput with all slots taken. At least 1;
    `slots` where the step time is not known yet."""
    full = _rate(step_time, slots)
    if full <= 0.0:
        return max(1, slots)
    return next((n for n in range(1, slots) if _rate(step_time, n) >= efficiency * full), max(1, slots))


def work_rate(stats: EngineStats, canvases: int | None = None) -> float:
    """Units of work a second of one replica with so many canvases side by side; None: with every slot taken. 0 where
    its step time is not known yet."""
    return _rate(stats.step_time, stats.slots if canvases is None else min(canvases, stats.slots))


def _rate(step_time: StepTimeModel, canvases: int) -> float:
    seconds = step_time.seconds(canvases)
    return canvases / seconds if seconds > 0.0 and step_time.samples else 0.0


def total(stats: Iterable[EngineStats], surplus: int = 0) -> Capacity:
    """Of several replicas together: seats (`surplus` more than the slots of each), rate, count. Those that are not
    ready do not count; those that have hardly done a step yet are taken to be like the others."""
    ready = [one for one in stats if one.state is EngineState.READY]
    begun = (one for one in ready if one.step_time.samples >= LEAST_STEPS)
    rates = [rate for rate in map(work_rate, begun) if rate > 0.0]
    rate = sum(rates) * len(ready) / len(rates) if rates else 0.0
    return Capacity(sum(one.slots + surplus for one in ready), rate, len(ready))


def share(capacity: Capacity, demands: Mapping[str, float], me: str) -> Capacity:
    """The part of `capacity` for ingress `me`, given how many requests each live ingress has queued and in flight.

    Seats go round evenly, and what one does not need goes to those that do. Every ingress that reads the same demands
    computes the same split, whose seats add up to the whole; each gets one seat at least, so with more ingresses than
    seats there are that many more. An ingress missing from `demands` counts itself as one more without any.
    """
    wants = {**demands, me: demands.get(me, 0.0)}
    left, seats = capacity.seats, {}
    by_want = sorted(wants, key=lambda name: (wants[name], name))
    for index, name in enumerate(by_want):
        seats[name] = min(math.ceil(wants[name]), left // (len(wants) - index))
        left -= seats[name]
    # What nobody needs now is there for who comes next, wherever that is.
    for index, name in enumerate(by_want):
        seats[name] += left // len(wants) + (index < left % len(wants))
    mine = max(seats[me], 1) if capacity.seats else 0
    return Capacity(mine, capacity.work_per_s * mine / capacity.seats if capacity.seats else 0.0, capacity.replicas)


class Throughput:
    """Measures how fast held work is done while there is more of it than seats. `clock` in seconds, monotonic.

    Each such time counts from the first work done in it: before that a replica may have loaded, or everything stood
    still, and what was done meanwhile of the requests that run is not known."""

    def __init__(self, clock: Callable[[], float], memory_s: float = 30.0) -> None:
        self._clock = clock
        self._memory_s = memory_s
        self._saturated = False
        self._since: float | None = None
        """Up to when it is measured; None: nothing was done yet since every seat was taken."""
        self._work = 0.0
        self._seconds = 0.0

    def busy(self, saturated: bool) -> None:
        """From now on every seat is taken, or not any more."""
        self._pass()
        self._saturated = saturated
        if not saturated:
            self._since = None

    def did(self, work: float) -> None:
        """So many units of work were done since the last call."""
        self._pass()
        if self._since is not None:
            self._work += work
        elif self._saturated and work > 0.0:
            self._since = self._clock()

    def rate(self, modelled: float) -> float:
        """Units of work a second: measured as far as there is a measurement, else `modelled`."""
        self._pass()
        if modelled <= 0.0:
            return self._work / self._seconds if self._seconds >= PRIOR_S else 0.0
        if self._seconds <= 0.0:
            return modelled
        trust = 1.0 - math.exp(-self._seconds / PRIOR_S)
        return trust * self._work / self._seconds + (1.0 - trust) * modelled

    def forget(self) -> None:
        """There are more or fewer seats than there were: what was measured says nothing of that."""
        self._work = self._seconds = 0.0
        self._since = None

    def _pass(self) -> None:
        if self._since is None:
            return
        now = self._clock()
        passed, self._since = now - self._since, now
        keep = math.exp(-passed / self._memory_s)
        self._work *= keep
        self._seconds = self._seconds * keep + passed

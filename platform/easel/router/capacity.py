"""What replicas can do, and which part of it this ingress may fill.

Owns: throughput from the step-time model, the efficient number of canvases, the split of seats between ingresses, and
the measured rate at which held work leaves. Refuses to know: tenants, and how a replica is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from easel.protocol import EngineStats, StepTimeModel

EFFICIENCY = 0.9
"""Of the throughput with every slot taken: what an efficient number of canvases reaches."""


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
    raise NotImplementedError


def work_rate(stats: EngineStats, canvases: int | None = None) -> float:
    """Units of work a second of one replica with so many canvases side by side; None: with every slot taken. 0 where
    its step time is not known yet."""
    raise NotImplementedError


def total(stats: Iterable[EngineStats], surplus: int = 0) -> Capacity:
    """Of several replicas together: seats (`surplus` more than the slots of each), rate, count. Those that are not
    ready do not count."""
    raise NotImplementedError


def share(capacity: Capacity, demands: Mapping[str, float], me: str) -> Capacity:
    """The part of `capacity` for ingress `me`, given what each live ingress has queued and in flight.

    Seats go round evenly, and what one does not need goes to those that do. Every ingress that reads the same demands
    computes the same split, whose seats add up to the whole; each gets one seat at least, so with more ingresses than
    seats there are that many more. An ingress missing from `demands` counts itself as one more without any.
    """
    raise NotImplementedError


class Throughput:
    """Measures how fast held work is done while there is more of it than seats. `clock` in seconds, monotonic."""

    def __init__(self, clock: Callable[[], float], memory_s: float = 30.0) -> None: ...

    def busy(self, saturated: bool) -> None:
        """From now on every seat is taken, or not any more."""
        raise NotImplementedError

    def did(self, work: float) -> None:
        """So many units of work were done since the last call."""
        raise NotImplementedError

    def rate(self, modelled: float) -> float:
        """Units of work a second: measured as far as there is a measurement, else `modelled`."""
        raise NotImplementedError

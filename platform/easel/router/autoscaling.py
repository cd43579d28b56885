"""How many engine replicas there should be, from the work that is queued and running.

    target = (queued + running remaining work) / what one replica does in the time target

raised where work arrives faster than that many replicas would do it, and held back by delays, a tolerance, limits on
one change, and what is loading already. Or, for who only wants to say that much: so many queued requests a replica.

Owns: that decision and why it was taken; how reports of several ingresses add up. Refuses to know: everything else.
This module imports the standard library only, and nothing of Easel: Serve's controller unpickles it by value on the
head node, where there may be no more than Ray. Nothing in it blocks. What it remembers between decisions is small, can
be put in a dict and may be lost: then delays begin anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Reason = Literal[
    "hold: nothing fresh",
    "hold: within tolerance",
    "hold: up delay",
    "hold: down delay",
    "hold: replicas are loading",
    "hold: at the bound",
    "hold: as wanted",
    "up: work",
    "up: arrivals",
    "up: queue depth",
    "up: from zero",
    "up: minimum",
    "down: less work",
    "down: idle",
    "down: maximum",
]


@dataclass(frozen=True, slots=True)
class ScalingTargets:
    """What is wanted. Passed to each decision, so it may change between two."""

    min_replicas: int = 1
    max_replicas: int = 1
    mode: Literal["work", "queue_depth"] = "work"
    target_s: float = 2.0
    """Mode `work`: seconds in which the replicas should be able to do all work that is queued and running."""
    utilisation: float = 0.8
    """Mode `work`: part of what the replicas can do that arriving work may take up."""
    queue_depth: float = 4.0
    """Mode `queue_depth`: requests waiting for a seat, for each replica."""
    up_delay_s: float = 0.0
    """More must have been wanted for so long."""
    down_delay_s: float = 60.0
    """Fewer must have been wanted for so long; then the most that was wanted in that time is what remains."""
    to_zero_delay_s: float = 300.0
    """Without any work for so long, the last replica goes; only with `min_replicas` 0."""
    tolerance: float = 0.1
    """Part of a replica by which the need may go over the present count before there are more, and must be below a
    smaller count before there are fewer."""
    up_factor: float = 2.0
    """One decision raises the count to at most this many times what it was, or by `up_step` if that is more."""
    up_step: int = 4
    down_factor: float = 0.5
    """One decision lowers the count to no less than this part of what it was (but by one at least)."""

    def __post_init__(self) -> None:
        """Raises `ValueError` that names the field."""


@dataclass(frozen=True, slots=True)
class IngressReport:
    """What one ingress holds: put to the named actor ten times a second, also while it drains."""

    ingress: str
    """Its replica id."""
    queued_work: float = 0.0
    """Units of work held."""
    running_work: float = 0.0
    """Units of work remaining of what it has with replicas."""
    queued_requests: int = 0
    running_requests: int = 0
    arriving_work_per_s: float = 0.0
    """Units of work a second that lately asked to come in, whether admitted, held or refused for the service's own
    bounds."""
    replica_work_per_s: float = 0.0
    """What one replica does with all slots taken, as this ingress knows it; 0: it does not."""
    replica_slots: int = 0
    """Seats of one replica; 0: not known."""


@dataclass(frozen=True, slots=True)
class Demand:
    """Fresh reports added up. `ingresses` 0: nothing is fresh."""

    queued_work: float = 0.0
    running_work: float = 0.0
    queued_requests: int = 0
    running_requests: int = 0
    arriving_work_per_s: float = 0.0
    replica_work_per_s: float = 0.0
    replica_slots: int = 0
    ingresses: int = 0


def add_up(reports: Iterable[tuple[float, IngressReport]], now: float, max_age_s: float = 3.0) -> Demand:
    """The sum of the reports received within `max_age_s` before `now`: (received at, report), one clock for both.
    Of an ingress's several reports the newest counts."""
    raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a decision rests on."""

    now: float
    """Seconds on any clock that only goes forward."""
    demand: Demand
    target: int
    """Replicas that are wanted at present: those that run and those that are still to."""
    ready: int
    """Of them, those that take requests."""
    cold_start_s: float = 0.0
    """How long a new replica takes to be ready, as last seen; 0: not known."""


@dataclass(frozen=True, slots=True)
class Decision:
    """How many replicas there should be from now on, and why."""

    target: int
    reason: Reason
    wanted: float
    """Replicas, before rounding, bounds, delays and limits."""
    inputs: Inputs
    details: Mapping[str, float] = field(default_factory=dict)
    """What `wanted` is made of, by name: `backlog`, `arrivals`, `seats`, `queue`, ..."""

    def line(self) -> str:
        """One line for the log, with everything above."""
        raise NotImplementedError


class Autoscaler:
    """Decides, and remembers what was wanted lately."""

    def decide(self, inputs: Inputs, targets: ScalingTargets) -> Decision:
        """Call it at each tick. Never raises for any inputs."""
        raise NotImplementedError

    def state(self) -> dict[str, list[float]]:
        """What it remembers, for whoever keeps state between two lives of it."""
        raise NotImplementedError

    def restore(self, state: Mapping[str, list[float]]) -> None:
        """Take up what another one remembered. Ignores what it cannot read."""
        raise NotImplementedError

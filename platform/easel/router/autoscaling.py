"""How many engine replicas there should be, from the work that is queued and running.

    target = (queued + running remaining work) / what one replica does in the time target

raised where work arrives faster than that many replicas would do it (a service that keeps up has little remaining work
and needs its replicas all the same), and held back by delays, a tolerance, limits on one change, and what is loading
already. Or, for who only wants to say that much: so many queued requests a replica.

Owns: that decision and why it was taken; how reports of several ingresses add up. Refuses to know: everything else.
This module imports the standard library only, and nothing of Easel: Serve's controller unpickles it by value on the
head node, where there may be no more than Ray. Nothing in it blocks. What it remembers between decisions is small, can
be put in a dict and may be lost: then delays begin anew.
"""

from __future__ import annotations

import math
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

PATIENCE = 2.0
"""Replicas that were ordered longer ago than this many cold starts are overdue: others are ordered as if they were not
there."""
UNKNOWN_START_S = 60.0
"""The same, in seconds, where no start was seen yet."""


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
        if not 0 <= self.min_replicas <= self.max_replicas or self.max_replicas < 1:
            raise ValueError(f"min_replicas: {self.min_replicas} to max_replicas {self.max_replicas} is no range")
        for name in ("target_s", "queue_depth", "utilisation", "up_factor"):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"{name}: {getattr(self, name)} is not above 0")
        for name in ("up_delay_s", "down_delay_s", "to_zero_delay_s", "tolerance", "up_step"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)} is below 0")
        if not 0.0 <= self.down_factor <= 1.0:
            raise ValueError(f"down_factor: {self.down_factor} is not between 0 and 1")
        if self.mode not in ("work", "queue_depth"):
            raise ValueError(f"mode: {self.mode!r} is neither 'work' nor 'queue_depth'")


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
    Of an ingress's several reports the newest counts; of a replica's rate and slots, the mean of those who know."""
    newest: dict[str, tuple[float, IngressReport]] = {}
    for received, report in reports:
        if now - received <= max_age_s and (report.ingress not in newest or newest[report.ingress][0] <= received):
            newest[report.ingress] = (received, report)
    fresh = [report for _, report in newest.values()]
    rates = [report.replica_work_per_s for report in fresh if report.replica_work_per_s > 0.0]
    slots = [report.replica_slots for report in fresh if report.replica_slots > 0]
    return Demand(
        queued_work=sum(report.queued_work for report in fresh),
        running_work=sum(report.running_work for report in fresh),
        queued_requests=sum(report.queued_requests for report in fresh),
        running_requests=sum(report.running_requests for report in fresh),
        arriving_work_per_s=sum(report.arriving_work_per_s for report in fresh),
        replica_work_per_s=sum(rates) / len(rates) if rates else 0.0,
        replica_slots=round(sum(slots) / len(slots)) if slots else 0,
        ingresses=len(fresh),
    )


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
        demand = self.inputs.demand
        parts = [
            f"target {self.inputs.target} -> {self.target} ({self.reason}): wanted {self.wanted:.2f}",
            f"ready {self.inputs.ready}",
            f"queued {demand.queued_requests} requests {demand.queued_work:.1f} units",
            f"running {demand.running_requests} requests {demand.running_work:.1f} units",
            f"arriving {demand.arriving_work_per_s:.1f} units/s",
            f"a replica does {demand.replica_work_per_s:.1f} units/s in {demand.replica_slots} slots",
            f"cold start {self.inputs.cold_start_s:.1f} s",
            f"ingresses {demand.ingresses}",
            *(f"{name} {value:.2f}" for name, value in self.details.items()),
        ]
        return ", ".join(parts)


class Autoscaler:
    """Decides, and remembers what was wanted lately."""

    def __init__(self) -> None:
        self._wanted: list[tuple[float, float]] = []
        """(when, replicas wanted), oldest first, as far back as the longest delay."""
        self._idle_since: float | None = None
        self._raised_at = -math.inf
        self._rate = 0.0
        """The last rate of a replica that anyone knew: with no replica left nobody does."""

    def decide(self, inputs: Inputs, targets: ScalingTargets) -> Decision:
        """Call it at each tick. Never raises for any inputs."""
        demand, now = inputs.demand, inputs.now
        if not demand.ingresses:
            return self._clamped(inputs, targets, float(inputs.target), {})
        if demand.replica_work_per_s > 0.0:
            self._rate = demand.replica_work_per_s
        busy = demand.queued_requests + demand.running_requests > 0
        self._idle_since = None if busy else now if self._idle_since is None else min(self._idle_since, now)
        wanted, details, why_up = self._need(inputs, targets)
        self._remember(now, wanted, targets)

        if inputs.target == 0:
            if busy and targets.max_replicas > 0:
                self._raised_at = now
                target = min(max(1, targets.min_replicas, self._raised(1, wanted, targets)), targets.max_replicas)
                return Decision(target, "up: from zero", wanted, inputs, details)
            return self._clamped(inputs, targets, wanted, details)
        if inputs.target < targets.min_replicas or inputs.target > targets.max_replicas:
            return self._clamped(inputs, targets, wanted, details)

        up = self._least(now, targets.up_delay_s)
        if up > inputs.target + targets.tolerance:
            return self._up(inputs, targets, min(up, wanted), wanted, why_up, details)
        if wanted > inputs.target + targets.tolerance:
            return Decision(inputs.target, "hold: up delay", wanted, inputs, details)
        return self._down(inputs, targets, wanted, details)

    def _need(self, inputs: Inputs, targets: ScalingTargets) -> tuple[float, dict[str, float], Reason]:
        """Replicas that are needed, what that is made of, and the reason if it means more."""
        demand = inputs.demand
        busy = 1.0 if demand.queued_requests + demand.running_requests else 0.0
        if targets.mode == "queue_depth":
            # Seats for what runs, and one more replica for each so many that wait.
            seats = demand.running_requests / demand.replica_slots if demand.replica_slots else busy
            queue = demand.queued_requests / targets.queue_depth
            seats = min(seats, float(max(inputs.target, 1)))  # requests handed on beyond the slots need no seats
            return seats + queue, {"seats": seats, "queue": queue}, "up: queue depth"
        if self._rate <= 0.0:
            # Nobody knows how fast a replica is: one has to be seen first.
            return max(busy, float(inputs.target)), {"backlog": busy, "arrivals": 0.0}, "up: work"
        backlog = (demand.queued_work + demand.running_work) / (self._rate * targets.target_s)
        arrivals = demand.arriving_work_per_s / (self._rate * targets.utilisation)
        details = {"backlog": backlog, "arrivals": arrivals}
        if backlog > arrivals and inputs.cold_start_s > 0.0:
            # What those that are ready will have done before a new one could help is no reason for a new one.
            done = self._rate * inputs.ready * inputs.cold_start_s
            come = demand.arriving_work_per_s * inputs.cold_start_s
            then = max(0.0, demand.queued_work + demand.running_work + come - done)
            late = then / (self._rate * targets.target_s)
            details["backlog_after_start"] = late
            # Never below what is there: having enough is no reason for fewer either.
            backlog = min(backlog, max(late, arrivals, float(inputs.target)))
        wanted = max(backlog, arrivals, busy if inputs.target <= 1 else 0.0)
        return wanted, details, "up: arrivals" if arrivals >= backlog else "up: work"

    def _up(
        self,
        inputs: Inputs,
        targets: ScalingTargets,
        steady: float,
        wanted: float,
        why: Reason,
        details: Mapping[str, float],
    ) -> Decision:
        if inputs.target >= targets.max_replicas:
            return Decision(inputs.target, "hold: at the bound", wanted, inputs, details)
        if targets.mode == "work" and self._loading(inputs) and details.get("arrivals", 0.0) <= inputs.target:
            # They were ordered for this very work, which goes on growing until they are there.
            return Decision(inputs.target, "hold: replicas are loading", wanted, inputs, details)
        self._raised_at = inputs.now
        target = min(self._raised(inputs.target, steady, targets), targets.max_replicas)
        return Decision(target, why, wanted, inputs, details)

    def _loading(self, inputs: Inputs) -> bool:
        """Whether replicas are on their way, and not overdue."""
        patience = PATIENCE * inputs.cold_start_s or UNKNOWN_START_S
        return inputs.ready < inputs.target and inputs.now - self._raised_at < patience

    def _raised(self, count: int, wanted: float, targets: ScalingTargets) -> int:
        limit = max(math.floor(count * targets.up_factor), count + targets.up_step, count + 1)
        return min(math.ceil(wanted - targets.tolerance), limit)

    def _down(self, inputs: Inputs, targets: ScalingTargets, wanted: float, details: Mapping[str, float]) -> Decision:
        now, present = inputs.now, inputs.target
        if self._idle_since is not None and targets.min_replicas == 0 and present == 1:
            if now - self._idle_since >= targets.to_zero_delay_s:
                return Decision(0, "down: idle", wanted, inputs, details)
            return Decision(1, "hold: down delay", wanted, inputs, details)
        # The first replica goes by the rule above only.
        floor = max(1, targets.min_replicas)
        fewer = max(math.ceil(wanted + targets.tolerance), floor)
        if fewer >= present:
            reason: Reason = "hold: within tolerance" if wanted > present - 1 else "hold: as wanted"
            return Decision(present, reason, wanted, inputs, details)
        most = self._most(now, targets.down_delay_s)
        if most >= present:
            return Decision(present, "hold: down delay", wanted, inputs, details)
        target = max(math.ceil(most + targets.tolerance), floor)
        target = max(target, min(math.ceil(present * targets.down_factor), present - 1))
        if target >= present:
            return Decision(present, "hold: down delay", wanted, inputs, details)
        return Decision(target, "down: less work", wanted, inputs, details)

    def _clamped(
        self, inputs: Inputs, targets: ScalingTargets, wanted: float, details: Mapping[str, float]
    ) -> Decision:
        """Where bounds alone decide, or nothing does."""
        if inputs.target < targets.min_replicas:
            return Decision(targets.min_replicas, "up: minimum", wanted, inputs, details)
        if inputs.target > targets.max_replicas:
            return Decision(targets.max_replicas, "down: maximum", wanted, inputs, details)
        reason: Reason = "hold: as wanted" if inputs.demand.ingresses else "hold: nothing fresh"
        return Decision(inputs.target, reason, wanted, inputs, details)

    def _remember(self, now: float, wanted: float, targets: ScalingTargets) -> None:
        if self._wanted and now < self._wanted[-1][0]:
            self._wanted.clear()  # another clock: what was remembered cannot be placed
            self._raised_at = -math.inf
            self._idle_since = None if self._idle_since is None else now
        self._wanted.append((now, wanted))
        # One entry older than the longest delay stays: it says what was wanted at the delay's beginning.
        oldest = now - max(targets.up_delay_s, targets.down_delay_s)
        while len(self._wanted) > 1 and self._wanted[1][0] <= oldest:
            self._wanted.pop(0)

    def _least(self, now: float, delay_s: float) -> float:
        """The least that was wanted in the last `delay_s`; 0 where that is longer ago than anything remembered."""
        return min(self._window(now, delay_s), default=0.0) if self._covers(now, delay_s) else 0.0

    def _most(self, now: float, delay_s: float) -> float:
        """The most that was wanted in the last `delay_s`; without end where memory does not reach that far."""
        return max(self._window(now, delay_s), default=0.0) if self._covers(now, delay_s) else math.inf

    def _covers(self, now: float, delay_s: float) -> bool:
        return bool(self._wanted) and self._wanted[0][0] <= now - delay_s

    def _window(self, now: float, delay_s: float) -> list[float]:
        return [wanted for at, wanted in self._wanted if at >= now - delay_s]

    def state(self) -> dict[str, list[float]]:
        """What it remembers, for whoever keeps state between two lives of it."""
        idle = [] if self._idle_since is None else [self._idle_since]
        at, wanted = [at for at, _ in self._wanted], [wanted for _, wanted in self._wanted]
        return {"at": at, "wanted": wanted, "idle_since": idle, "rate": [self._rate]}

    def restore(self, state: Mapping[str, list[float]]) -> None:
        """Take up what another one remembered. Ignores what it cannot read."""
        try:
            wanted = [(float(at), float(much)) for at, much in zip(state["at"], state["wanted"], strict=True)]
            idle = [float(since) for since in state["idle_since"]]
            (rate,) = (float(value) for value in state["rate"])
        except (KeyError, TypeError, ValueError):
            return
        self._wanted, self._rate = sorted(wanted), rate
        self._idle_since = idle[0] if idle else None

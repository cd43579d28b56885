"""The engine deployment's autoscaling policy: a shell around `easel.router.autoscaling`, run by Serve's controller.

A thread reads the work-reporting actor ten times a second; each tick of the controller decides on the last reading and
waits for nothing. No reading that is fresh, or any exception: the count stays as it is.

Owns: that thread, and the translation between Serve's context and `Inputs`. Refuses to know: how many replicas there
should be.

Life: Serve pickles this module by value into the deployment's configuration and makes a new policy of it at each
change of that configuration; nothing tells the old one. So the thread knows its policy by a weak reference only, and
ends when the policy is gone. What was remembered goes on in the state that Serve hands from one to the next.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import weakref
from collections.abc import Mapping
from typing import Any

from easel.rayserve.ledger import FRESH_S, NAMESPACE, ledger_name
from easel.router.autoscaling import Autoscaler, Decision, Demand, IngressReport, Inputs, ScalingTargets, add_up
from easel.telemetry import names

READ_PERIOD_S = 0.1
READ_TIMEOUT_S = 1.0
STATE = "easel"


class WorkPolicy:
    """Named in the configuration as `easel.rayserve.autoscaling:WorkPolicy`. Serve calls it at each tick."""

    def __init__(self, **kwargs: Any) -> None:
        """`kwargs`: Serve's `policy_kwargs`; none are known, because a change of them would restart every replica."""
        if kwargs:
            raise ValueError(f"policy_kwargs: no such setting: {', '.join(sorted(kwargs))}")
        self._autoscaler: Autoscaler | None = None
        self._reading: Reading | None = None
        self._starts = Starts()
        self._metrics: dict[str, Any] = {}
        self._logger = logging.getLogger("ray.serve")
        self._failed = False

    def __call__(self, ctx: Any) -> tuple[int, dict[str, Any]]:
        """The target, and what to remember. Never raises: then Serve would stop scaling other applications too."""
        state = dict(ctx.policy_state or {})
        try:
            if self._autoscaler is None:
                self._autoscaler = Autoscaler()
                self._autoscaler.restore(state.get(STATE, {}))
                self._reading = Reading(ledger_name(ctx.app_name))
            decision = self._decide(ctx, self._autoscaler)
            state[STATE] = self._autoscaler.state()
            self._failed = False
            return decision.target, state
        except Exception:
            if not self._failed:
                self._logger.exception("autoscaling: no decision; the number of replicas stays as it is")
            self._failed = True
            with contextlib.suppress(Exception):  # what went wrong may be the metrics
                self._tell(ctx.app_name, {names.SEEN_INGRESSES: 0}, "hold_failed")
            return ctx.target_num_replicas, state

    def _decide(self, ctx: Any, autoscaler: Autoscaler) -> Decision:
        assert self._reading is not None
        now = time.monotonic()
        demand, told = self._reading.demand(now)
        self._starts.saw(now, ctx.target_num_replicas, ctx.current_num_replicas)
        targets = ScalingTargets(
            **{
                **told,
                "min_replicas": ctx.capacity_adjusted_min_replicas,
                "max_replicas": ctx.capacity_adjusted_max_replicas,
            }
        )
        inputs = Inputs(now, demand, ctx.target_num_replicas, ctx.current_num_replicas, self._starts.last_s)
        decision = autoscaler.decide(inputs, targets)
        if decision.target != ctx.target_num_replicas:
            self._logger.info("autoscaling: %s", decision.line())
        self._export(ctx.app_name, decision, targets)
        return decision

    def _export(self, application: str, decision: Decision, targets: ScalingTargets) -> None:
        inputs, demand = decision.inputs, decision.inputs.demand
        numbers = {
            names.TARGET_REPLICAS: decision.target,
            names.WANTED_REPLICAS: decision.wanted,
            names.READY_REPLICAS: inputs.ready,
            names.MIN_REPLICAS: targets.min_replicas,
            names.MAX_REPLICAS: targets.max_replicas,
            names.SEEN_QUEUED_WORK: demand.queued_work,
            names.SEEN_RUNNING_WORK: demand.running_work,
            names.SEEN_QUEUED: demand.queued_requests,
            names.SEEN_ARRIVALS: demand.arriving_work_per_s,
            names.SEEN_RATE: demand.replica_work_per_s,
            names.SEEN_COLD_START: inputs.cold_start_s,
            names.SEEN_INGRESSES: demand.ingresses,
        }
        self._tell(application, numbers, decision.reason.replace(": ", "_").replace(" ", "_"))

    def _tell(self, application: str, numbers: Mapping[names.Metric, float], reason: str) -> None:
        from ray.util.metrics import Counter, Gauge

        for metric, value in numbers.items():
            self._metric(metric, Gauge).set(value, tags={"application": application})
        self._metric(names.DECISIONS, Counter).inc(1, tags={"application": application, "reason": reason})

    def _metric(self, metric: names.Metric, kind: Any) -> Any:
        if metric.name not in self._metrics:
            self._metrics[metric.name] = kind(metric.name, metric.meaning, metric.labels)
        return self._metrics[metric.name]


class Starts:
    """How long a replica takes to be ready: the first that came after there were to be more."""

    def __init__(self) -> None:
        self.last_s = 0.0
        self._ready = 0
        self._target = 0
        self._since: float | None = None

    def saw(self, now: float, target: int, ready: int) -> None:
        """The counts at a tick."""
        if self._since is not None and ready > self._ready:
            self.last_s, self._since = now - self._since, None
        if self._since is None and target > self._target and target > ready:
            self._since = now
        if target <= ready:
            self._since = None
        self._ready, self._target = ready, target


class Reading:
    """The last that the actor said, kept by a thread."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.last: tuple[float, list[tuple[float, dict[str, Any]]], dict[str, Any]] | None = None
        """(when, on our clock; (age then, report); targets). Replaced whole, so no lock is needed."""
        stop = threading.Event()
        weakref.finalize(self, stop.set)
        threading.Thread(target=_read, args=(weakref.ref(self), stop), daemon=True, name="easel-work").start()

    def demand(self, now: float) -> tuple[Demand, dict[str, Any]]:
        """Fresh reports added up, and the targets."""
        last = self.last
        if last is None:
            return Demand(), {}
        at, reports, targets = last
        return add_up([(at - age, IngressReport(**report)) for age, report in reports], now, FRESH_S), targets


def _read(reading: weakref.ref[Reading], stop: threading.Event) -> None:
    import ray

    actor = None
    while not stop.wait(READ_PERIOD_S):
        here = reading()
        if here is None:
            return
        if not ray.is_initialized():  # `get_actor` would start a cluster of its own
            continue
        try:
            actor = actor or ray.get_actor(here.name, namespace=NAMESPACE)
            reports, targets = ray.get(actor.read.remote(), timeout=READ_TIMEOUT_S)
            here.last = (time.monotonic(), reports, targets)
        except Exception:  # not there yet, restarting, or slow: what was read gets older, and then nothing is fresh
            actor = None
        del here

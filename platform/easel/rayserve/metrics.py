"""Puts measurements where Ray's exporter picks them up: `/metrics` of each node's agent.

Owns: one Ray metric for each entry of `easel.telemetry.names`, made when it is first used. Refuses to know: what the
numbers mean.

Ray prefixes every name with `ray_` and adds the labels `deployment`, `replica` and `application` inside a replica, so
`easel_slots` is scraped as `ray_easel_slots{deployment="engine",replica="...",model="..."}`. It ends a counter's name
in `_total` where it does not yet end so.
"""

from __future__ import annotations

import logging
from typing import Any

from ray.serve import metrics

from easel.telemetry.names import Kind, Metric

logger = logging.getLogger("ray.serve")


class RayRecorder:
    """A `Recorder` for one replica. Thread-safe, as Ray's metrics are; never raises: a mistake is logged once."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}
        self._broken: set[str] = set()

    def add(self, metric: Metric, value: float = 1.0, **labels: str) -> None:
        """Raise a counter. Nothing happens for 0, which Ray refuses."""
        if value > 0:
            self._record(metric, "inc", value, labels)

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """Set a gauge."""
        self._record(metric, "set", value, labels)

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        """Put one value into a histogram."""
        self._record(metric, "observe", value, labels)

    def _record(self, metric: Metric, verb: str, value: float, labels: dict[str, str]) -> None:
        try:
            getattr(self._metric(metric), verb)(value, tags=labels)
        except Exception:  # telemetry that fails must not fail a request
            if metric.name not in self._broken:
                self._broken.add(metric.name)
                logger.exception("metric %s cannot be recorded", metric.name)

    def _metric(self, metric: Metric) -> Any:
        made = self._made.get(metric.name)
        if made is None:
            made = self._made[metric.name] = _make(metric)
        return made


def _make(metric: Metric) -> Any:
    if metric.kind is Kind.COUNTER:
        return metrics.Counter(metric.name, metric.meaning, metric.labels)
    if metric.kind is Kind.GAUGE:
        return metrics.Gauge(metric.name, metric.meaning, metric.labels)
    return metrics.Histogram(metric.name, metric.meaning, list(metric.buckets), metric.labels)

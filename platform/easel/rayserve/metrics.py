"""Puts measurements where Ray's exporter picks them up: `/metrics` of each node's agent.

Owns: one Ray metric for each entry of `easel.telemetry.names`, made when it is first used, and one more for each name
that vLLM has for it. Refuses to know: what the numbers mean.

Ray prefixes every name with `ray_` and adds the labels `deployment`, `replica` and `application` inside a replica, so
`easel_slots` is scraped as `ray_easel_slots{deployment="engine",replica="...",model="..."}`. It ends a counter's name
in `_total` where it does not yet end so. It allows no colon, so `vllm:num_requests_running` is
`ray_vllm_num_requests_running`; the chart's PodMonitor gives it its own name back.

Ray forgets a gauge that is not set again within two of its report intervals (20 s, unless told otherwise), so that a
dead process leaves nothing behind. A gauge that rarely changes is alive all the same: a thread sets each of them again.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from typing import Any

from ray.serve import metrics

from easel.settings_telemetry import TelemetrySettings
from easel.telemetry import setup
from easel.telemetry.names import Kind, Metric

logger = logging.getLogger("easel.telemetry")

VLLM_LABELS = {"model": "model_name", "reason": "finished_reason"}
"""What vLLM calls those of our labels that it has. Without the others its numbers are sums over them."""

NOTHING = 2.0**-40
"""What a counter is raised by so that it exists: Ray refuses 0. Any number of events beside it stays what it is."""

REPEAT_S = 1.0
"""Between two settings of every gauge. Ray takes a value up once a second at most."""


class RayRecorder:
    """A `Recorder` for one replica. Thread-safe, as Ray's metrics are; never raises: a mistake is logged once."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[Any, tuple[Any, ...]]] = {}
        self._broken: set[str] = set()
        self._begun: set[tuple[str, tuple[str, ...]]] = set()
        """Counters that are there."""
        self._gauges: dict[tuple[str, tuple[str, ...]], tuple[Metric, float, dict[str, str]]] = {}
        self._setting = threading.Lock()
        """So that a value that is repeated is the last."""
        self._repeating = False

    def add(self, metric: Metric, value: float = 1.0, **labels: str) -> None:
        """Raise a counter. By 0: it is there from now on, so that its first event is seen as a rise."""
        series = (metric.name, tuple(labels.values()))
        if value > 0:
            self._record(metric, "inc", value, labels)
        elif series not in self._begun:
            self._record(metric, "inc", NOTHING, labels)
        self._begun.add(series)

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """Set a gauge."""
        with self._setting:
            self._gauges[metric.name, tuple(labels.values())] = (metric, value, labels)
            self._record(metric, "set", value, labels)
            if not self._repeating:
                self._repeating = True
                threading.Thread(target=_repeat, args=(weakref.ref(self),), daemon=True, name="easel-gauges").start()

    def repeat(self) -> None:
        """Set every gauge to what it is."""
        with self._setting:
            for metric, value, labels in self._gauges.values():
                self._record(metric, "set", value, labels)

    def observe(self, metric: Metric, value: float, exemplar: str | None = None, /, **labels: str) -> None:
        """Put one value into a histogram. Ray's exporter has no exemplars."""
        self._record(metric, "observe", value, labels)

    def _record(self, metric: Metric, verb: str, value: float, labels: dict[str, str]) -> None:
        try:
            made = self._made.get(metric.name)
            if made is None:
                made = self._made[metric.name] = (_make(metric, metric.name, metric.labels), _others(metric))
            ours, others = made
            getattr(ours, verb)(value, tags=labels)
            if others:
                theirs = {VLLM_LABELS[label]: text for label, text in labels.items() if label in VLLM_LABELS}
                for other in others:
                    getattr(other, verb)(value, tags=theirs)
        except Exception:  # telemetry that fails must not fail a request
            if metric.name not in self._broken:
                self._broken.add(metric.name)
                logger.exception("metric %s cannot be recorded", metric.name)


def start(settings: TelemetrySettings, part: setup.Part, instance: str) -> setup.Telemetry:
    """Telemetry of a replica with that id."""
    return setup.start(settings, RayRecorder(), part, instance)


Start = Callable[[TelemetrySettings, setup.Part, str], setup.Telemetry]
"""What `start` is: whoever builds an application may bring another."""


def _repeat(recorder: weakref.ref[RayRecorder]) -> None:
    """Until the recorder is gone: nothing tells it of its end."""
    pause = threading.Event()
    while not pause.wait(REPEAT_S):
        here = recorder()
        if here is None:
            return
        here.repeat()
        del here


def _others(metric: Metric) -> tuple[Any, ...]:
    labels = tuple(VLLM_LABELS[label] for label in metric.labels if label in VLLM_LABELS)
    return tuple(_make(metric, f"vllm_{name}", labels) for name in metric.vllm)


def _make(metric: Metric, name: str, labels: tuple[str, ...]) -> Any:
    if metric.kind is Kind.COUNTER:
        return metrics.Counter(name, metric.meaning, labels)
    if metric.kind is Kind.GAUGE:
        return metrics.Gauge(name, metric.meaning, labels)
    return metrics.Histogram(name, metric.meaning, list(metric.buckets), labels)

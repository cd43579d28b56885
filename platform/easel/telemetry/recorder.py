"""Where measurements go. Emitters know this; how a number leaves the process is somebody else's matter."""

from __future__ import annotations

from collections import defaultdict
from typing import Protocol

from easel.telemetry.names import Kind, Metric


class Recorder(Protocol):
    """Takes measurements. Never raises, never blocks: telemetry that fails must not fail a request."""

    def add(self, metric: Metric, value: float = 1.0, **labels: str) -> None:
        """Raise a counter."""

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """Set a gauge."""

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        """Put one value into a histogram."""


class MemoryRecorder:
    """Keeps everything, for tests and for processes without an exporter.

    Raises on a wrong label or kind, which the real ones swallow: a test that uses it finds the mistake.
    """

    def __init__(self) -> None:
        self.values: dict[tuple[str, tuple[tuple[str, str], ...]], list[float]] = defaultdict(list)

    def add(self, metric: Metric, value: float = 1.0, **labels: str) -> None:
        self._keep(metric, Kind.COUNTER, value, labels)

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        self._keep(metric, Kind.GAUGE, value, labels)

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        self._keep(metric, Kind.HISTOGRAM, value, labels)

    def total(self, metric: Metric, **labels: str) -> float:
        """Sum over all series that carry these labels."""
        wanted = labels.items()
        return sum(
            sum(values)
            for (name, pairs), values in self.values.items()
            if name == metric.name and wanted <= dict(pairs).items()
        )

    def _keep(self, metric: Metric, kind: Kind, value: float, labels: dict[str, str]) -> None:
        if metric.kind is not kind or set(labels) != set(metric.labels):
            raise ValueError(f"{metric.name} is a {metric.kind} with labels {metric.labels}, not {kind} with {labels}")
        self.values[metric.name, tuple(sorted(labels.items()))].append(value)


class NullRecorder:
    """Forgets everything."""

    def add(self, metric: Metric, value: float = 1.0, **labels: str) -> None:
        """Nothing."""

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """Nothing."""

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        """Nothing."""

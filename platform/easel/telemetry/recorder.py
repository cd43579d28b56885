"""Where measurements go. Emitters know this; how a number leaves the process is somebody else's matter."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

from easel.telemetry.names import CAPPED_LABELS, Kind, Metric


class Recorder(Protocol):
    """Takes measurements. Never raises, never blocks: telemetry that fails must not fail a request."""

    def add(self, metric: Metric, value: float = 1.0, **labels: str) -> None:
        """Raise a counter."""

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """Set a gauge."""

    def observe(self, metric: Metric, value: float, exemplar: str | None = None, /, **labels: str) -> None:
        """Put one value into a histogram. `exemplar`: traceparent of the trace that shows where it comes from."""


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

    def observe(self, metric: Metric, value: float, exemplar: str | None = None, /, **labels: str) -> None:
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

    def observe(self, metric: Metric, value: float, exemplar: str | None = None, /, **labels: str) -> None:
        """Nothing."""


class Several:
    """Every measurement to all of them."""

    def __init__(self, recorders: Sequence[Recorder]) -> None:
        self._recorders = recorders

    def add(self, metric: Metric, value: float = 1.0, **labels: str) -> None:
        """Raise a counter."""
        for recorder in self._recorders:
            recorder.add(metric, value, **labels)

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """Set a gauge."""
        for recorder in self._recorders:
            recorder.set(metric, value, **labels)

    def observe(self, metric: Metric, value: float, exemplar: str | None = None, /, **labels: str) -> None:
        """Put one value into a histogram."""
        for recorder in self._recorders:
            recorder.observe(metric, value, exemplar, **labels)


OTHER = "other"


class Capped:
    """Few values for labels that have as many as there are customers: the first `most` of each by name, the rest as
    `other`. Since each process has its own first ones, only sums over all values mean the same everywhere."""

    def __init__(self, recorder: Recorder, most: int) -> None:
        self._recorder = recorder
        self._most = most
        self._known: dict[str, set[str]] = {label: set() for label in CAPPED_LABELS}

    def add(self, metric: Metric, value: float = 1.0, **labels: str) -> None:
        """Raise a counter."""
        self._recorder.add(metric, value, **self._fewer(labels))

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """Set a gauge."""
        self._recorder.set(metric, value, **self._fewer(labels))

    def observe(self, metric: Metric, value: float, exemplar: str | None = None, /, **labels: str) -> None:
        """Put one value into a histogram."""
        self._recorder.observe(metric, value, exemplar, **self._fewer(labels))

    def _fewer(self, labels: dict[str, str]) -> dict[str, str]:
        for label, known in self._known.items():
            value = labels.get(label)
            if value is None or value in known:
                continue
            if len(known) < self._most:
                known.add(value)
            else:
                labels[label] = OTHER
        return labels

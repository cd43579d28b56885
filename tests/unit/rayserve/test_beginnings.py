"""What alerts count is there before it happens."""

from __future__ import annotations

import pytest

from easel.rayserve import beginnings, metrics
from easel.rayserve.metrics import RayRecorder
from easel.telemetry.names import CANVASES, HEALTH_FAILURES, PREEMPTIONS, REQUESTS, RETRIES
from easel.telemetry.recorder import MemoryRecorder


def test_an_ingress_begins_with_every_failure_at_0() -> None:
    recorder = MemoryRecorder()
    beginnings.of_ingress(recorder, "easel")
    assert {sum(values) for values in recorder.values.values()} == {0.0}
    codes = {dict(labels)["code"] for name, labels in recorder.values if name == REQUESTS.name}
    assert {"ok", "engine_failed", "server_is_overloaded", "queue_timeout"} <= codes
    assert codes.isdisjoint({"client_gone", "rate_limit_exceeded", "invalid_value"})
    assert {dict(labels)["verdict"] for name, labels in recorder.values if name == RETRIES.name} == {
        "retry",
        "fail",
        "quarantine",
    }


def test_an_engine_begins_with_what_it_should_never_count() -> None:
    recorder = MemoryRecorder()
    beginnings.of_engine(recorder, "easel")
    assert {sum(values) for values in recorder.values.values()} == {0.0}
    assert {HEALTH_FAILURES.name, PREEMPTIONS.name} <= {name for name, _ in recorder.values}
    assert recorder.total(CANVASES, stop="step_cap") == 0.0


class Counter:
    """As Ray's: refuses 0."""

    def __init__(self, name: str, meaning: str, labels: tuple[str, ...]) -> None:
        self.raised: list[float] = []
        MADE[name] = self

    def inc(self, value: float, tags: dict[str, str]) -> None:
        if value <= 0:
            raise ValueError("value must be >0")
        self.raised.append(value)


MADE: dict[str, Counter] = {}


def test_rays_counter_is_there_once_it_is_raised_by_0(monkeypatch: pytest.MonkeyPatch) -> None:
    MADE.clear()
    monkeypatch.setattr(metrics.metrics, "Counter", Counter)
    recorder = RayRecorder()
    for _ in range(1000):
        recorder.add(RETRIES, 0.0, model="easel", verdict="retry")
    assert len(MADE[RETRIES.name].raised) == 1
    for _ in range(3):
        recorder.add(RETRIES, model="easel", verdict="retry")
    assert sum(MADE[RETRIES.name].raised) == pytest.approx(3.0, abs=1e-11)
    assert sum(MADE[RETRIES.name].raised) > 3.0 - 1e-11

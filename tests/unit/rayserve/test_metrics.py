"""Gauges that rarely change stay alive in Ray's exporter, which forgets what is not set again."""

from __future__ import annotations

import gc
import threading
import time

import pytest

from easel.rayserve import metrics
from easel.rayserve.metrics import RayRecorder
from easel.telemetry.names import BUILD, SLOTS, SLOTS_BUSY


class Gauge:
    """Keeps what it is set to."""

    def __init__(self, name: str, meaning: str, labels: tuple[str, ...]) -> None:
        self.name = name
        MADE[name] = self
        self.values: list[tuple[float, dict[str, str]]] = []

    def set(self, value: float, tags: dict[str, str]) -> None:
        if value < 0:
            raise ValueError("as Ray might")
        self.values.append((value, dict(tags)))


MADE: dict[str, Gauge] = {}


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> RayRecorder:
    MADE.clear()
    monkeypatch.setattr(metrics.metrics, "Gauge", Gauge)
    monkeypatch.setattr(metrics, "REPEAT_S", 0.01)
    return RayRecorder()


def repeated(gauge: Gauge, count: int) -> list[tuple[float, dict[str, str]]]:
    deadline = time.monotonic() + 30
    while len(gauge.values) < count:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return list(gauge.values)


def test_a_gauge_that_was_set_once_is_set_again_and_again(recorder: RayRecorder) -> None:
    recorder.set(BUILD, 1.0, version="1", part="ingress")
    recorder.set(BUILD, 1.0, version="1", part="engine")
    values = repeated(MADE[BUILD.name], 8)
    assert {labels["part"] for _, labels in values[2:]} == {"ingress", "engine"}


def test_what_is_repeated_is_the_last_value(recorder: RayRecorder) -> None:
    for value in range(200):
        recorder.set(SLOTS, value, model="easel")
    values = [value for value, _ in repeated(MADE[SLOTS.name], 205)]
    assert values[-1] == 199
    assert values == sorted(values), "an old value came after a newer one"


def test_a_gauge_that_ray_refuses_does_not_stop_the_others(recorder: RayRecorder) -> None:
    recorder.set(SLOTS, -1.0, model="easel")
    recorder.set(SLOTS_BUSY, 3.0, model="easel")
    assert repeated(MADE[SLOTS_BUSY.name], 3)[-1] == (3.0, {"model": "easel"})


def test_the_thread_ends_with_the_recorder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics.metrics, "Gauge", Gauge)
    monkeypatch.setattr(metrics, "REPEAT_S", 0.01)
    before = set(threading.enumerate())
    recorder = RayRecorder()
    recorder.set(SLOTS, 1.0, model="easel")
    (thread,) = set(threading.enumerate()) - before
    del recorder
    gc.collect()
    thread.join(30)
    assert not thread.is_alive()

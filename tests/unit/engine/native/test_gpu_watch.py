"""What the driver says reaches the statistics; a card that has failed is told of once; a driver that fails is not."""

from __future__ import annotations

import logging
import threading

import pytest

from easel.engine.native.gpu_watch import GpuWatch, describe
from easel.protocol import GpuStats


class ScriptedDriver:
    """Says the next of its Xids at each question; memory grows by one."""

    def __init__(self, *xids: list[int] | Exception) -> None:
        self._xids = list(xids)
        self.asked = 0
        self.used_up = threading.Event()

    def read(self) -> GpuStats:
        self.asked += 1
        return GpuStats("card", self.asked, 100, 0.5)

    def xids(self) -> list[int]:
        if not self._xids:
            self.used_up.set()
            return []
        found = self._xids.pop(0)
        if isinstance(found, Exception):
            self.used_up.set()
            raise found
        return found


def watched(driver: ScriptedDriver) -> tuple[GpuWatch, list[str], threading.Event]:
    told: list[str] = []
    called = threading.Event()

    def failed(why: str) -> None:
        told.append(why)
        called.set()

    return GpuWatch(driver, failed, period_s=0.001), told, called


def test_the_first_reading_is_there_when_it_has_started() -> None:
    watch, _, _ = watched(ScriptedDriver())
    assert watch.last is None
    watch.start()
    assert watch.last is not None
    watch.stop()


def test_readings_go_on_and_a_programs_fault_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    driver = ScriptedDriver([], [13, 31])
    watch, told, _ = watched(driver)
    with caplog.at_level(logging.ERROR):
        watch.start()
        assert driver.used_up.wait(60)
    watch.stop()
    assert told == []
    assert "Xid 13 on card" in caplog.text
    assert watch.last is not None
    assert watch.last.memory_used > 1


def test_a_card_that_has_failed_is_told_of_once_and_not_asked_again() -> None:
    driver = ScriptedDriver([31, 79], [79], [79])
    watch, told, called = watched(driver)
    watch.start()
    assert called.wait(60)
    watch._thread.join(60)
    assert told == ["the GPU has failed (Xid 79): it has fallen off the bus"]
    assert not watch._thread.is_alive()


def test_a_driver_that_stops_answering_is_said_and_ends_the_watch_alone(caplog: pytest.LogCaptureFixture) -> None:
    watch, told, _ = watched(ScriptedDriver(RuntimeError("gone")))
    watch.start()
    watch._thread.join(60)
    assert told == []
    assert "the driver says nothing of the GPU any more: RuntimeError: gone" in caplog.text


def test_an_error_is_told_by_its_first_line() -> None:
    error = RuntimeError("CUDA error: an illegal memory access was encountered\nFor debugging consider ...")
    assert describe(error) == "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert describe(ValueError()) == "ValueError: no message"

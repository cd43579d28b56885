"""What the driver says reaches the statistics; a card that has failed is told of once; a driver that fails is not."""

from __future__ import annotations

import logging
import re
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from easel.engine.native.gpu_watch import CudaDriver, GpuWatch, NvmlDriver, describe, find_driver
from easel.protocol import GpuStats
from easel.settings import EngineSettings


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


def test_a_card_that_is_lost_is_told_of_though_nothing_can_be_read_of_it_any_more() -> None:
    class Lost(ScriptedDriver):
        def read(self) -> GpuStats:
            if self.asked:
                raise RuntimeError("GPU is lost")
            return super().read()

    watch, told, called = watched(Lost([79]))
    watch.start()
    assert called.wait(10)
    assert told == ["the GPU has failed (Xid 79): it has fallen off the bus"]


class NVMLError(Exception):
    """The library's."""


class GpuIsLost(NVMLError):
    """One of them."""


class Library:
    """As much of NVIDIA's as is called. `events`: what waiting for them brings."""

    nvmlEventTypeXidCriticalError = 8
    NVMLError, NVMLError_GpuIsLost = NVMLError, GpuIsLost

    def __init__(self, *events: int | NVMLError, memory: bool = True) -> None:
        self._events, self._memory = list(events), memory

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: "card"

    def nvmlDeviceGetMemoryInfo(self, card: Any) -> Any:
        if not self._memory:
            raise NVMLError("Not Supported")
        return SimpleNamespace(used=3, total=4)

    def nvmlDeviceGetUtilizationRates(self, card: Any) -> Any:
        raise NVMLError("Not Supported")

    def nvmlEventSetWait_v2(self, events: Any, timeout_ms: int) -> Any:
        event = self._events.pop(0) if self._events else NVMLError("Timeout")
        if isinstance(event, NVMLError):
            raise event
        return SimpleNamespace(eventData=event)


def test_the_library_tells_of_faults_and_of_a_card_that_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Library(31, 13, NVMLError("Timeout"), 31, GpuIsLost("GPU is lost")))
    driver = NvmlDriver("uuid")
    assert driver.read() == GpuStats("card", 3, 4, None)
    assert [driver.xids() for _ in range(3)] == [[31, 13], [31, 79], []]


@pytest.mark.parametrize("memory", [True, False])
def test_cuda_answers_where_the_library_finds_the_card_and_does_not_say_what_is_in_use(
    memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Library(memory=memory))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="uuid"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "card")
    assert isinstance(find_driver(), NvmlDriver if memory else CudaDriver)


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


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB"),
        torch.AcceleratorError("CUDA error: out of memory\nFor debugging consider ..."),  # a graph's, by the driver
    ],
)
def test_memory_that_has_run_out_names_settings_beside_torch_s_words(error: RuntimeError) -> None:
    said = describe(error)
    assert str(error).splitlines()[0] in said
    assert [name for name in EngineSettings.model_fields if name in re.findall(r"\w+", said)] == [
        "slots",
        "context_tokens",
        "kv_tokens",
        "gpu_memory_fraction",
    ]

"""What the driver says of the GPU that an engine runs on: memory, utilisation, and faults.

A thread of its own asks, because a driver that is in trouble may not answer. Faults come as Xid events: some tell of a
program's mistake, which reaches the engine as a CUDA error anyway, others of a card that is of no more use until
somebody resets it; those end the engine before a step hangs on them. Without nvidia-ml-py, or where the driver refuses
(as in some containers), the memory is what CUDA knows and nothing is watched.

Owns: the driver's library. Refuses to know: what becomes of an engine whose card has failed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, Protocol

import torch

from easel.protocol import GpuStats

log = logging.getLogger(__name__)

PERIOD_S = 1.0

LOST = 79
FATAL_XIDS = {
    48: "a memory error that cannot be corrected",
    62: "its micro-controller has halted",
    64: "a memory row that cannot be replaced",
    74: "an NVLink error",
    LOST: "it has fallen off the bus",
    95: "a memory error that was not contained",
    119: "its system processor does not answer",
    120: "its system processor has failed",
}
"""After NVIDIA's list of Xid errors: those after which the card needs a reset, or a technician."""


class Driver(Protocol):
    """One GPU's side of the driver."""

    def read(self) -> GpuStats:
        """What is in use now."""

    def xids(self) -> list[int]:
        """Numbers of the faults since the last call."""


class NvmlDriver:
    """The card through NVIDIA's management library. Raises its errors where that is not to be had."""

    def __init__(self, uuid: str) -> None:
        """`uuid`: as torch has it, since the library does not follow CUDA_VISIBLE_DEVICES."""
        import pynvml

        self._nvml: Any = pynvml
        pynvml.nvmlInit()
        self._card = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
        self._name = pynvml.nvmlDeviceGetName(self._card)
        self._events = None
        try:
            events = pynvml.nvmlEventSetCreate()
            pynvml.nvmlDeviceRegisterEvents(self._card, pynvml.nvmlEventTypeXidCriticalError, events)
            self._events = events
        except pynvml.NVMLError as error:
            log.info("faults of the GPU are not watched: %s", error)

    def read(self) -> GpuStats:
        """See `Driver`."""
        memory = self._nvml.nvmlDeviceGetMemoryInfo(self._card)
        try:
            utilisation = self._nvml.nvmlDeviceGetUtilizationRates(self._card).gpu / 100
        except self._nvml.NVMLError:
            utilisation = None
        return GpuStats(self._name, memory.used, memory.total, utilisation)

    def xids(self) -> list[int]:
        """See `Driver`."""
        found: list[int] = []
        while self._events is not None:
            try:
                found.append(int(self._nvml.nvmlEventSetWait_v2(self._events, 0).eventData))
            except self._nvml.NVMLError_GpuIsLost:  # said so instead of by an event
                return [*found, LOST]
            except self._nvml.NVMLError:  # a time-out: no more of them
                break
        return found


class CudaDriver:
    """What CUDA itself tells."""

    def __init__(self) -> None:
        self._name = torch.cuda.get_device_name()

    def read(self) -> GpuStats:
        """See `Driver`."""
        free, total = torch.cuda.mem_get_info()
        return GpuStats(self._name, total - free, total)

    def xids(self) -> list[int]:
        """None: CUDA tells of them as errors of what it is asked to do."""
        return []


def find_driver() -> Driver:
    """The best there is for the GPU that torch uses."""
    try:
        driver = NvmlDriver(str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid))
        driver.read()  # it may find the card and refuse this
        return driver
    except Exception as error:  # the library is missing, or the driver refuses: it has errors of its own for each
        log.info("the GPU's utilisation and faults are not known: %s: %s", type(error).__name__, error)
        return CudaDriver()


class GpuWatch:
    """Asks a driver every second, from `start` to `stop`. `failed` is called in its thread, once at most."""

    def __init__(self, driver: Driver, failed: Callable[[str], None], period_s: float = PERIOD_S) -> None:
        self._driver, self._failed, self._period_s = driver, failed, period_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="easel-gpu-watch", daemon=True)
        self.last: GpuStats | None = None
        """As of the last second."""

    def start(self) -> None:
        """Start asking; `last` is there when it returns."""
        self.last = self._driver.read()
        self._thread.start()

    def stop(self) -> None:
        """Ask no more. Does not wait: the driver may hang."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(self._period_s):
            try:
                fatal = self._fatal()  # first: nothing else is to be had of a card that is lost
                if fatal is None:
                    self.last = self._driver.read()
            except Exception as error:
                log.warning("the driver says nothing of the GPU any more: %s: %s", type(error).__name__, error)
                return
            if fatal is not None:
                self._failed(f"the GPU has failed (Xid {fatal}): {FATAL_XIDS[fatal]}")
                return

    def _fatal(self) -> int | None:
        """The first of the new Xids that ends the card's use."""
        assert self.last is not None, "start has read it"
        xids = self._driver.xids()
        for xid in xids:
            log.error("Xid %d on %s", xid, self.last.name)
        return next((xid for xid in xids if xid in FATAL_XIDS), None)


OUT_OF_MEMORY = (
    "out of GPU memory: lower slots, context_tokens or kv_tokens, or change gpu_memory_fraction, which says how much "
    "of the card may be in use"
)


def ran_out(error: BaseException) -> bool:
    """Whether it says that the GPU has no memory left: torch's allocator, or the driver itself, of a graph say."""
    return isinstance(error, torch.OutOfMemoryError) or str(error).startswith("CUDA error: out of memory")


def describe(error: BaseException) -> str:
    """An exception of a step for an operator: CUDA's messages go on about how to debug after their first line."""
    lines = str(error).splitlines()
    said = f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
    return f"{OUT_OF_MEMORY} ({said})" if ran_out(error) else said

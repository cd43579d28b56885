"""Reads a checkpoint at the disk's speed: large ranges, many at a time, the next stage while this one is laid out.

A stage is a set of tensors that are wanted together, such as a layer's. Their byte ranges are sorted and joined where
they are neighbours, so that the tens of thousands of small tensors of quantised experts become some long reads. Threads
read the ranges chunk by chunk: on a CPU straight to where the stage lies, for a GPU into one page-locked buffer each,
from which the copy to the device begins at once. Host memory stays at one chunk a thread, the device's at a few stages.

Reads go through the page cache on purpose: a replica that starts again, or a second one on this host, finds the bytes
in memory. Owns: ranges, threads, buffers, the progress that is logged. Refuses to know: what the tensors mean.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from easel.engine.native.checkpoint_files import CheckpointFiles, Entry
from easel.errors import ConfigurationError

log = logging.getLogger(__name__)

READERS = 16
"""Threads, so as many reads in flight: fast disks need them, and one core copies no faster than some GB/s."""
CHUNK_BYTES = 16 << 20
"""Read at a time by one thread."""
STAGES_AHEAD = 2
"""Read beside the one that is laid out."""
MOST_GAP = 1 << 20
"""Bytes that nobody wants, between two that are wanted, up to which both are read in one go."""
ALIGNMENT = 16
"""Ranges keep their place within so many bytes, so that what was aligned in the file is aligned in memory."""
PROGRESS_S = 1.0

TYPES: Mapping[str, torch.dtype] = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "U8": torch.uint8,
    "F8_E4M3": torch.float8_e4m3fn,
}


class Source(Protocol):
    """Where tensors come from."""

    def read(self, name: str) -> torch.Tensor:
        """One tensor as it is stored. It may be a view that has to be copied to outlive its source."""

    def stack(self, names: Sequence[str]) -> torch.Tensor:
        """Tensors of one shape and type as one with a dimension more in front. A copy."""


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes `start` to `end` of a file, and where they go in the stage's buffer."""

    path: Path
    start: int
    end: int
    at: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What to read for one stage."""

    ranges: tuple[Range, ...]
    places: Mapping[str, tuple[Entry, int]]
    """Each tensor's entry, and where it begins in the buffer."""
    nbytes: int
    """Of the buffer."""


class Stage:
    """Tensors of one stage, as views of the buffer that they were read into."""

    def __init__(self, plan: Plan, buffer: torch.Tensor) -> None:
        self._places, self._buffer = plan.places, buffer

    def read(self, name: str) -> torch.Tensor:
        """See `Source`; on the device."""
        entry, at = self._places[name]
        raw, dtype = self._buffer[at : at + entry.end - entry.start], TYPES[entry.dtype]
        if at % dtype.itemsize:  # a header of odd length: the format does not forbid it
            raw = raw.clone()
        return raw.view(dtype).view(entry.shape)

    def stack(self, names: Sequence[str]) -> torch.Tensor:
        """See `Source`; on the device. Tensors that lie in one grid, as all experts of a file do, are taken out of it
        in one launch: to slice tens of thousands of them one by one takes longer than to read them."""
        places = [self._places[name] for name in names]
        entry, size = places[0][0], places[0][0].end - places[0][0].start
        first, last = min(at for _, at in places), max(at for _, at in places)
        if all((at - first) % size == 0 for _, at in places):
            grid = self._buffer[first : last + size].view(-1, size)
            rows = grid.index_select(0, torch.tensor([(at - first) // size for _, at in places], device=grid.device))
        else:
            rows = torch.stack([self._buffer[at : at + size] for _, at in places])
        return rows.view(TYPES[entry.dtype]).view(len(names), *entry.shape)


def plan_stage(files: CheckpointFiles, names: Sequence[str], most_gap: int = MOST_GAP) -> Plan:
    """Ranges that hold all of `names`, neighbours joined."""
    entries = sorted(((files.entries[name], name) for name in names), key=lambda pair: (pair[0].path, pair[0].start))
    ranges: list[Range] = []
    places: dict[str, tuple[Entry, int]] = {}
    filled = 0
    for entry, name in entries:
        last = ranges[-1] if ranges else None
        if last is not None and last.path == entry.path and entry.start - last.end <= most_gap:
            ranges[-1] = last = Range(last.path, last.start, max(last.end, entry.end), last.at)
        else:
            at = -(-filled // ALIGNMENT) * ALIGNMENT + entry.start % ALIGNMENT
            last = Range(entry.path, entry.start, entry.end, at)
            ranges.append(last)
        places[name] = (entry, last.at + entry.start - last.start)
        filled = last.at + last.end - last.start
    return Plan(tuple(ranges), places, filled)


def read_stages(
    files: CheckpointFiles,
    stages: Sequence[Sequence[str]],
    device: str = "cpu",
    readers: int = READERS,
    chunk_bytes: int = CHUNK_BYTES,
) -> Generator[Stage, None, None]:
    """The stages one after another, read ahead. Close the iterator if it is not read to its end.

    Raises `ConfigurationError` where a file cannot be read to the end of what its header says.
    """
    plans = deque(plan_stage(files, names) for names in stages)
    progress = Progress(sum(part.end - part.start for plan in plans for part in plan.ranges))
    pool = _Readers(torch.device(device), readers, chunk_bytes, progress)
    try:
        loading: deque[tuple[Plan, torch.Tensor, list[Future[None]]]] = deque()
        while plans or loading:
            while plans and len(loading) <= STAGES_AHEAD:
                plan = plans.popleft()
                loading.append((plan, *pool.start(plan)))
            plan, buffer, chunks = loading.popleft()
            for chunk in chunks:
                chunk.result()
            stage = Stage(plan, buffer)
            del buffer
            yield stage
            del stage  # before the next one is allocated
        progress.done()
    finally:
        pool.close()


class Progress:
    """How much was read, logged about every second. Called from many threads."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.read = 0
        self._began = self._told = time.perf_counter()
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """So many bytes more."""
        with self._lock:
            self.read += count
            now = time.perf_counter()
            tell = now - self._told >= PROGRESS_S
            if tell:
                self._told = now
        if tell:
            log.info("weights: %.2f of %.2f GB, %.2f GB/s", self.read / 1e9, self.total / 1e9, self._rate(now))

    def done(self) -> None:
        """All of it was read."""
        now = time.perf_counter()
        log.info("weights: %.2f GB read in %.1f s, %.2f GB/s", self.read / 1e9, now - self._began, self._rate(now))

    def _rate(self, now: float) -> float:
        return self.read / 1e9 / max(now - self._began, 1e-9)


class _Readers:
    """The threads, and what each keeps: open files, and for a GPU a page-locked buffer."""

    def __init__(self, device: torch.device, readers: int, chunk_bytes: int, progress: Progress) -> None:
        self._device, self._chunk_bytes, self._progress = device, chunk_bytes, progress
        self._pool = ThreadPoolExecutor(readers, thread_name_prefix="easel-weights")
        self._files: dict[Path, int] = {}
        self._of_thread = threading.local()
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def start(self, plan: Plan) -> tuple[torch.Tensor, list[Future[None]]]:
        """Begin to read a stage: its buffer, and what must be done before the buffer may be looked at."""
        buffer = torch.empty(plan.nbytes, dtype=torch.uint8, device=self._device)
        if self._copies is not None:
            # The allocator may hand out memory whose last reader is still at work on this thread's stream.
            self._copies.wait_stream(torch.cuda.current_stream(self._device))
        chunks = []
        for part in plan.ranges:
            file = self._open(part.path)
            for start in range(part.start, part.end, self._chunk_bytes):
                count, at = min(self._chunk_bytes, part.end - start), part.at + start - part.start
                chunks.append(self._pool.submit(self._read, part.path, file, start, buffer[at : at + count]))
        return buffer, chunks

    def close(self) -> None:
        """Let reads under way end, forget the others, and close the files."""
        self._pool.shutdown(cancel_futures=True)
        for file in self._files.values():
            os.close(file)

    def _open(self, path: Path) -> int:
        if path not in self._files:
            try:
                self._files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise ConfigurationError(f"{path}: {error.strerror}") from None
        return self._files[path]

    def _read(self, path: Path, file: int, start: int, target: torch.Tensor) -> None:
        """In a thread: one chunk, until it lies where it should."""
        count = target.numel()
        if self._copies is None:
            _fill(path, file, start, target)
        else:
            pinned = self._pinned()[:count]
            _fill(path, file, start, pinned)
            with torch.inference_mode(), torch.cuda.stream(self._copies):
                target.copy_(pinned, non_blocking=True)
                copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
                copied.record()
            copied.synchronize()  # the buffer is needed again; other threads read meanwhile
        self._progress.add(count)

    def _pinned(self) -> torch.Tensor:
        if not hasattr(self._of_thread, "pinned"):
            self._of_thread.pinned = torch.empty(self._chunk_bytes, dtype=torch.uint8, pin_memory=True)
        pinned: torch.Tensor = self._of_thread.pinned
        return pinned


def _fill(path: Path, file: int, start: int, target: torch.Tensor) -> None:
    """Read from `start` until `target`, uint8 on the CPU, is full. The interpreter is free meanwhile."""
    view = target.numpy().data
    while view:
        try:
            count = os.preadv(file, [view], start)
        except OSError as error:
            raise ConfigurationError(f"{path}: at byte {start}: {error.strerror}") from None
        if not count:
            raise ConfigurationError(f"{path}: ends at byte {start}: was it changed while it was read?")
        view, start = view[count:], start + count

"""What the pods' metrics say about queue, slots and GPUs.

Owns: reading Prometheus' text, and adding up what Easel and Ray export. Refuses to know: how the text was fetched.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from easel.telemetry import names

_LINE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)")
_LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"')

GPU_UTILIZATION, GPU_MEMORY_USED, GPU_MEMORY_FREE = (
    "ray_node_gpus_utilization",
    "ray_node_gram_used",
    "ray_node_gram_available",
)
"""Ray's own, one series for each GPU: percent, and megabytes."""


@dataclass(frozen=True)
class Sample:
    name: str
    labels: dict[str, str]
    value: float


@dataclass(frozen=True)
class Load:
    """What a cluster is doing, added up over its pods. None: nobody said."""

    engines: int | None
    slots: float | None
    slots_busy: float | None
    queued_requests: float | None
    queued_work: float | None
    target_replicas: float | None
    gpus: tuple[tuple[str, float, float, float], ...]
    """Pod and index of each GPU, percent busy, bytes used and bytes there are."""


def samples(text: str) -> Iterator[Sample]:
    """Lines that are samples; whatever else there is, is passed by."""
    for line in text.splitlines():
        found = _LINE.match(line)
        if found is None:
            continue
        try:
            value = float(found[3])
        except ValueError:
            continue
        yield Sample(found[1], dict(_LABEL.findall(found[2] or "")), value)


def load(texts: Iterable[tuple[str, str]]) -> Load:
    """From (pod, its metrics). A name that no pod exports is None, not 0."""
    known: dict[str, list[float]] = {}
    gpus: dict[tuple[str, str], dict[str, float]] = {}
    for pod, text in texts:
        for sample in samples(text):
            known.setdefault(sample.name, []).append(sample.value)
            if sample.name in (GPU_UTILIZATION, GPU_MEMORY_USED, GPU_MEMORY_FREE):
                index = sample.labels.get("GpuIndex", "0")
                gpus.setdefault((pod, index), {})[sample.name] = sample.value
    slots = known.get(_exported(names.SLOTS.name))
    return Load(
        engines=None if slots is None else len(slots),
        slots=_sum(slots),
        slots_busy=_sum(known.get(_exported(names.SLOTS_BUSY.name))),
        queued_requests=_sum(known.get(_exported(names.QUEUED.name))),
        queued_work=_sum(known.get(_exported(names.QUEUED_WORK.name))),
        target_replicas=max(known.get(_exported(names.TARGET_REPLICAS.name), []), default=None),
        gpus=tuple(
            (
                f"{pod}/{index}",
                told.get(GPU_UTILIZATION, 0.0),
                told.get(GPU_MEMORY_USED, 0.0) * 1e6,
                (told.get(GPU_MEMORY_USED, 0.0) + told.get(GPU_MEMORY_FREE, 0.0)) * 1e6,
            )
            for (pod, index), told in sorted(gpus.items())
        ),
    )


def _exported(name: str) -> str:
    """As Ray's exporter writes it."""
    return f"ray_{name}"


def _sum(values: list[float] | None) -> float | None:
    return None if values is None else sum(values)

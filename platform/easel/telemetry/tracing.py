"""Where spans go. Emitters know this; how a span leaves the process is somebody else's matter.

A span's context is its W3C `traceparent`, a string: it crosses processes in `GenerationRequest.traceparent`, and no
thread or task has a current span. Without a trace that is sampled nothing is made, and what the client sent is passed
on as it came.

Owns: this seam, and reading `traceparent`. Refuses to know: OpenTelemetry, and which spans there are.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import Protocol

from easel.telemetry.spans import SpanName

Value = str | bool | int | float | tuple[str, ...]

TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")
"""W3C trace context, version 00: trace id, span id, flags."""


def trace_id(traceparent: str | None) -> str | None:
    """32 hex digits; None where there is no trace."""
    return None if traceparent is None else traceparent[3:35]


def is_sampled(traceparent: str | None) -> bool:
    """Whether whoever began the trace wants it kept."""
    return traceparent is not None and bool(int(traceparent[-2:], 16) & 1)


class OpenSpan(Protocol):
    """A span that has begun. Never raises."""

    @property
    def traceparent(self) -> str | None:
        """What spans below it have for a parent."""

    def set(self, attribute: str, value: Value) -> None:
        """One of the attributes that its `SpanName` lists."""

    def end(self, at: float | None = None, error: str | None = None) -> None:
        """At Unix time `at`, or now. `error`: its code, where it failed."""


class Tracer(Protocol):
    """Begins spans. Never raises, never blocks."""

    def begin(self, span: SpanName, parent: str | None, at: float | None = None, name: str | None = None) -> OpenSpan:
        """At Unix time `at`, or now. Only `spans.REQUEST` begins a trace of its own. `name`: instead of the span's."""


class NoSpan:
    """Stands for a span of a trace that is not kept."""

    __slots__ = ("traceparent",)

    def __init__(self, traceparent: str | None) -> None:
        self.traceparent = traceparent

    def set(self, attribute: str, value: Value) -> None:
        """Nothing."""

    def end(self, at: float | None = None, error: str | None = None) -> None:
        """Nothing."""


class NullTracer:
    """Keeps nothing."""

    def begin(self, span: SpanName, parent: str | None, at: float | None = None, name: str | None = None) -> OpenSpan:
        """Nothing begins."""
        return NoSpan(parent)


@dataclass(slots=True)
class KeptSpan:
    """A span in memory."""

    span: SpanName
    name: str
    parent: str | None
    traceparent: str
    began: float
    attributes: dict[str, Value] = field(default_factory=dict)
    ended: float | None = None
    error: str | None = None

    def set(self, attribute: str, value: Value) -> None:
        if attribute not in self.span.attributes:
            raise ValueError(f"{self.span.name} has no attribute {attribute}")
        self.attributes[attribute] = value

    def end(self, at: float | None = None, error: str | None = None) -> None:
        if self.ended is not None:
            raise ValueError(f"{self.name} has ended already")
        self.ended, self.error = time.time() if at is None else at, error


class MemoryTracer:
    """Keeps everything, for tests. Raises on an attribute that the table does not know, which the real one passes."""

    def __init__(self) -> None:
        self.spans: list[KeptSpan] = []

    def begin(self, span: SpanName, parent: str | None, at: float | None = None, name: str | None = None) -> OpenSpan:
        trace = trace_id(parent) or f"{0xABC:032x}"
        traceparent = f"00-{trace}-{len(self.spans) + 1:016x}-01"
        kept = KeptSpan(span, name or span.name, parent, traceparent, time.time() if at is None else at)
        self.spans.append(kept)
        return kept

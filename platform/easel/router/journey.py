"""One request's way through the router, for those who watch: spans and metrics of its wait and its placement.

Owns: what of that way is told, and under which names. Refuses to know: what is decided on it, and why.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from easel.protocol import GenerationRequest
from easel.router.outcomes import Outcome, Ticket
from easel.telemetry import spans
from easel.telemetry.names import ADMISSIONS, PLACEMENT_SECONDS, PLACEMENTS, QUEUE_SECONDS
from easel.telemetry.recorder import Recorder
from easel.telemetry.tracing import OpenSpan, Tracer


@dataclass(frozen=True, slots=True)
class Watchers:
    """Where it is told. `model`: its name in metrics; `clock` in seconds, only forward."""

    model: str
    recorder: Recorder
    tracer: Tracer
    clock: Callable[[], float] = time.monotonic


class Journey:
    """From a request's arrival at the router on."""

    def __init__(self, watchers: Watchers, request: GenerationRequest, expected_work: float) -> None:
        self._watchers = watchers
        self._request = request
        self._cached: dict[str, int] = {}
        """Tokens of its prompt that a replica was found to hold, before it was sent anywhere."""
        self._waiting: OpenSpan | None = watchers.tracer.begin(spans.QUEUE, request.traceparent)
        self._waiting.set("easel.choice", request.choice)
        self._waiting.set("easel.work.expected", expected_work)
        self._placing: OpenSpan | None = None
        self._since = 0.0

    def decided(self, ticket: Ticket) -> None:
        """Its wait is over."""
        recorder, model, outcome = self._watchers.recorder, self._watchers.model, str(ticket.outcome)
        recorder.add(ADMISSIONS, model=model, outcome=outcome)
        admitted = ticket.outcome is Outcome.ADMITTED
        if admitted:
            recorder.observe(QUEUE_SECONDS, ticket.waited_s, self._request.traceparent, model=model)
        if self._waiting is not None:
            self._waiting.set("easel.queue.outcome", outcome)
            self._waiting.end(error=None if admitted else outcome)
            self._waiting = None

    def sends(self) -> None:
        """It is to go to some replica now."""
        self._since = self._watchers.clock()
        self._placing = self._watchers.tracer.begin(spans.PLACEMENT, self._request.traceparent)
        self._placing.set("easel.choice", self._request.choice)

    def sees(self, replica: str, cached_tokens: int) -> None:
        """So many tokens of its prompt are believed to be there. The first to say so counts: who it was sent to is
        believed to have all of it from then on."""
        self._cached.setdefault(replica, cached_tokens)

    def went(self, replica: str) -> None:
        """That replica took it."""
        if self._placing is None:
            return
        recorder, model = self._watchers.recorder, self._watchers.model
        prefix = "hit" if self._cached.get(replica) else "miss"
        recorder.add(PLACEMENTS, model=model, prefix=prefix)
        seconds = self._watchers.clock() - self._since
        recorder.observe(PLACEMENT_SECONDS, seconds, self._request.traceparent, model=model)
        self._placing.set("easel.replica", replica)
        self._placing.set("easel.placement.prefix", prefix)
        self._placing.end()
        self._placing = None

    def ended(self, error: str | None = None) -> None:
        """It is over, or this try is."""
        for span in (self._waiting, self._placing):
            if span is not None:
                span.end(error=error)
        self._waiting = self._placing = None

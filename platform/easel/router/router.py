"""One ingress's router: takes a generation request, answers with its events, and in between decides everything.

    quarantined? -> estimate -> admission (waits) -> batching and placement -> send -> events -> done, learn
                                      ^----------- the replica died before its first event, once -----------'

Owns: the order of these, and that whatever way a request ends its seat and its place are given back. Refuses to know:
how a request gets to a replica: `send` does that, and asks `destination` which one it should be.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence

from easel.protocol import EngineStats, Event, GenerationRequest
from easel.router.admission import Admission
from easel.router.autoscaling import IngressReport
from easel.router.estimates import WorkEstimator
from easel.router.placement import Placement
from easel.settings import RouterSettings
from easel.telemetry.recorder import NullRecorder, Recorder

Send = Callable[[GenerationRequest], AsyncIterator[Event]]
"""The events of a request from some replica. Raises `EaselError` only; `EngineFailed` means that the replica died (or
may have) while it had the request. Closing the iterator cancels the request. It makes a single try."""


class Router:
    """See the module. Has the shape of `easel.api.backend.Backend` but for `ready`. One event loop calls it."""

    estimator: WorkEstimator
    admission: Admission
    placement: Placement

    def __init__(
        self,
        settings: RouterSettings,
        send: Send,
        canvas_length: int,
        model: str,
        ingress: str = "ingress",
        recorder: Recorder = NullRecorder(),  # noqa: B008
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`model`: its name in metrics; `ingress`: this process's id in reports; `clock` goes only forward, `wall` is
        Unix time. `canvas_length` in positions."""

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
        """The events of one request. Raises `EaselError` before the first one where it is refused. See
        `easel.api.backend.Backend`."""
        raise NotImplementedError
        yield

    def destination(self, request: GenerationRequest, candidates: Sequence[str]) -> list[str]:
        """The candidates that may take it, best first: Serve's request-router hook calls this. Empty: none may now,
        ask again."""
        raise NotImplementedError

    def went(self, request: GenerationRequest, replica: str) -> None:
        """It was handed to that replica: Serve's hook calls this (`on_request_routed`)."""
        raise NotImplementedError

    def replicas(self, known: Collection[str]) -> None:
        """These replicas run; all others are gone. Call it when the set changes."""
        raise NotImplementedError

    def replica_said(self, replica: str, stats: EngineStats) -> None:
        """Statistics of one replica came in (`record_routing_stats`). May let waiting requests go."""
        raise NotImplementedError

    def ingresses(self, demands: dict[str, float]) -> None:
        """What each live ingress has queued and in flight, this one included, as the actor last said. Shares seats and
        bounds by it."""
        raise NotImplementedError

    def report(self) -> IngressReport:
        """What this ingress holds, for the actor."""
        raise NotImplementedError

    def close(self) -> None:
        """Refuse whatever comes and evict whatever waits; what runs goes on."""
        raise NotImplementedError

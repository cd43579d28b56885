"""One ingress's router: takes a generation request, answers with its events, and in between decides everything.

    quarantined? -> estimate -> admission (waits) -> batching and placement -> send -> events -> done, learn
                                      ^----------- the replica died before it gave anything, once -----------'

Owns: the order of these, and that whatever way a request ends its seat and its place are given back. Refuses to know:
how a request gets to a replica: `send` does that, and asks `destination` which one it should be.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from random import Random
from typing import Protocol

from easel.errors import Draining, EngineFailed, Quarantined, RateLimited
from easel.protocol import (
    CanvasCommitted,
    EngineStats,
    Event,
    Failed,
    Finished,
    GenerationRequest,
    Started,
)
from easel.router.admission import Admission
from easel.router.arrivals import ArrivalRate
from easel.router.autoscaling import IngressReport
from easel.router.batching import Batcher
from easel.router.capacity import share
from easel.router.estimates import PUBLISHED_CAP, Estimate, RequestWork, WorkEstimator
from easel.router.gate import Gate
from easel.router.journey import Journey, Watchers
from easel.router.limits import Limiter
from easel.router.outcomes import Ticket
from easel.router.placement import TYPICAL_WORK, Placement
from easel.router.quarantine import Quarantine, Verdict
from easel.settings import RouterSettings
from easel.telemetry.names import IN_FLIGHT, IN_FLIGHT_WORK, QUEUED, QUEUED_STEPS, QUEUED_WORK, RETRIES
from easel.telemetry.recorder import NullRecorder, Recorder
from easel.telemetry.tracing import NullTracer, Tracer

Send = Callable[[GenerationRequest], AsyncIterator[Event]]
"""The events of a request from some replica. Raises `EaselError` only; `EngineFailed` means that the replica died (or
may have) while it had the request. Closing the iterator cancels the request. It makes a single try."""


class TenantKey(Protocol):
    """What an API key says of its tenant."""

    @property
    def id(self) -> str: ...
    @property
    def owner(self) -> str: ...
    @property
    def weight(self) -> float: ...


class Router:
    """See the module. Has the shape of `easel.api.backend.Backend` but for `ready`. One event loop calls it."""

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
        step_cap: int = PUBLISHED_CAP,
        random: Random | None = None,
        tracer: Tracer = NullTracer(),  # noqa: B008
    ) -> None:
        """`model`: its name in metrics; `ingress`: this process's id in reports; `clock` goes only forward, `wall` is
        Unix time. `canvas_length` in positions; `step_cap`: most denoising steps of a canvas."""
        self.estimator = WorkEstimator(canvas_length, step_cap, recorder, model)
        self.admission = Admission(settings, clock)
        self.placement = Placement(settings, clock, random, wall)
        self.quarantine = Quarantine(clock)
        self.limiter = Limiter(clock)
        self._batcher = Batcher(self.placement, self.quarantine.avoid)
        self._gate = Gate(self.admission, clock, self._bundle, self._decided)
        self._arrivals = ArrivalRate(clock)
        self._settings = settings
        self._send = send
        self._model = model
        self._ingress = ingress
        self._recorder = recorder
        self._clock = clock
        self._wall = wall
        self._demands: Mapping[str, float] = {}
        self._running: dict[str, RequestWork] = {}
        self._watchers = Watchers(model, recorder, tracer, clock)
        self._journeys: dict[str, Journey] = {}
        """Of all requests here, held or with replicas."""
        self._queued_steps = 0.0

    @property
    def step_bound(self) -> int | None:
        """Denoising steps of a canvas that all replicas allow, as they last said. None: nobody has said a bound."""
        return self.placement.step_bound

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
        """The events of one request. Raises `EaselError` before the first one where it is refused. See
        `easel.api.backend.Backend`."""
        if self.quarantine.refuses(request):
            raise Quarantined(QUARANTINED)
        estimate = self.estimator.estimate(request)
        journey = self._journeys[request.id] = Journey(self._watchers, request, estimate.work)
        try:
            ticket = await self._enter(request, estimate)
        except BaseException:
            journey.ended()
            del self._journeys[request.id]
            raise
        work = self._running[request.id] = self.estimator.track(request)
        try:
            begun = given = False
            replica: str | None = None
            moves = 0
            while True:
                journey.sends()
                events = self._send(request)
                try:
                    async for event in events:
                        self._saw(ticket, work, event)
                        # Once its replica is known to be gone, placement has forgotten which it was.
                        replica = self.placement.where(request.id) or replica
                        if isinstance(event, Failed) and self._again(request, event, replica, given):
                            break
                        if isinstance(event, Started):
                            if begun:
                                continue  # of the second try: the client knows that it began
                            begun = True
                        else:
                            given = True
                        yield event
                        if isinstance(event, Finished | Failed):
                            return
                    else:
                        raise EngineFailed("The engine ended the answer before it was finished.")
                except Draining:
                    moves += 1  # it began to drain while the request was on its way there
                    if given or moves > MOST_MOVES:
                        raise
                except EngineFailed as error:
                    if not self._retries(request, error, replica, given):
                        raise
                finally:
                    await _close(events)
                    journey.ended()
                    self.placement.ended(request.id)
                    self.quarantine.left(request)
                work = self._running[request.id] = self.estimator.track(request)
        finally:
            work.left()
            del self._running[request.id], self._journeys[request.id]
            self.placement.ended(request.id)
            self.admission.done(ticket, work.done)
            self._gate.turn()

    def destination(self, request: GenerationRequest, candidates: Sequence[str]) -> list[str]:
        """The candidates that may take it, best first: Serve's request-router hook calls this. Empty: none may now,
        ask again."""
        # Two suspects of a death are never on one replica at once, or the guilty one takes the other along again.
        able = self.quarantine.away(request, candidates)
        work = self._running[request.id].expected if request.id in self._running else TYPICAL_WORK
        places = self.placement.place(request, able, self.quarantine.avoid(request), work)
        journey = self._journeys.get(request.id)
        if journey is not None:
            for place in places:
                journey.sees(place.replica, place.cached_tokens)
        best = [place.replica for place in places]
        chosen = self.placement.where(request.id)
        if chosen in best:  # where it goes together with others, or was found to be best a moment ago
            best.remove(chosen)
            best.insert(0, chosen)
        if best:
            self.quarantine.runs(request, best[0])
        return best

    def went(self, request: GenerationRequest, replica: str) -> None:
        """It was handed to that replica: Serve's hook calls this (`on_request_routed`)."""
        self.quarantine.runs(request, replica)
        if request.id in self._journeys:
            self._journeys[request.id].went(replica)
        if request.id in self._running and self.placement.where(request.id) != replica:
            self.placement.sent(request, self._running[request.id].remaining(), replica)

    def replicas(self, known: Collection[str]) -> None:
        """These replicas run; all others are gone. Call it when the set changes, from the ingress's event loop."""
        self.placement.keep(known)
        self._set_capacity()

    def replica_said(self, replica: str, stats: EngineStats) -> None:
        """Statistics of one replica came in (`record_routing_stats`). May let waiting requests go; call it from the
        ingress's event loop."""
        self.placement.report(replica, stats)
        self._set_capacity()

    def ingresses(self, demands: Mapping[str, float]) -> None:
        """How many requests each live ingress has queued and in flight, this one included, as the actor last said.
        Seats and bounds are shared by it."""
        self._demands = dict(demands)
        self.limiter.share(len({*demands, self._ingress}))
        self._set_capacity()

    def tenants(self, keys: Collection[TenantKey]) -> None:
        """All keys there are, now and whenever they change: what they say of tenants is taken up."""
        weights: dict[str, float] = {}
        for key in keys:
            weights[key.owner] = max(weights.get(key.owner, 0.0), key.weight)
        self.admission.weigh_all(weights)
        self.limiter.keep({key.id for key in keys})

    def report(self) -> IngressReport:
        """What this ingress holds, for the actor."""
        whole, now = self.placement.capacity, self._wall()
        self._recorder.set(QUEUED, self.admission.queued, model=self._model)
        self._recorder.set(QUEUED_WORK, self.admission.queued_work, model=self._model)
        self._recorder.set(QUEUED_STEPS, max(0.0, self._queued_steps), model=self._model)
        self._recorder.set(IN_FLIGHT, self.admission.running, model=self._model)
        running_work = sum(work.remaining(now) for work in self._running.values())
        self._recorder.set(IN_FLIGHT_WORK, running_work, model=self._model)
        replicas = max(1, whole.replicas)
        return IngressReport(
            ingress=self._ingress,
            queued_work=self.admission.queued_work,
            running_work=running_work,
            queued_requests=self.admission.queued,
            running_requests=self.admission.running,
            arriving_work_per_s=self._arrivals.rate(),
            replica_work_per_s=whole.work_per_s / replicas,
            replica_slots=max(0, whole.seats // replicas - self._settings.surplus_requests),
        )

    def close(self) -> None:
        """Refuse whatever comes and evict whatever waits; what runs goes on."""
        self.admission.close()
        self._gate.turn()

    async def _enter(self, request: GenerationRequest, estimate: Estimate) -> Ticket:
        """Waits for a seat."""
        steps = estimate.canvases * estimate.steps
        self._queued_steps += steps
        deadline = request.denoising.deadline_at
        self._arrivals.came(estimate.work)
        try:
            return await self._gate.enter(
                request,
                estimate.work,
                least_s=estimate.least_steps * self.estimator.step_s,
                queue_timeout_s=request.queue_timeout_s,
                deadline_at=None if deadline is None else self._clock() + deadline - self._wall(),
            )
        except RateLimited:
            self._arrivals.came(-estimate.work)  # more replicas would not let it in
            raise
        except asyncio.CancelledError:
            self.placement.ended(request.id)  # it may have been let in at the same moment
            raise
        finally:
            self._queued_steps -= steps

    def _saw(self, ticket: Ticket, work: RequestWork, event: Event) -> None:
        work.saw(event)
        if isinstance(event, Started | CanvasCommitted):
            remaining = work.remaining()
            self.admission.progress(ticket, work.done, remaining)
            self.placement.progress(work.request.id, remaining)
        elif isinstance(event, Finished):
            self.quarantine.survived(work.request)

    def _again(self, request: GenerationRequest, event: Failed, replica: str | None, given: bool) -> bool:
        """Whether a `Failed` event means that the engine died and the request is tried again."""
        if event.code not in ENGINE_DIED:
            return False
        return self._retries(request, EngineFailed(event.message), replica, given)

    def _retries(self, request: GenerationRequest, error: EngineFailed, replica: str | None, given: bool) -> bool:
        """What follows from a death. Raises `Quarantined` where it was the second."""
        if error.code not in ENGINE_DIED:
            return False
        verdict = self.quarantine.died(request, self.placement.where(request.id) or replica, given)
        self._recorder.add(RETRIES, model=self._model, verdict=str(verdict))
        if verdict is Verdict.QUARANTINE:
            raise Quarantined(QUARANTINED) from None
        return verdict is Verdict.RETRY

    def _bundle(self, tickets: list[Ticket]) -> None:
        """All that are let in at this moment."""
        wanted = [(ticket.request, ticket.work) for ticket in tickets]
        for bundle in self._batcher.bundle(wanted, self.placement.replicas):
            for request in bundle.requests:
                self._journeys[request.id].sees(bundle.replica, bundle.cached_tokens)

    def _decided(self, ticket: Ticket) -> None:
        self._journeys[ticket.request.id].decided(ticket)

    def _set_capacity(self) -> None:
        mine = share(self.placement.capacity, self._demands, self._ingress)
        self.admission.set_capacity(mine, len({*self._demands, self._ingress}))
        self._gate.turn()


ENGINE_DIED = frozenset({EngineFailed.code, "engine_stopped"})
"""Codes of errors after which the request may be tried elsewhere."""

MOST_MOVES = 3
"""Draining replicas that one request may meet."""

QUARANTINED = "The engine stopped twice while it worked on this request; it is not tried again."


async def _close(events: AsyncIterator[Event]) -> None:
    close = getattr(events, "aclose", None)
    if close is not None:
        await close()

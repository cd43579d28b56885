"""Ingresses and replicas joined as Serve joins them, and what became of each request.

Owns: how old statistics are, who hears of whom when, cold starts and kills. Refuses to know: any policy; that is the
router's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from random import Random

from easel.errors import EaselError
from easel.protocol import CanvasCommitted, Event, Finished, GenerationRequest, StepTimeModel
from easel.router.autoscaling import Autoscaler, Decision, Inputs, ScalingTargets, add_up
from easel.router.router import Router
from easel.router.simulation.load import Arrival
from easel.router.simulation.replica import SimulatedReplica
from easel.router.simulation.virtual_time import now
from easel.settings import RouterSettings
from easel.telemetry.recorder import MemoryRecorder


@dataclass(frozen=True, slots=True)
class Plan:
    """What the service is made of. Times in seconds."""

    replicas: int = 2
    ingresses: int = 1
    slots: int = 8
    step_time: StepTimeModel = field(default_factory=lambda: StepTimeModel(0.008, 0.002, 100))
    """As the fake engine has it by default: 10 ms with one canvas, 2 ms for each further one."""
    prefixes: int = 0
    settings: RouterSettings = field(default_factory=RouterSettings)
    scaling: ScalingTargets | None = None
    """None: the number of replicas stays."""
    cold_start_s: float = 0.0
    stats_every_s: float = 0.5
    report_every_s: float = 0.1
    tick_s: float = 0.1
    seed: int = 0

    @property
    def work_per_s(self) -> float:
        """What one replica does with every slot taken."""
        return self.slots / self.step_time.seconds(self.slots)


@dataclass(slots=True)
class Record:
    """What became of one request."""

    arrival: Arrival
    ingress: int
    code: str = ""
    """`ok`, or an error's."""
    retry_after_s: float | None = None
    started_at: float = 0.0
    """When its first event came."""
    ended_at: float = 0.0
    first_canvas_at: float = 0.0
    work: float = 0.0
    reason: str = ""

    @property
    def seconds(self) -> float:
        return self.ended_at - self.arrival.at


@dataclass(frozen=True, slots=True)
class Sample:
    """The service at one moment of the autoscaler's clock."""

    at: float
    ready: int
    target: int
    queued_work: float
    running_work: float
    decision: Decision | None = None


Order = Callable[["Service", GenerationRequest, list[str]], list[str]]
"""Another way to choose a replica, for comparison."""


class Service:
    """Use it inside `virtual_time.run`."""

    def __init__(self, plan: Plan, order: Order | None = None) -> None:
        self.plan = plan
        self.records: list[Record] = []
        self.samples: list[Sample] = []
        self.replicas: dict[str, SimulatedReplica] = {}
        self.loading = 0
        self.replica_seconds = 0.0
        """Of all replicas, loading ones included."""
        self.outstanding: dict[str, int] = {}
        """Requests with each replica."""
        self.recorder = MemoryRecorder()
        self._order = order
        self._steps: dict[str, tuple[int, ...]] = {}
        self._came_in: dict[str, int] = {}
        self._numbers = 0
        self._background: list[asyncio.Task[None]] = []
        self._scaler = Autoscaler()
        self._target = plan.replicas
        self.routers = [
            Router(
                plan.settings,
                self._sender(index),
                256,
                "simulated",
                ingress=f"ingress{index}",
                recorder=self.recorder,
                clock=now,
                wall=now,
                random=Random(plan.seed + index),
            )
            for index in range(plan.ingresses)
        ]

    async def serve(self, load: Iterable[Arrival], kill_at: Iterable[float] = ()) -> list[Record]:
        """Runs the load to the end of its last request. A replica dies at each of `kill_at`."""
        for _ in range(self.plan.replicas):
            self._start_replica()
        self._publish()
        self._background = [
            asyncio.create_task(self._every(self.plan.stats_every_s, self._publish)),
            asyncio.create_task(self._every(self.plan.report_every_s, self._report)),
            asyncio.create_task(self._every(self.plan.tick_s, self._scale)),
        ]
        loop = asyncio.get_running_loop()
        for at in kill_at:
            loop.call_at(at, self._kill)
        running = set[asyncio.Task[None]]()
        for index, arrival in enumerate(load):
            await asyncio.sleep(max(0.0, arrival.at - now()))
            task = asyncio.create_task(self._one(arrival, index % self.plan.ingresses))
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.gather(*running)
        await self.close()
        return self.records

    async def close(self) -> None:
        """End what runs in the background."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    async def _one(self, arrival: Arrival, ingress: int) -> None:
        record = Record(arrival, ingress)
        self.records.append(record)
        request = arrival.request
        self._steps[request.id] = tuple(arrival.steps)
        self._came_in[request.id] = ingress
        try:
            async for event in self.routers[ingress].generate(request):
                record.started_at = record.started_at or now()
                if isinstance(event, CanvasCommitted) and not record.first_canvas_at:
                    record.first_canvas_at = now()
                if isinstance(event, Finished):
                    record.reason, record.work = event.reason, event.usage.work
            record.code = "ok"
        except EaselError as error:
            record.code, record.retry_after_s = error.code, error.retry_after_s
        record.ended_at = now()
        del self._steps[request.id], self._came_in[request.id]

    def ingress_of(self, request: GenerationRequest) -> int:
        """Where a request came in."""
        return self._came_in[request.id]

    def _sender(self, index: int) -> Callable[[GenerationRequest], AsyncIterator[Event]]:
        async def send(request: GenerationRequest) -> AsyncIterator[Event]:
            router = self.routers[index]
            while not (best := router.destination(request, list(self.replicas))):  # noqa: ASYNC110
                await asyncio.sleep(0.05)  # as Serve's handle asks again while there is none
            if self._order is not None:
                best = self._order(self, request, best)
            name = best[0]
            router.went(request, name)
            self.outstanding[name] = self.outstanding.get(name, 0) + 1
            try:
                async for event in self.replicas[name].generate(request):
                    yield event
            finally:
                self.outstanding[name] -= 1

        return send

    def _steps_of(self, request: GenerationRequest) -> tuple[int, ...]:
        return self._steps[request.id]

    def _start_replica(self) -> None:
        plan = self.plan
        name = f"replica{self._numbers}"
        self._numbers += 1
        self.replicas[name] = SimulatedReplica(name, self._steps_of, plan.step_time, plan.slots, plan.prefixes)
        self._tell_all()

    def _tell_all(self) -> None:
        for router in self.routers:
            router.replicas(list(self.replicas))

    def _publish(self) -> None:
        for router in self.routers:
            for name, replica in self.replicas.items():
                router.replica_said(name, replica.stats())

    def _report(self) -> None:
        demands = {
            report.ingress: report.queued_requests + report.running_requests
            for report in (router.report() for router in self.routers)
        }
        for router in self.routers:
            router.ingresses(demands)

    def _scale(self) -> None:
        plan = self.plan
        count = len(self.replicas)
        self.replica_seconds += plan.tick_s * (count + self.loading)
        for name in [name for name, one in self.replicas.items() if one.stats().state == "draining" and one.idle]:
            del self.replicas[name]
            self._tell_all()
        reports = [(now(), router.report()) for router in self.routers]
        demand = add_up(reports, now())
        ready = len(self._ready())
        decision = None
        if plan.scaling is not None:
            inputs = Inputs(now(), demand, self._target, ready, plan.cold_start_s)
            decision = self._scaler.decide(inputs, plan.scaling)
            self._target = decision.target
            for _ in range(self._target - ready - self.loading):
                self.loading += 1
                asyncio.get_running_loop().call_later(plan.cold_start_s, self._loaded)
            for name in sorted(self._ready(), key=lambda name: self.outstanding.get(name, 0))[
                : max(0, ready - self._target)
            ]:
                self.replicas[name].drain()
                self._publish()
        self.samples.append(Sample(now(), ready, self._target, demand.queued_work, demand.running_work, decision))

    def _loaded(self) -> None:
        self.loading -= 1
        if self.plan.scaling is None or len(self._ready()) < self._target:
            self._start_replica()

    def _ready(self) -> list[str]:
        """Replicas that take requests: those that drain are still there, and do not."""
        return [name for name, one in self.replicas.items() if one.stats().state == "ready"]

    def _kill(self) -> None:
        """The busiest replica dies and is started again."""
        if not self.replicas:
            return
        name = max(self.replicas, key=lambda name: self.outstanding.get(name, 0))
        self.replicas.pop(name).die()
        self._tell_all()
        self.loading += 1
        asyncio.get_running_loop().call_later(self.plan.cold_start_s, self._loaded)

    async def _every(self, seconds: float, what: Callable[[], None]) -> None:
        while True:
            await asyncio.sleep(seconds)
            what()


def fewest_requests(service: Service, request: GenerationRequest, candidates: list[str]) -> list[str]:
    """The replica with the fewest requests: what is usually done, to compare with."""
    return sorted(candidates, key=lambda name: service.outstanding.get(name, 0))

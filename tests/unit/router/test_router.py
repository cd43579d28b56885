"""One ingress's router over scripted replicas: order, retries, quarantine, and that everything is given back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import pytest

from easel.errors import Draining, EaselError, EngineFailed, Quarantined, QueueFull, QueueTimeout, RateLimited
from easel.protocol import CanvasCommitted, CanvasStop, Event, Failed, Finished, GenerationRequest, Started, Usage
from easel.router.router import Router
from easel.router.simulation import virtual_time
from easel.settings import RouterSettings
from easel.telemetry.names import ADMISSIONS, QUEUED, RETRIES
from easel.telemetry.recorder import MemoryRecorder
from tests.unit.router.making import request, stats

CANVAS = CanvasCommitted(0, (1,), 20, CanvasStop.CONVERGED, 0.0, 0.2)
WHOLE: list[Any] = [Started(0.0), CANVAS, Finished("stop", Usage(work=20.0))]


class Service:
    """Replicas that give what they are told to, an exception by raising it. Each try of a request takes the next
    script, the last one again and again; a number is a wait."""

    def __init__(self, scripts: list[list[Any]], replicas: tuple[str, ...] = ("a", "b"), **settings: Any) -> None:
        self.scripts = scripts
        self.names = list(replicas)
        self.recorder = MemoryRecorder()
        self.sent: list[tuple[str, str]] = []
        self.open = 0
        self.tries: dict[str, int] = {}
        now = asyncio.get_running_loop().time
        self.router = Router(
            RouterSettings(**settings), self.send, 256, "m", recorder=self.recorder, clock=now, wall=now
        )
        self.router.replicas(self.names)
        for name in self.names:
            self.router.replica_said(name, stats(at=0.0, slots=2))

    async def send(self, asked: GenerationRequest) -> AsyncIterator[Event]:
        (name, *_) = self.router.destination(asked, self.names)
        self.router.went(asked, name)
        self.sent.append((asked.id, name))
        number = self.tries.get(asked.id, 0)
        self.tries[asked.id] = number + 1
        self.open += 1
        try:
            for item in self.scripts[min(number, len(self.scripts) - 1)]:
                if isinstance(item, EaselError):
                    raise item
                if isinstance(item, float):
                    await asyncio.sleep(item)
                else:
                    yield item
        finally:
            self.open -= 1

    async def ask(self, name: str = "x", **more: Any) -> list[Event]:
        return [event async for event in self.router.generate(request(name, **more))]

    def nothing_left(self) -> bool:
        admission, placement = self.router.admission, self.router.placement
        held = (admission.queued, admission.running, admission.running_work, self.open)
        watched = self.router._journeys or abs(self.router._queued_steps) > 1e-6
        return held == (0, 0, 0.0, 0) and not placement._sent and not self.router._running and not watched


def on_virtual_time(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        virtual_time.run(test())

    run.__name__ = test.__name__
    return run


@on_virtual_time
async def test_a_request_passes_and_gives_everything_back() -> None:
    service = Service([WHOLE])
    assert await service.ask() == WHOLE
    assert service.nothing_left()
    assert service.recorder.total(ADMISSIONS, outcome="admitted") == 1


@on_virtual_time
async def test_a_replica_that_dies_before_it_gave_anything_is_not_noticed() -> None:
    service = Service([[Started(0.0), EngineFailed("gone")], WHOLE])
    assert await service.ask() == WHOLE
    first, second = (name for _, name in service.sent)
    assert first != second
    assert service.recorder.total(RETRIES, verdict="retry") == 1
    assert service.nothing_left()
    assert len(service.router.quarantine) == 0


@on_virtual_time
async def test_an_event_that_says_so_is_a_death_too() -> None:
    service = Service([[Failed("engine_stopped", "stopped", True)], WHOLE])
    assert await service.ask() == WHOLE
    assert service.nothing_left()


@on_virtual_time
async def test_after_part_of_the_answer_a_death_is_told() -> None:
    service = Service([[Started(0.0), CANVAS, EngineFailed("gone")], WHOLE])
    given: list[Event] = []

    async def read() -> None:
        async for event in service.router.generate(request()):
            given.append(event)

    with pytest.raises(EngineFailed):
        await read()
    assert given == [Started(0.0), CANVAS]
    assert service.recorder.total(RETRIES, verdict="fail") == 1
    assert service.nothing_left()


@on_virtual_time
async def test_a_failed_event_after_part_of_the_answer_is_passed_on() -> None:
    failed = Failed("engine_failed", "gone", True)
    service = Service([[Started(0.0), CANVAS, failed]])
    assert (await service.ask())[-1] == failed
    assert service.nothing_left()


@on_virtual_time
async def test_a_request_that_kills_twice_is_refused_from_then_on() -> None:
    service = Service([[EngineFailed("gone")]], replicas=("a", "b", "c"))
    with pytest.raises(Quarantined) as error:
        await service.ask("first")
    assert (error.value.status, error.value.retryable) == (500, False)
    assert len(service.sent) == 2
    with pytest.raises(Quarantined):
        await service.ask("again")  # another id, the same request
    assert len(service.sent) == 2
    service.scripts = [WHOLE]
    assert await service.ask("other", prompt=11) == WHOLE
    assert service.nothing_left()


@on_virtual_time
async def test_an_end_without_an_end_is_a_death() -> None:
    service = Service([[Started(0.0)], WHOLE])
    assert await service.ask() == WHOLE


@on_virtual_time
async def test_a_draining_replica_sends_the_request_on() -> None:
    service = Service([[Draining("going down")], [Draining("going down")], WHOLE])
    assert await service.ask() == WHOLE
    service.scripts = [[Draining("going down")]]
    with pytest.raises(Draining):
        await service.ask("y")
    assert service.nothing_left()


@on_virtual_time
async def test_other_errors_are_told_at_once() -> None:
    service = Service([[QueueFull("full")]])
    with pytest.raises(QueueFull):
        await service.ask()
    assert len(service.sent) == 1
    assert service.nothing_left()


@on_virtual_time
async def test_who_waits_too_long_leaves_and_who_leaves_frees_a_place() -> None:
    service = Service([[Started(0.0), 5.0, CANVAS, Finished("stop", Usage(work=20.0))]], replicas=("a",))
    running = [asyncio.create_task(service.ask(f"r{i}")) for i in range(3)]
    await asyncio.sleep(1.0)
    with pytest.raises(QueueTimeout):
        await service.ask("impatient", queue_timeout_s=1.0)
    waiting = asyncio.create_task(service.ask("waiting"))
    leaver = asyncio.create_task(service.ask("leaver"))
    await asyncio.sleep(0.1)
    assert service.router.admission.queued == 2
    report = service.router.report()
    assert (report.queued_requests, report.running_requests, report.replica_slots) == (2, 3, 2)
    assert report.running_work > 0.0
    assert service.recorder.values[QUEUED.name, (("model", "m"),)] == [2]
    leaver.cancel()
    await asyncio.gather(*running, waiting, leaver, return_exceptions=True)
    assert waiting.result()[-1] == Finished("stop", Usage(work=20.0))
    assert service.recorder.total(ADMISSIONS, outcome="evicted_queue_timeout") == 1
    assert service.recorder.total(ADMISSIONS, outcome="evicted_client_gone") == 1
    assert service.nothing_left()


@on_virtual_time
async def test_a_reader_that_stops_in_the_middle_gives_everything_back() -> None:
    service = Service([WHOLE])
    events = service.router.generate(request())
    assert await anext(events) == Started(0.0)
    await events.aclose()  # type: ignore[attr-defined]
    assert service.nothing_left()


@on_virtual_time
async def test_one_cancelled_in_the_moment_it_is_let_in_gives_its_seat_back() -> None:
    service = Service([WHOLE])
    task = asyncio.create_task(service.ask())
    await asyncio.sleep(0)  # it is offered
    await asyncio.sleep(0)  # it is let in
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert service.nothing_left()


@on_virtual_time
async def test_choices_let_in_together_are_bundled_before_any_goes() -> None:
    service = Service([WHOLE])
    for name in service.names:
        service.router.replica_said(name, stats(at=1.0, slots=8, prefix_digest=(1,)))
    tokens = tuple(range(600))
    await asyncio.gather(*(service.ask(f"x{i}", tokens=tokens, choice=i) for i in range(4)))
    assert len({name for _, name in service.sent}) == 1


@on_virtual_time
async def test_a_closed_router_refuses_and_evicts() -> None:
    service = Service([[Started(0.0), 5.0, *WHOLE[1:]]], replicas=("a",))
    running = [asyncio.create_task(service.ask(f"r{i}")) for i in range(4)]
    await asyncio.sleep(0.1)
    service.router.close()
    outcomes = await asyncio.gather(*running, return_exceptions=True)
    assert [isinstance(outcome, Draining) for outcome in outcomes] == [False, False, False, True]
    with pytest.raises(Draining):
        await service.ask("late")


@on_virtual_time
async def test_a_tenants_own_bound_is_no_reason_for_more_replicas() -> None:
    service = Service([WHOLE], replicas=(), max_queued_requests=2, tenant_queue_share=0.5)
    first = asyncio.create_task(service.ask("a", tenant="t"))
    await asyncio.sleep(0.01)
    before = service.router.report().arriving_work_per_s
    with pytest.raises(RateLimited):
        await service.ask("b", tenant="t")
    assert service.router.report().arriving_work_per_s == pytest.approx(before)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert service.nothing_left()


@on_virtual_time
async def test_ingresses_share_seats_and_limits() -> None:
    service = Service([WHOLE])
    assert service.router.admission.capacity.seats == 6
    service.router.ingresses({"ingress": 10.0, "other": 10.0})
    assert service.router.admission.capacity.seats == 3
    service.router.ingresses({"ingress": 10.0})
    assert service.router.admission.capacity.seats == 6


@dataclass
class TenantKey:
    id: str
    owner: str
    weight: float


@on_virtual_time
async def test_tenants_weigh_what_their_keys_say() -> None:
    service = Service([WHOLE])
    service.router.tenants([TenantKey("k1", "t", 2.0), TenantKey("k2", "t", 3.0), TenantKey("k3", "u", 1.5)])
    assert service.router.admission._weights == {"t": 3.0, "u": 1.5}
    service.router.tenants([TenantKey("k3", "u", 1.0)])
    assert service.router.admission._weights == {"u": 1.0}
    assert service.router.admission._tenant("t").weight == 1.0

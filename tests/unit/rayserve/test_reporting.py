"""An ingress's reports, its replicas' statistics and its line to Serve's router, without a cluster."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

from easel.protocol import EngineState, EngineStats, GpuStats, KvPool, StepTimeModel
from easel.rayserve import statistics, switchboard
from easel.rayserve.reporting import HELD_S, NONE_YET, Reporter
from easel.router.autoscaling import IngressReport


class Router:
    """What a reporter sees of one."""

    def __init__(self, queued: int = 0) -> None:
        self.queued = queued
        self.placement = SimpleNamespace(replicas=[])
        self.told: list[Any] = []

    def report(self) -> IngressReport:
        return IngressReport("a", queued_requests=self.queued, running_requests=2)

    def replicas(self, known: list[str]) -> None:
        self.placement.replicas = known

    def ingresses(self, demands: dict[str, float]) -> None:
        self.told.append(demands)


class Actor:
    """Fails as often as told, then says who else there is."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.put = SimpleNamespace(remote=self._put)

    async def _put(self, report: dict[str, Any], targets: dict[str, Any]) -> list[dict[str, Any]]:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("restarting")
        return [report, {"ingress": "b", "queued_requests": 3, "running_requests": 4}]


async def test_learns_what_the_others_hold() -> None:
    router = Router(queued=1)
    await Reporter(router, Actor).report()  # type: ignore[arg-type]
    assert router.told == [{"a": 3, "b": 7}]


async def test_an_actor_that_fails_is_looked_up_again() -> None:
    router, found = Router(), [Actor(failures=1), Actor()]
    reporter = Reporter(router, lambda: found.pop(0))  # type: ignore[arg-type]
    await reporter.report()
    assert router.told == []
    await reporter.report()
    assert len(router.told) == 1


async def test_work_held_with_no_replica_in_sight_lets_one_go() -> None:
    router, now = Router(queued=1), [0.0]
    reporter = Reporter(router, Actor, clock=lambda: now[0])  # type: ignore[arg-type]
    await reporter.report()
    now[0] = HELD_S - 0.1
    await reporter.report()
    assert router.placement.replicas == []
    now[0] = HELD_S
    await reporter.report()
    assert router.placement.replicas == [NONE_YET]


def test_statistics_cross_as_plain_data() -> None:
    stats = EngineStats(
        EngineState.READY,
        12.5,
        slots=8,
        sequences=3,
        step_time=StepTimeModel(0.01, 0.002, 40),
        kv_pools=(KvPool("full", 8, 3, 32),),
        prefix_digest=(1, 2),
        last_step_at=12.0,
        gpu=GpuStats("card", 3, 4, 0.5),
        max_denoising_steps=5,
    )
    plain = statistics.to_plain(stats)
    assert type(plain["state"]) is str
    assert statistics.from_plain(plain) == stats
    assert statistics.from_plain({}) is None
    assert statistics.from_plain(plain | {"new": 1}) is None


async def test_a_question_is_answered_in_the_routers_loop_whoever_asks() -> None:
    loop = asyncio.get_running_loop()
    switchboard.connect("test", None, loop)  # type: ignore[arg-type]
    line = switchboard.line("test")
    assert line is not None
    assert await line.ask(threading.get_ident) == threading.get_ident()
    heard: list[int] = []

    def elsewhere() -> int:
        line.tell(lambda: heard.append(threading.get_ident()))
        return asyncio.run(line.ask(threading.get_ident))

    assert await asyncio.to_thread(elsewhere) == threading.get_ident()
    assert heard == [threading.get_ident()]
    assert switchboard.line("another") is None

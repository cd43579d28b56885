"""A service that stood still for seconds refuses nothing that it would start at once when it goes on."""

from __future__ import annotations

import asyncio
from random import Random

from easel.engine.native.step_time import StepTimer
from easel.protocol import StepTimeModel
from easel.router.simulation import virtual_time
from easel.router.simulation.load import Arrival, Kind, arrival
from easel.router.simulation.replica import SimulatedReplica
from easel.router.simulation.service import Plan, Service
from easel.router.simulation.virtual_time import now

QUICK = StepTimeModel(0.002, 0.0002, 100)
STALL_S = 6.4
STEPS = 8
"""Of each answer, where 27 are expected of a request of which nothing is known."""
PLAN = Plan(replicas=0, slots=16, step_time=QUICK)


async def clients(service: Service, count: int, each: int = 5) -> list[str]:
    """What becomes of the requests of so many clients, each of which sends the next when it has heard of the last."""
    random = Random(1)

    async def client(number: int) -> None:
        for turn in range(each):
            drawn = arrival(Kind(prompt_tokens=100), now(), f"{number}-{turn}", random)
            await service._one(Arrival(now(), drawn.request, (STEPS,)), 0)
            await asyncio.sleep(0.002 * random.random())  # the way to the client and back

    await asyncio.gather(*(client(number) for number in range(count)))
    return [record.code for record in service.records]


def stalling(service: Service) -> SimulatedReplica:
    """A replica whose first step takes long."""
    service._start_replica()
    (replica,) = service.replicas.values()
    replica._step_time = StepTimeModel(STALL_S, 0.0, 1)
    asyncio.get_running_loop().call_later(STALL_S / 2, setattr, replica, "_step_time", QUICK)
    return replica


def test_a_first_replica_that_took_long_to_load() -> None:
    async def main() -> list[str]:
        service, loop = Service(PLAN), asyncio.get_running_loop()
        # Work that is held goes into Serve's handle after two seconds. Statistics come after the replica itself.
        loop.call_later(2.0, service.routers[0].replicas, ["none yet"])
        loop.call_later(14.0, service._start_replica)
        loop.call_later(14.3, service._publish)
        return await clients(service, 16)

    assert set(virtual_time.run(main())) == {"ok"}


def test_a_first_step_that_took_long_with_more_clients_than_seats() -> None:
    async def main() -> list[str]:
        service, timer = Service(PLAN), StepTimer()
        replica = stalling(service)
        service._publish()

        def say() -> None:
            timer.took(16.0, STALL_S)
            replica._step_time = timer.model
            service._publish()
            replica._step_time = QUICK

        asyncio.get_running_loop().call_later(STALL_S + 0.001, say)  # as soon as it can speak again
        return await clients(service, 48)

    assert set(virtual_time.run(main())) == {"ok"}


def test_a_step_that_took_long_later_on() -> None:
    async def main() -> list[str]:
        service, timer = Service(PLAN), StepTimer()
        for _ in range(200):
            timer.took(16.0, QUICK.seconds(16.0))
        timer.took(16.0, STALL_S)
        replica = stalling(service)

        def say() -> None:
            replica._step_time = timer.model
            service._publish()
            replica._step_time = QUICK

        asyncio.get_running_loop().call_later(STALL_S + 0.001, say)
        return await clients(service, 400)

    assert set(virtual_time.run(main())) == {"ok"}

"""The simulated service that benches compare policies on."""

from __future__ import annotations

from easel.router.autoscaling import ScalingTargets
from easel.router.simulation import virtual_time
from easel.router.simulation.service import Plan, Service


def test_one_that_has_loaded_is_not_given_up_for_one_that_drains() -> None:
    async def main() -> list[str]:
        service = Service(Plan(replicas=2, scaling=ScalingTargets()))
        for _ in range(2):
            service._start_replica()
        service.replicas["replica0"].drain()
        service.loading = 1
        service._loaded()
        return service._ready()

    assert virtual_time.run(main()) == ["replica1", "replica2"]

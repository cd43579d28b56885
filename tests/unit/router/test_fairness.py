"""Fair sharing on virtual time: the router's own classes, asked for twice what their replicas can do."""

from __future__ import annotations

from collections import Counter

import pytest

from easel.router.simulation import virtual_time
from easel.router.simulation.load import Kind, arrivals
from easel.router.simulation.service import Plan, Record, Service
from easel.settings import RouterSettings

WINDOW = 200


def serve(plan: Plan, kinds: list[Kind], load: float, seconds: float, **more: object) -> Service:
    """`load`: work asked for, as a part of what the replicas can do."""

    async def main() -> Service:
        service = Service(plan)
        sample = list(arrivals(kinds, 10.0, 200.0, seed=99))
        mean = sum(one.work for one in sample) / len(sample)
        rate = load * plan.replicas * plan.work_per_s / mean
        await service.serve(list(arrivals(kinds, rate, seconds, seed=5)), **more)  # type: ignore[arg-type]
        return service

    return virtual_time.run(main())


def shares(records: list[Record]) -> Counter[str]:
    work: Counter[str] = Counter()
    for record in records:
        work[record.arrival.request.tenant] += record.work  # type: ignore[assignment]
    return work


@pytest.mark.parametrize("weights", [{"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 1.0, "b": 1.0, "c": 2.0}])
def test_each_window_of_requests_shares_work_by_weight(weights: dict[str, float]) -> None:
    kinds = [
        Kind(1, weight=weights["a"] / 28, tenant="a"),
        Kind(2, weight=weights["b"] / 55, tenant="b"),
        Kind(4, weight=weights["c"] / 110, tenant="c"),
    ]

    async def main() -> Service:
        plan = Plan(replicas=4, settings=RouterSettings(queue_timeout_s=20))
        service = Service(plan)
        for tenant, weight in weights.items():
            service.routers[0].admission.weigh(tenant, weight)
        mean = sum(w for w in weights.values()) / sum(kind.weight for kind in kinds)
        rate = 2.0 * plan.replicas * plan.work_per_s / mean
        await service.serve(arrivals(kinds, rate, 60.0, seed=3))
        return service

    service = virtual_time.run(main())
    whole = sum(weights.values())
    # From when everybody's queue is long until nobody comes any more, in the order that answers ended.
    served = [r for r in service.records if r.code == "ok" and 25.0 < r.ended_at < 59.0]
    served.sort(key=lambda record: record.ended_at)
    assert len(served) > 3 * WINDOW  # several windows that share nothing
    for start in range(0, len(served) - WINDOW, 10):
        work = shares(served[start : start + WINDOW])
        for tenant, weight in weights.items():
            assert abs(work[tenant] / sum(work.values()) - weight / whole) < 0.05


def test_at_twice_the_load_goodput_is_that_at_capacity_and_deadlines_hold() -> None:
    kinds = [Kind(1, weight=0.7, deadline_s=8.0), Kind(4, 0.1, weight=0.3, deadline_s=8.0)]
    plan = Plan(replicas=3)
    done = {}
    for load in (1.0, 2.0):
        service = serve(plan, kinds, load, 60.0)
        within = [r for r in service.records if r.code == "ok" and r.ended_at <= 60.0]
        done[load] = sum(record.work for record in within)
        late = sorted(record.seconds for record in service.records if record.code == "ok")
        assert late[int(0.99 * len(late))] <= 8.0 + plan.step_time.seconds(plan.slots)
        refused = [r for r in service.records if r.code in ("server_is_overloaded", "rate_limit_exceeded")]
        assert all(record.seconds < 0.05 for record in refused)
        assert all(record.retry_after_s for record in refused)
    assert done[2.0] >= 0.95 * done[1.0]


def test_accounts_return_to_zero_whatever_happened() -> None:
    kinds = [
        Kind(1, tenant="a", queue_timeout_s=0.5),
        Kind(3, 0.2, tenant="b", deadline_s=3.0),
        Kind(1, tenant="c", max_steps=4, prompt_tokens=20),
    ]
    service = serve(Plan(replicas=2, ingresses=2, cold_start_s=1.0), kinds, 1.5, 30.0, kill_at=[5.0, 5.2, 12.0])
    codes = Counter(record.code for record in service.records)
    assert codes["ok"] > 500
    assert set(codes) <= {
        "ok",
        "queue_timeout",
        "server_is_overloaded",
        "rate_limit_exceeded",
        "deadline_exceeded",
        "engine_failed",
        "request_quarantined",
    }
    for router in service.routers:
        assert (router.admission.queued, router.admission.running) == (0, 0)
        assert (router.admission.queued_work, router.admission.running_work) == (0.0, 0.0)
        assert router.placement._sent == {}
        assert router._running == {}
    assert all(replica.idle for replica in service.replicas.values())

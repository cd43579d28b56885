"""Retry-After against what happened: when had all left the queue that a refused request would have waited for?"""

from __future__ import annotations

from easel.router.simulation.load import Kind
from easel.router.simulation.service import Plan, Record
from easel.settings import RouterSettings
from tests.unit.router.test_fairness import serve

KINDS = [
    Kind(1, weight=0.5, tenant="a"),
    Kind(2, 0.1, weight=0.3, tenant="b"),
    Kind(8, 0.1, weight=0.1, tenant="c"),
]


def ratios(records: list[Record]) -> list[float]:
    """What was said over what was true, for each refusal."""
    queued = [record for record in records if record.retry_after_s is None or record.code == "queue_timeout"]
    left = [(one.ingress, one.arrival.at, one.started_at or one.ended_at) for one in queued]
    found = []
    for record in records:
        if record.retry_after_s is None or record.code != "server_is_overloaded":
            continue
        at = record.arrival.at
        before = [out for ingress, came, out in left if ingress == record.ingress and came < at < out]
        if before:
            found.append(record.retry_after_s / (max(before) - at))
    return found


def test_nine_of_ten_are_right_within_a_factor_of_two() -> None:
    for plan in (Plan(replicas=3, settings=RouterSettings(max_queued_work=4000)), Plan(replicas=3, ingresses=2)):
        found = ratios(serve(plan, KINDS, 2.0, 45.0).records)
        assert len(found) > 200
        assert sum(0.5 <= ratio <= 2.0 for ratio in found) >= 0.9 * len(found)

"""The number of replicas, decision by decision: inputs in, target and reason out."""

from __future__ import annotations

import ast
import dataclasses
import math
import sys
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from easel.router import autoscaling
from easel.router.autoscaling import Autoscaler, Decision, Demand, IngressReport, Inputs, ScalingTargets, add_up

RATE = 300.0
TARGETS = ScalingTargets(0, 10, target_s=2.0, down_delay_s=30.0, to_zero_delay_s=60.0)


def demand(queued: float = 0.0, running: float = 0.0, arriving: float = 0.0, rate: float = RATE, **more: int) -> Demand:
    more.setdefault("queued_requests", math.ceil(queued / 30))
    more.setdefault("running_requests", math.ceil(running / 15))
    return Demand(
        queued_work=queued,
        running_work=running,
        arriving_work_per_s=arriving,
        replica_work_per_s=rate,
        replica_slots=8,
        ingresses=1,
        **more,
    )


def decide(
    scaler: Autoscaler,
    at: float,
    asked: Demand,
    target: int,
    ready: int | None = None,
    targets: ScalingTargets = TARGETS,
    cold: float = 0.0,
) -> Decision:
    return scaler.decide(Inputs(at, asked, target, target if ready is None else ready, cold), targets)


def test_as_many_as_do_the_queued_and_running_work_in_the_time_target() -> None:
    decision = decide(Autoscaler(), 0.0, demand(queued=2000.0, running=400.0), 2)
    assert (decision.target, decision.reason) == (4, "up: work")
    assert decision.wanted == pytest.approx(2400.0 / (RATE * 2.0))
    assert decision.details["backlog"] == decision.wanted


def test_work_that_arrives_keeps_replicas_though_little_remains() -> None:
    decision = decide(Autoscaler(), 0.0, demand(running=300.0, arriving=1200.0), 3)
    assert (decision.target, decision.reason) == (5, "up: arrivals")
    assert decision.details["arrivals"] == pytest.approx(5.0)


def test_more_go_up_than_the_factor_allows_only_in_steps() -> None:
    decision = decide(Autoscaler(), 0.0, demand(queued=60_000.0), 1)
    assert decision.target == 5
    assert decide(Autoscaler(), 0.0, demand(queued=60_000.0), 8).target == 10
    assert decide(Autoscaler(), 0.0, demand(queued=60_000.0), 10).reason == "hold: at the bound"


def test_an_up_delay_waits_for_as_long_as_more_is_wanted() -> None:
    scaler, targets = Autoscaler(), dataclasses.replace(TARGETS, up_delay_s=5.0)
    asked = demand(queued=2400.0)
    for at in (0.0, 2.0, 4.0):
        assert decide(scaler, at, asked, 2, targets=targets).reason == "hold: up delay"
    assert decide(scaler, 5.0, asked, 2, targets=targets).target == 4


def test_fewer_only_after_the_delay_and_no_fewer_than_were_wanted_in_it() -> None:
    scaler = Autoscaler()
    assert decide(scaler, 0.0, demand(running=300.0, arriving=1900.0), 8).target == 8
    assert decide(scaler, 1.0, demand(running=300.0, arriving=1100.0), 8).reason == "hold: down delay"
    assert decide(scaler, 10.0, demand(running=300.0, arriving=400.0), 8).reason == "hold: down delay"
    decision = decide(scaler, 31.5, demand(running=300.0, arriving=400.0), 8)
    assert (decision.target, decision.reason) == (4, "down: less work")
    assert decide(scaler, 31.6, demand(running=300.0, arriving=400.0), 4).target == 2


def test_a_need_that_is_off_by_less_than_the_tolerance_changes_nothing() -> None:
    scaler = Autoscaler()
    assert decide(scaler, 0.0, demand(arriving=0.8 * RATE * 3.05), 3).reason == "hold: within tolerance"
    for at in range(100):
        assert decide(scaler, float(at), demand(arriving=0.8 * RATE * 1.95), 3).target == 3


def test_from_zero_at_once_whatever_the_delay() -> None:
    targets = dataclasses.replace(TARGETS, up_delay_s=60.0)
    decision = decide(Autoscaler(), 0.0, demand(queued=30.0, rate=0.0), 0, targets=targets)
    assert (decision.target, decision.reason) == (1, "up: from zero")


def test_from_zero_to_as_many_as_are_needed_once_a_replica_has_been_known() -> None:
    scaler = Autoscaler()
    decide(scaler, 0.0, demand(), 1)
    decision = decide(scaler, 100.0, demand(queued=1800.0, rate=0.0), 0)
    assert decision.target == 3


def test_to_zero_after_a_time_without_any_work() -> None:
    scaler = Autoscaler()
    assert decide(scaler, 0.0, demand(running=10.0), 1).target == 1
    assert decide(scaler, 1.0, demand(), 1).reason == "hold: down delay"
    assert decide(scaler, 60.0, demand(), 1).target == 1
    decision = decide(scaler, 61.0, demand(), 1)
    assert (decision.target, decision.reason) == (0, "down: idle")
    assert decide(scaler, 62.0, demand(), 0).target == 0


def test_never_to_zero_where_the_minimum_is_one() -> None:
    scaler, targets = Autoscaler(), dataclasses.replace(TARGETS, min_replicas=1)
    assert {decide(scaler, 50.0 * i, demand(), 1, targets=targets).target for i in range(10)} == {1}


def test_nothing_fresh_holds() -> None:
    decision = decide(Autoscaler(), 0.0, Demand(), 3)
    assert (decision.target, decision.reason) == (3, "hold: nothing fresh")


def test_bounds_that_change_take_hold_at_once() -> None:
    scaler = Autoscaler()
    low, high = dataclasses.replace(TARGETS, max_replicas=2), dataclasses.replace(TARGETS, min_replicas=4)
    assert decide(scaler, 0.0, demand(), 5, targets=low).reason == "down: maximum"
    assert decide(scaler, 0.0, Demand(), 1, targets=high).target == 4
    assert decide(scaler, 0.0, demand(queued=1.0), 1, targets=high).reason == "up: minimum"


def test_what_grows_while_replicas_load_orders_no_more_of_them() -> None:
    scaler = Autoscaler()
    assert decide(scaler, 0.0, demand(queued=2400.0, arriving=800.0), 1, cold=20.0).target == 4
    for at in range(1, 20):
        asked = demand(queued=2400.0 + 500.0 * at, arriving=800.0)
        decision = decide(scaler, float(at), asked, 4, ready=1, cold=20.0)
        assert (decision.target, decision.reason) == (4, "hold: replicas are loading")
    # What arrives is no backlog: more of it than those that load will do is a reason.
    assert decide(scaler, 20.0, demand(queued=9000.0, arriving=2000.0), 4, ready=1, cold=20.0).target > 4


def test_replicas_that_are_overdue_are_ordered_again() -> None:
    scaler = Autoscaler()
    decide(scaler, 0.0, demand(queued=6000.0), 1, cold=10.0)
    assert decide(scaler, 19.0, demand(queued=20_000.0), 5, ready=1, cold=10.0).target == 5
    assert decide(scaler, 21.0, demand(queued=20_000.0), 5, ready=1, cold=10.0).target > 5


def test_a_backlog_that_is_gone_before_a_replica_could_help_orders_none() -> None:
    asked = demand(queued=2400.0, arriving=100.0)
    assert decide(Autoscaler(), 0.0, asked, 2, cold=30.0).target == 2
    assert decide(Autoscaler(), 0.0, asked, 2, cold=0.5).target == 4


def test_who_knows_only_queue_depth_says_just_that() -> None:
    targets = ScalingTargets(1, 10, mode="queue_depth", queue_depth=4.0)
    asked = demand(queued=1.0, queued_requests=8, running_requests=16)
    decision = decide(Autoscaler(), 0.0, asked, 2, targets=targets)
    assert (decision.target, decision.reason) == (4, "up: queue depth")
    assert decision.details == {"seats": 2.0, "queue": 2.0}


def test_a_decision_says_all_that_it_rests_on() -> None:
    line = decide(Autoscaler(), 0.0, demand(queued=2400.0, running=300.0, arriving=50.0), 2).line()
    for part in (
        "target 2 -> 5 (up: work)",
        "wanted 4.50",
        "2400.0 units",
        "300.0 units",
        "50.0 units/s",
        "backlog 4.5",
    ):
        assert part in line


def test_reports_of_ingresses_add_up_while_they_are_fresh() -> None:
    reports = [
        (9.0, IngressReport("a", 10.0, 5.0, 1, 2, 7.0, 300.0, 8)),
        (9.5, IngressReport("a", 20.0, 6.0, 2, 3, 8.0, 320.0, 8)),
        (8.0, IngressReport("b", 1.0, 1.0, 1, 1, 1.0)),
        (2.0, IngressReport("c", 1000.0, 1000.0, 9, 9, 9.0, 100.0, 8)),
    ]
    assert add_up(reports, 10.0) == Demand(21.0, 7.0, 3, 4, 9.0, 320.0, 8, 2)
    assert add_up(reports, 100.0) == Demand()


def test_what_it_remembers_goes_on_in_another_one() -> None:
    first = Autoscaler()
    decide(first, 0.0, demand(running=300.0, arriving=1900.0), 8)
    second = Autoscaler()
    second.restore(first.state())
    assert second.state() == first.state()
    assert decide(second, 31.0, demand(running=300.0, arriving=400.0), 8).target == 4
    for wrong in ({}, {"at": [1.0], "wanted": [], "idle_since": [], "rate": [1.0]}, {"at": 3}):
        second.restore(wrong)  # type: ignore[arg-type]
    assert second.state()["at"]


def test_a_clock_that_goes_back_begins_anew() -> None:
    scaler = Autoscaler()
    decide(scaler, 1000.0, demand(arriving=1900.0), 8)
    assert decide(scaler, 10.0, demand(arriving=400.0), 8).reason == "hold: down delay"
    assert decide(scaler, 41.0, demand(arriving=400.0), 8).target < 8


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("min_replicas", 11),
        ("max_replicas", 0),
        ("target_s", 0.0),
        ("queue_depth", -1.0),
        ("utilisation", 0.0),
        ("down_delay_s", -1.0),
        ("down_factor", 1.5),
        ("mode", "magic"),
    ],
)
def test_targets_that_make_no_sense_are_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field if field != "max_replicas" else "replicas"):
        dataclasses.replace(TARGETS, **{field: value})


@given(
    st.lists(
        st.tuples(st.floats(0.0, 100.0), st.floats(0.0, 1e6), st.floats(0.0, 1e5), st.floats(0.0, 1e4), st.booleans()),
        max_size=40,
    ),
    st.integers(0, 3),
    st.integers(3, 50),
)
@example([(0.0, 0.0, 5e-324, 0.0, False)], 0, 3)  # work too small to make one request
def test_any_load_keeps_within_bounds_and_ends_at_the_minimum(
    steps: list[tuple[float, float, float, float, bool]], least: int, most: int
) -> None:
    targets = dataclasses.replace(TARGETS, min_replicas=least, max_replicas=most)
    scaler, now, target = Autoscaler(), 0.0, least
    for wait, queued, running, arriving, loaded in steps:
        now += wait
        asked = demand(queued, running, arriving, rate=RATE if target else 0.0)
        decision = decide(scaler, now, asked, target, ready=target if loaded else 0, targets=targets, cold=5.0)
        target = decision.target
        assert least <= target <= most
        # Requests decide what is idle: rounding may leave a trace of work behind that nobody waits for.
        assert target >= 1 or not (asked.queued_requests or asked.running_requests)
    for _ in range(300):
        now += 10.0
        target = decide(scaler, now, demand(), target, targets=targets).target
    assert target == least


def test_imports_the_standard_library_only() -> None:
    """The controller unpickles this module by value, where there may be no more than Ray."""
    tree = ast.parse(Path(autoscaling.__file__).read_text())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(str(node.module).split(".")[0])
    assert imported <= set(sys.stdlib_module_names)


def test_every_reason_is_explained() -> None:
    """As it stands in metrics, where the policy's shell adds one of its own."""
    page = (Path(__file__).parents[3] / "docs" / "ray.md").read_text()
    reasons = {reason.replace(": ", "_").replace(" ", "_") for reason in get_args(autoscaling.Reason)}
    assert not {reason for reason in reasons | {"hold_failed"} if f"`{reason}`" not in page}

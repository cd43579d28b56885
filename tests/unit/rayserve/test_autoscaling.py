"""The policy's shell: never raises, never blocks, holds without news, and its thread ends with it."""

from __future__ import annotations

import gc
import threading
import time
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import cloudpickle

from easel.rayserve import autoscaling
from easel.rayserve.autoscaling import Starts, WorkPolicy
from easel.rayserve.ledger import FRESH_S, WorkLedger
from easel.router.autoscaling import IngressReport
from easel.telemetry.names import SEEN_INGRESSES, Metric


def context(target: int = 2, ready: int = 2, least: int = 0, most: int = 9) -> Any:
    return SimpleNamespace(
        app_name="easel",
        target_num_replicas=target,
        current_num_replicas=ready,
        capacity_adjusted_min_replicas=least,
        capacity_adjusted_max_replicas=most,
        policy_state={},
    )


class Actor:
    """The ledger without a cluster."""

    def __init__(self) -> None:
        self.reports: list[tuple[float, dict[str, Any]]] = []
        self.targets: dict[str, Any] = {}
        self.hangs = threading.Event()
        self.read = SimpleNamespace(remote=lambda: None)


@pytest.fixture
def actor(monkeypatch: pytest.MonkeyPatch) -> Actor:
    made = Actor()

    def get(reference: Any, timeout: float) -> Any:
        if made.hangs.is_set():
            time.sleep(timeout)
            raise TimeoutError
        return made.reports, made.targets

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: made)
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(autoscaling, "READ_PERIOD_S", 0.005)
    monkeypatch.setattr(WorkPolicy, "_export", lambda self, application, decision, targets: None)
    return made


def test_without_a_cluster_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would start one: a reading that outlives its controller must not."""
    asked = threading.Event()
    looked = threading.Semaphore(0)
    monkeypatch.setattr(ray, "is_initialized", lambda: bool(looked.release()))
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: asked.set())
    monkeypatch.setattr(autoscaling, "READ_PERIOD_S", 0.005)
    reading = autoscaling.Reading("work:easel")
    assert looked.acquire(timeout=60)
    assert looked.acquire(timeout=60)  # it came round again
    assert not asked.is_set()
    assert reading.last is None


def settle(policy: WorkPolicy, ctx: Any, target: int) -> None:
    """Ticks until it decides that: the test's own timeout ends it otherwise."""
    while policy(ctx)[0] != target:
        time.sleep(0.005)


def busy(**more: Any) -> dict[str, Any]:
    report = {"queued_requests": 40, "queued_work": 400.0, "replica_work_per_s": 50.0, "replica_slots": 4}
    return asdict(IngressReport(ingress="a", **(report | more)))


def test_scales_up_on_reports_and_holds_when_they_get_old(actor: Actor) -> None:
    policy = WorkPolicy()
    assert policy(context())[0] == 2, "nothing was read yet"
    actor.reports = [(0.0, busy())]
    settle(policy, context(), 4)
    actor.reports = [(FRESH_S + 1, busy())]
    settle(policy, context(), 2)


def test_targets_are_taken_up_while_it_runs(actor: Actor) -> None:
    policy = WorkPolicy()
    actor.reports, actor.targets = [(0.0, busy())], {"target_s": 4.0}
    settle(policy, context(1, 1), 2)
    actor.targets = {"mode": "queue_depth", "queue_depth": 10.0, "tolerance": 0.0}
    settle(policy, context(3, 3), 4)


def test_from_zero(actor: Actor) -> None:
    policy = WorkPolicy()
    actor.reports = [(0.0, busy(queued_requests=1, queued_work=20.0))]
    settle(policy, context(0, 0), 1)


@pytest.mark.parametrize("wrong", [[(0.0, {"no": "report"})], "not a list", None])
def test_whatever_goes_wrong_the_number_stays_and_metrics_say_so(
    actor: Actor, monkeypatch: pytest.MonkeyPatch, wrong: Any
) -> None:
    told: list[tuple[str, dict[Metric, float], str]] = []
    monkeypatch.setattr(WorkPolicy, "_tell", lambda self, *what: told.append(what))
    policy = WorkPolicy()
    actor.reports = [(0.0, busy())]
    settle(policy, context(), 4)
    assert not told
    actor.reports = wrong
    settle(policy, context(), 2)
    assert told[-1] == ("easel", {SEEN_INGRESSES: 0}, "hold_failed")


def test_metrics_that_cannot_be_told_hold_up_nothing(actor: Actor, monkeypatch: pytest.MonkeyPatch) -> None:
    def tell(*what: Any) -> None:
        raise RuntimeError("no metrics here")

    monkeypatch.setattr(WorkPolicy, "_tell", tell)
    policy = WorkPolicy()
    actor.reports = "not a list"  # type: ignore[assignment]
    while not policy._failed:
        assert policy(context())[0] == 2


def test_a_hanging_actor_holds_up_nobody(actor: Actor) -> None:
    policy = WorkPolicy()
    actor.hangs.set()
    for _ in range(200):
        began = time.thread_time()
        assert policy(context())[0] == 2
        assert time.thread_time() - began < autoscaling.READ_TIMEOUT_S


def test_its_thread_ends_with_it(actor: Actor) -> None:
    # Compared one by one: threads of earlier tests may end while this one counts.
    before = set(threading.enumerate())
    policies = [WorkPolicy() for _ in range(5)]
    for policy in policies:
        policy(context())
    own = set(threading.enumerate()) - before
    assert len(own) == 5
    del policy, policies
    gc.collect()
    for thread in own:
        thread.join(timeout=60)
        assert not thread.is_alive()


def test_what_it_remembers_goes_on_in_the_next_one(actor: Actor) -> None:
    first, second = WorkPolicy(), WorkPolicy()
    actor.reports = [(0.0, busy())]
    settle(first, context(), 4)
    _, state = first(context())
    ctx = context()
    ctx.policy_state = state
    _, taken_over = second(ctx)
    assert taken_over["easel"]["rate"] == [50.0]


def test_serve_can_pickle_it_by_value() -> None:
    cloudpickle.register_pickle_by_value(autoscaling)
    try:
        again = cloudpickle.loads(cloudpickle.dumps(WorkPolicy))
    finally:
        cloudpickle.unregister_pickle_by_value(autoscaling)
    assert again.__name__ == "WorkPolicy"


def test_policy_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="policy_kwargs: no such setting: target"):
        WorkPolicy(target=3)


def test_the_time_a_replica_takes_to_start_is_that_of_the_last() -> None:
    starts = Starts()
    for now, target, ready in ((0.0, 1, 1), (1.0, 3, 1), (5.0, 3, 1), (9.0, 3, 2), (12.0, 3, 3)):
        starts.saw(now, target, ready)
    assert starts.last_s == 8.0


def test_a_replica_that_was_ordered_earlier_is_not_taken_for_one_of_the_next_order() -> None:
    """Two seconds for a start of thirty would have those that load taken for overdue, and others ordered."""
    starts = Starts()
    for now, target, ready in ((0.0, 1, 1), (1.0, 2, 1), (29.0, 3, 1), (31.0, 3, 2)):
        starts.saw(now, target, ready)
    assert starts.last_s == 30.0
    for now, target, ready in ((59.0, 3, 3), (60.0, 4, 3), (85.0, 4, 4)):
        starts.saw(now, target, ready)
    assert starts.last_s == 25.0


async def test_the_ledger_forgets_who_is_gone() -> None:
    now = [0.0]
    ledger = WorkLedger(lambda: now[0])
    await ledger.put({"ingress": "a", "queued_requests": 1}, {"target_s": 1.0})
    now[0] = 2.0
    others = await ledger.put({"ingress": "b", "queued_requests": 2}, {"target_s": 2.0})
    assert [one["ingress"] for one in others] == ["a", "b"]
    now[0] = 4.0
    reports, targets = await ledger.read()
    assert reports == [(2.0, {"ingress": "b", "queued_requests": 2})]
    assert targets == {"target_s": 2.0}

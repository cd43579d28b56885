"""When waiting for an upgrade is over, on a clock of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from easel.kube import objects, upgrade
from easel.kube.failures import NotAllowed, Unreachable
from easel.kube.resources import RAY_SERVICES
from easel.kube.rights import Right
from easel.kube.rollout import SETTLED_S, follow
from easel.kube.snapshot import Snapshot
from tests.unit.kube import cluster

Object = dict[str, Any]


def snapshot(item: Object, *pods: Object) -> Snapshot:
    service, seen = objects.service(item), tuple(objects.pod(pod) for pod in pods)
    told = upgrade.read(service, seen, (), cluster.NOW)
    return Snapshot(cluster.NOW, "test", service, seen, told, None, (), ())


class Run:
    """Looks at `scenes` one after the other, and for ever at the last."""

    def __init__(self, *scenes: Snapshot | Exception) -> None:
        self.scenes, self.now, self.news = list(scenes), 0.0, list[Snapshot]()

    def __call__(self, **options: Any) -> upgrade.Upgrade | None:
        def look() -> Snapshot:
            scene = self.scenes.pop(0) if len(self.scenes) > 1 else self.scenes[0]
            if isinstance(scene, Exception):
                raise scene
            return scene

        return follow(look, self.news.append, clock=lambda: self.now, sleep=self.sleep, **options)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def served(changed_s: float = 600) -> Snapshot:
    item = cluster.written("rayservice")
    item["metadata"]["managedFields"][0]["time"] = cluster.before(changed_s)
    return snapshot(item)


def test_what_is_done_for_long_is_done_at_once() -> None:
    run = Run(served())
    ended = run()
    assert ended
    assert (ended.state, run.now) == ("done", 0)


def test_a_fresh_change_has_to_look_done_for_a_while() -> None:
    """The operator notes that it has seen a configuration before Serve begins with it."""
    run = Run(served(changed_s=3))
    assert run()
    assert run.now >= SETTLED_S


def test_a_fresh_change_that_serve_begins_with_late_is_waited_for() -> None:
    item = cluster.written("rayservice")
    item["status"]["activeServiceStatus"]["applicationStatuses"]["easel"]["status"] = "DEPLOYING"
    run = Run(served(3), snapshot(item), served(3))
    assert run()
    assert [seen.upgrade.state for seen in run.news] == ["done", "running", "done"]


def test_the_time_is_over() -> None:
    run = Run(snapshot(cluster.upgrading(since_s=10)))
    assert run(give_up_after_s=30) is None
    assert run.now == 30
    assert len(run.news) == 1


def test_a_stalled_one_that_finds_room_is_waited_for_where_asked() -> None:
    stalled = snapshot(cluster.upgrading(), cluster.unscheduled("w"))
    ended = Run(stalled, served())()
    assert ended
    assert ended.state == "stalled"
    ended = Run(stalled, served())(keep_waiting=True)
    assert ended
    assert ended.state == "done"


@pytest.mark.parametrize(("times", "survives"), [(5, True), (100, False)])
def test_an_api_server_that_is_away_for_a_while(times: int, survives: bool) -> None:
    away = [Unreachable("away")] * times
    run = Run(snapshot(cluster.upgrading(since_s=10)), *away, served())
    check: Callable[[], Any] = run
    if survives:
        assert check()
    else:
        with pytest.raises(Unreachable):
            check()
        assert run.now < 130


def test_a_first_look_that_fails_and_a_missing_right_are_the_end() -> None:
    with pytest.raises(Unreachable):
        Run(Unreachable("away"))()
    refused = NotAllowed(Right.to("get", RAY_SERVICES, "prod"))
    with pytest.raises(NotAllowed):
        Run(snapshot(cluster.upgrading(since_s=10)), refused)()

"""Replicas come and go by queued work on real Ray, and are replaced under load, without a request that fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import psutil
import pytest

from easel.rayserve import processes
from easel.rayserve.config import LOG_LEVEL, autoscaling_config, live_limits, live_targets
from easel.rayserve.local import Local
from easel.settings import AutoscalingSettings
from tests.integration.conftest import APPLICATIONS, PATIENCE_S, replica_of, wait_until
from tests.integration.script import SLOTS

PATH = "/scaled"
AUTOSCALING = {"min_replicas": 0, "max_replicas": 2, "target_s": 1.0, "down_delay_s": 1.0, "to_zero_delay_s": 1.0}


def ask(local: Local, prompt: str, max_tokens: int = 8, path: str = PATH) -> httpx.Response:
    body = {"model": "easel", "prompt": prompt, "max_tokens": max_tokens}
    return httpx.post(f"{local.session.url}{path}/v1/completions", json=body, timeout=PATIENCE_S, trust_env=False)


@contextmanager
def asking(local: Local, clients: int, prompt: str, max_tokens: int = 500) -> Iterator[list[int]]:
    """So many clients, each asking again as soon as it is answered. The list: status of every answer."""
    stop, statuses = threading.Event(), []

    def keep_asking(client: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            statuses.append(ask(local, f"{prompt} {client} {number}", max_tokens).status_code)

    with ThreadPoolExecutor(clients) as pool:
        asked = [pool.submit(keep_asking, client) for client in range(clients)]
        try:
            yield statuses
        finally:
            stop.set()
        for client in asked:
            client.result(PATIENCE_S)


class Scaled:
    """A second application, whose engine is scaled."""

    def __init__(self, local: Local) -> None:
        self.local = local
        self.before = local.config(APPLICATIONS + "build")
        self.application = local.config(APPLICATIONS + "build")["applications"][0]
        self.application |= {"name": "scaled", "route_prefix": PATH}
        self.ingress, self.engine = self.application["deployments"]
        for deployment in (self.ingress, self.engine):
            deployment["ray_actor_options"] = {"num_cpus": 0}
        del self.engine["num_replicas"]

    def deploy(self, **autoscaling: Any) -> None:
        settings = AutoscalingSettings(**AUTOSCALING | autoscaling)
        self.engine["autoscaling_config"] = autoscaling_config(settings)
        self.ingress["user_config"] = {"autoscaling": live_targets(settings)}
        self.local.dashboard.deploy(self.before | {"applications": [*self.before["applications"], self.application]})

    def engine_deployment(self) -> dict[str, Any]:
        """Serve's account of it. Empty while Serve has none: a controller that was restarted does at first not know."""
        found = self.local.dashboard.applications()["applications"].get("scaled", {}).get("deployments", {})
        return dict(found.get("engine", {}))

    def engines(self) -> list[str]:
        """Names of the engine replicas that run."""
        replicas = self.engine_deployment().get("replicas", [])
        return sorted(replica["replica_id"] for replica in replicas if replica["state"] == "RUNNING")

    def settled(self, count: int) -> list[str]:
        """Their names once there are so many, with none starting or stopping; until then an empty list."""
        found = self.engine_deployment()
        replicas = found.get("replicas", [])
        if found.get("target_num_replicas") != count or len(replicas) != count:
            return []
        running = sorted(replica["replica_id"] for replica in replicas if replica["state"] == "RUNNING")
        return running if len(running) == count else []

    def states(self) -> list[str]:
        """Of all its engine replicas."""
        return [str(replica["state"]) for replica in self.engine_deployment().get("replicas", [])]

    def is_empty(self) -> bool:
        """Whether there is no replica, and none is to be."""
        found = self.engine_deployment()
        return found.get("target_num_replicas") == 0 and not found.get("replicas")


def kill(local: Local, title: str) -> None:
    """The processes whose name begins so: Ray adds what they are doing."""
    killed = 0
    for process in processes.members(local.session.mark, local.keeper):
        with suppress(psutil.Error):  # it may end while it is looked at
            if (process.cmdline() or [""])[0].startswith(title):
                process.kill()
                killed += 1
    assert killed, title


@pytest.fixture(scope="module")
def scaled(local: Local) -> Iterator[Scaled]:
    made = Scaled(local)
    made.deploy()
    wait_until(lambda: ask(local, "quick").status_code == 200, "the application answers")
    yield made
    local.dashboard.deploy(made.before)


def test_from_none_to_two_and_back_to_none_with_requests_held(local: Local, scaled: Scaled) -> None:
    wait_until(scaled.is_empty, "the last replica is gone")
    assert httpx.get(f"{local.session.url}{PATH}/readyz", timeout=PATIENCE_S, trust_env=False).status_code == 200
    # Until two run: what was held at first may be done before a second one is up.
    with asking(local, 24, "slow") as statuses:
        wait_until(lambda: len(scaled.engines()) == 2, "two replicas run")
    assert set(statuses) == {200}
    wait_until(scaled.is_empty, "nothing is left of them")


def test_bounds_and_targets_change_without_a_new_replica(local: Local, scaled: Scaled) -> None:
    scaled.deploy(min_replicas=1)
    [first] = wait_until(lambda: scaled.settled(1), "one runs, with nothing to do")
    scaled.deploy(min_replicas=1, target_s=3.0, mode="queue_depth", down_delay_s=2.0)
    scaled.deploy(min_replicas=2)
    both = wait_until(lambda: scaled.settled(2), "a second one runs")
    assert first in both
    scaled.deploy(min_replicas=1, max_replicas=1)
    [left] = wait_until(lambda: scaled.settled(1), "one is gone")
    assert left in both


def test_the_actor_and_the_controller_may_die(local: Local, scaled: Scaled) -> None:
    """Replicas stay, requests are answered, and scaling goes on."""
    scaled.deploy(min_replicas=1)
    wait_until(lambda: scaled.settled(1), "one replica runs")
    for title in ("ray::WorkLedger", "ray::ServeController"):
        kill(local, title)
        assert ask(local, "quick").status_code == 200
    # As much work as at first, until it has its effect: how long a controller takes to come back is Ray's affair.
    with asking(local, 24, "slow") as statuses:
        wait_until(lambda: len(scaled.engines()) == 2, "there are more of them for more work")
    assert set(statuses) == {200}


def test_the_controller_may_die_while_a_replica_is_being_stopped(local: Local, scaled: Scaled) -> None:
    """Its successor does not take the stopped one for a failed start, which here would be the end of the deployment."""
    for _ in range(8):
        scaled.deploy(min_replicas=2)
        wait_until(lambda: scaled.settled(2), "two replicas run")
        # Nothing to do, so that it has stopped before the next controller is up. That takes a second: it may be missed.
        scaled.deploy(min_replicas=1, max_replicas=1)
        seen = wait_until(lambda: "STOPPING" in scaled.states() or scaled.settled(1), "one is being stopped")
        if seen is True:
            break
    else:
        raise AssertionError("none was ever seen being stopped")
    kill(local, "ray::ServeController")
    with asking(local, SLOTS, "slow") as statuses:
        wait_until(lambda: scaled.settled(1), "one is left, or a new one runs")
        scaled.deploy(min_replicas=2)
        wait_until(lambda: scaled.settled(2), "and a second one again")
    assert set(statuses) == {200}


def test_a_rolling_update_under_load_fails_nobody(local: Local, scaled: Scaled) -> None:
    scaled.deploy(min_replicas=2)
    before = wait_until(lambda: scaled.settled(2), "two replicas run")
    with asking(local, SLOTS, "client", 300) as statuses:
        # Another command line for the engine: a restart of it and nothing else.
        scaled.engine["ray_actor_options"] = {"num_cpus": 0.001}
        scaled.deploy(min_replicas=2)
        wait_until(lambda: len(scaled.engines()) == 2 and not set(before) & set(scaled.engines()), "all are new")
    assert len(statuses) > 10
    assert set(statuses) == {200}


def test_its_engine_is_what_the_settings_say(local: Local, scaled: Scaled) -> None:
    live = live_limits(local.settings.app.model.engine) | {LOG_LEVEL: local.settings.app.telemetry.log_level}
    assert scaled.engine["user_config"] == live
    assert replica_of(local, "engine", "scaled").is_running()

"""One real local session for all tests here: Ray, Serve, HAProxy and the API, around a fake engine that is scripted."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from easel.errors import NotReady
from easel.rayserve import processes
from easel.rayserve.local import Local
from easel.settings import ServeSettings, parse
from tests.integration.checkpoint import write_checkpoint
from tests.integration.script import SLOTS

ROOT = Path(__file__).parents[2]
APPLICATIONS = "tests.integration.apps:"


MOST_S = 600.0
"""For one test and what is started for it. A hang is what it is against: a session is up in 20 s on two idle cores, and
three times later on two busy ones."""
PATIENCE_S = 180.0
"""For one thing that is waited for, and for one answer. Most come within seconds; the longest are a replica's death and
two starts of another."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.ray)
            item.add_marker(pytest.mark.timeout(MOST_S))


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> Any:
    """What `condition` returns, once that is true. That a connection broke, or that Serve could not be asked, counts as
    not yet."""
    deadline = time.monotonic() + timeout_s
    while True:
        error = None
        try:
            if result := condition():
                return result
        except (httpx.TransportError, NotReady) as raised:
            error = raised
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what}") from error
        time.sleep(0.05)


@contextlib.contextmanager
def let_go(*files: Path) -> Iterator[None]:
    """What waits for these files goes on in the end, also where a test fails: nobody waits for a stream without one."""
    try:
        yield
    finally:
        for file in files:
            file.touch()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "fake")


@pytest.fixture(scope="session")
def settings(checkpoint: Path) -> ServeSettings:
    return parse(
        {
            "app": {"models": {"default": {"checkpoint": str(checkpoint), "engine": {"kind": "fake", "slots": SLOTS}}}},
            "deployments": {
                "engine": {"max_ongoing_requests": SLOTS + 2, "health_check_period_s": 0.5},
                "ingress": {"cpus": 0.5},
            },
            "local": {"port": 0, "dashboard_port": 0},
        }
    )


@pytest.fixture(scope="session")
def environment() -> Iterator[None]:
    """What the processes of the session import from: replicas find the tests' applications."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "platform")]))
        yield


@pytest.fixture(scope="session")
def local(settings: ServeSettings, environment: None) -> Iterator[Local]:
    """A running session. Its engine follows `tests.integration.apps`."""
    local = Local(settings, lambda line: None)
    local.start(APPLICATIONS + "build")
    yield local
    # The worst end: the keeper is killed, and what it kept has to be found and ended without it.
    keeper = psutil.Process(local.keeper)
    assert len(processes.members(local.session.mark, None)) > 12
    keeper.kill()
    keeper.wait()
    local.kill()
    assert not processes.members(local.session.mark, None)
    assert not local.session.folder.exists()


def replica_of(local: Local, deployment: str, application: str = "easel") -> psutil.Process:
    """The process of the one replica. Serve gives it its name."""
    title = f"ray::ServeReplica:{application}:{deployment}"

    return wait_until(lambda: titled(local, title), f"a process named {title}")[0]


def titled(local: Local, title: str) -> list[psutil.Process]:
    """The session's processes of that name."""
    found = []
    for process in processes.members(local.session.mark, local.keeper):
        with contextlib.suppress(psutil.Error):  # it may end while it is looked at
            if process.cmdline()[:1] == [title]:
                found.append(process)
    return found


def samples(local: Local, name: str, application: str = "easel", **labels: str) -> dict[str, float]:
    """A metric's value by replica, over its other labels, from where Prometheus would take it: the node's agent."""
    wanted = {"application": application, **labels}.items()
    found: dict[str, float] = {}
    for port in agent_ports(local):
        try:
            answer = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30, trust_env=False)
        except httpx.TransportError:
            continue  # another of the agent's ports
        for family in text_string_to_metric_families(answer.text if answer.status_code == 200 else ""):
            for sample in family.samples:
                if sample.name == f"ray_{name}" and wanted <= sample.labels.items():
                    replica = sample.labels["replica"]
                    found[replica] = found.get(replica, 0.0) + sample.value
    return found


def busy_slots(local: Local, application: str = "easel") -> Callable[[], float]:
    """Asks how many slots of an application are taken; -1 where nothing is known."""

    def busy() -> float:
        known = samples(local, "easel_slots_busy", application)
        return sum(known.values()) if known else -1.0

    return busy


def agent_ports(local: Local) -> list[int]:
    found = []
    for process in processes.members(local.session.mark, local.keeper):
        with contextlib.suppress(psutil.Error):  # it may end while it is looked at
            if process.cmdline()[:1] == ["ray::DashboardAgent"]:
                found += [c.laddr.port for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    return found

"""Starting and stopping in order, over a session whose Ray and dashboard are stand-ins: no cluster is started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from easel.errors import EaselError, InternalError, NotReady
from easel.rayserve import local as module
from easel.rayserve import processes, session
from easel.rayserve.local import Local, run
from easel.settings import parse


class Dashboard:
    """Answers what a test says, and notes what is deployed."""

    applications_now: dict[str, Any] = {}  # noqa: RUF012
    deployed: list[dict[str, Any]] = []  # noqa: RUF012
    resources_now: list[dict[str, float]] = []  # noqa: RUF012

    def __init__(self, port: int, token: str) -> None:
        pass

    def close(self) -> None:
        pass

    def applications(self) -> dict[str, Any]:
        return {"applications": dict(self.applications_now)}

    def resources(self) -> dict[str, float]:
        if not self.resources_now:
            raise NotReady("No node has joined Ray yet.")
        return self.resources_now.pop(0)

    def deploy(self, config: dict[str, Any]) -> None:
        self.deployed.append(config)
        if not config["applications"]:
            Dashboard.applications_now = {}


def running(state: str = "RUNNING", status: str = "RUNNING", message: str = "") -> dict[str, Any]:
    engine = {"replicas": [{"state": state}], "message": message}
    return {"easel": {"status": status, "deployments": {"engine": engine}, "message": message}}


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Local, list[str]]]:
    """Makes a `Local` whose Ray is a program that listens on the API's port and answers 200."""
    root = tmp_path / "s"
    root.mkdir(mode=0o700)
    monkeypatch.setattr(session, "_root", lambda: root)
    monkeypatch.setattr(module, "Dashboard", Dashboard)
    monkeypatch.setattr(Dashboard, "deployed", [])
    monkeypatch.setattr(Dashboard, "applications_now", running())
    monkeypatch.setattr(Dashboard, "resources_now", [{"CPU": 8.0}])
    serving = (
        "import sys, http.server as h\n"
        "class A(h.BaseHTTPRequestHandler):\n"
        "    def do_GET(self): self.send_response(200); self.end_headers()\n"
        "    def log_message(self, *a): pass\n"
        "h.HTTPServer(('127.0.0.1', int(sys.argv[1])), A).serve_forever()"
    )

    def make(program: str = serving, **more: Any) -> tuple[Local, list[str]]:
        def command(self: session.Session, settings: Any) -> list[str]:
            return [sys.executable, "-c", program, str(self.ports.api)]

        monkeypatch.setattr(session.Session, "command", command)
        said: list[str] = []
        ports = {"port": 0, "dashboard_port": 0}
        return Local(parse({**more, "local": {**ports, **more.get("local", {})}}), said.append), said

    return make


def gone(local: Local) -> bool:
    return not processes.members(local.session.mark, None) and not local.session.folder.exists()


def test_starts_serves_and_leaves_nothing(start: Callable[..., tuple[Local, list[str]]]) -> None:
    local, said = start()
    local.start()
    assert said[-1].startswith("Ready after")
    assert Dashboard.deployed[0]["http_options"]["port"] == local.session.ports.api
    assert processes.members(local.session.mark, local.keeper)
    local.drain(lambda: False)
    assert Dashboard.deployed[-1] == {"applications": []}
    local.kill()
    assert gone(local)
    local.kill()


def test_deploys_a_replica_for_every_gpu_that_ray_finds(
    start: Callable[..., tuple[Local, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Dashboard, "resources_now", [{"CPU": 16.0, "GPU": 5.0}])
    local, said = start(deployments={"engine": {"gpus": 1}}, local={"every_gpu": True})
    local.start()
    local.kill()
    ingress, engine = Dashboard.deployed[0]["applications"][0]["deployments"]
    assert (engine["num_replicas"], ingress["num_replicas"]) == (5, 1)
    assert engine["ray_actor_options"]["num_gpus"] == 1
    assert "GPUs: 5, 1 for each engine. Replicas: 5 engine, 1 ingress." in said


def test_an_engine_that_takes_what_there_is_gets_the_gpu(
    start: Callable[..., tuple[Local, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Dashboard, "resources_now", [{"CPU": 8.0, "GPU": 1.0}])
    local, said = start()
    local.start()
    local.kill()
    assert Dashboard.deployed[0]["applications"][0]["deployments"][1]["ray_actor_options"]["num_gpus"] == 1
    assert "GPUs: 1, 1 for each engine. Replicas: 1 engine, 1 ingress." in said


def test_a_machine_without_a_gpu_is_told_so(
    start: Callable[..., tuple[Local, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Dashboard, "resources_now", [{"CPU": 16.0}])
    local, _ = start(deployments={"engine": {"gpus": 1}}, local={"every_gpu": True})
    with pytest.raises(EaselError, match="Ray finds 0 GPUs"):
        local.start()
    assert not Dashboard.deployed
    assert not processes.members(local.session.mark, None)


def test_says_why_ray_ended_and_keeps_its_log(start: Callable[..., tuple[Local, list[str]]]) -> None:
    local, _ = start("import sys; print('no space left'); sys.exit(3)")
    with pytest.raises((InternalError, NotReady)):
        local.start()
    assert not processes.members(local.session.mark, None)
    assert "no space left" in (local.session.folder / "ray.log").read_text()


def test_says_why_the_model_did_not_start(
    start: Callable[..., tuple[Local, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = running("STARTING", "DEPLOY_FAILED", "ConfigurationError: no tensor lm_head")
    monkeypatch.setattr(Dashboard, "applications_now", failed)
    local, _ = start()
    with pytest.raises(EaselError, match="no tensor lm_head"):
        local.start()
    assert not processes.members(local.session.mark, None)


def test_a_signal_drains_and_ends(start: Callable[..., tuple[Local, list[str]]]) -> None:
    local, said = start()

    def welcome(*facts: Any) -> str:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        return f"welcome to {facts[0]}"

    before = signal.getsignal(signal.SIGINT)
    run(local, said.append, welcome)
    assert f"welcome to {local.session.url}" in said
    assert said[-1] == "Stopped."
    assert gone(local)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("pause_s", [0.0, 0.6], ids=["before-it-drains", "while-it-drains"])
def test_a_second_signal_ends_what_still_runs(
    start: Callable[..., tuple[Local, list[str]]], monkeypatch: pytest.MonkeyPatch, pause_s: float
) -> None:
    monkeypatch.setattr(Dashboard, "deploy", lambda self, config: None)  # the application never goes away
    local, said = start()

    def interrupt(*facts: Any) -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        if pause_s:
            threading.Timer(pause_s, os.kill, (os.getpid(), signal.SIGINT)).start()
        else:
            os.kill(os.getpid(), signal.SIGINT)
        return "welcome"

    run(local, said.append, interrupt)
    assert said[-1] == "Stopped."
    assert gone(local)


def test_a_signal_while_starting_ends_the_start(
    start: Callable[..., tuple[Local, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Dashboard, "applications_now", {})
    local, said = start("import time; time.sleep(600)")
    threading.Timer(0.8, os.kill, (os.getpid(), signal.SIGINT)).start()
    run(local, said.append, lambda *facts: "welcome")
    assert "Stopped before it was ready." in said
    assert gone(local)


def test_a_keeper_that_is_killed_is_noticed(start: Callable[..., tuple[Local, list[str]]]) -> None:
    local, _ = start()
    local.start()
    assert local.keeper
    os.kill(local.keeper, signal.SIGKILL)
    with pytest.raises(InternalError, match="Ray ended by itself"):
        local.wait()
    local.kill()
    assert gone(local)


def test_the_script_before_haproxy_becomes_the_binary(tmp_path: Path) -> None:
    """Same pid, same arguments, a configuration that was changed: Serve looks for all three."""
    config = tmp_path / "haproxy.cfg"
    config.write_text("listen stats\n  bind *:8404\n")
    place = session.Session(tmp_path, None, "127.0.0.1", Path("/bin/echo"), "token")  # type: ignore[arg-type]
    session._write_haproxy_files(place)
    env = {"EASEL_HAPROXY_BINARY": "/bin/echo", "EASEL_HAPROXY_ERRORS": str(tmp_path)}
    command = [str(tmp_path / "haproxy.sh"), "-db", "-f", str(config), "-sf", "12"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"-db -f {config} -sf 12"
    assert "bind 127.0.0.1:8404" in config.read_text()

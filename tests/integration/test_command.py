"""The `easel serve` command as a user runs it, beside another session: starting, draining, stopping, being killed."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from easel.rayserve import processes, session
from easel.rayserve.local import Local
from easel.settings import ServeSettings
from tests.integration.conftest import PATIENCE_S, wait_until


class Command:
    """One `easel serve`, and what it printed."""

    def __init__(self, config: Path, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from easel.cli import main; main()", "serve", "--config", str(config), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
        )
        self.lines: list[str] = []
        self._pool = ThreadPoolExecutor(1)
        self._reader = self._pool.submit(self._read)

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(line)

    def find(self, pattern: str) -> str:
        """The first group of the first match in what it printed, once there is one."""

        def found() -> str | None:
            match = re.search(pattern, "".join(self.lines))
            if match is None and self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.returncode}:\n{''.join(self.lines)}")
            return match[1] if match else None

        return str(wait_until(found, pattern))

    def wait(self) -> int:
        code = self.process.wait(PATIENCE_S)
        self._reader.result(PATIENCE_S)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.result(PATIENCE_S)
        self._pool.shutdown()
        assert self.process.stdout
        self.process.stdout.close()


@pytest.fixture
def config(settings: ServeSettings, tmp_path: Path) -> Path:
    """The same as the shared session's, with an engine that takes its time: 0.5 s and more a canvas."""
    data = settings.model_dump(mode="json")
    data["app"]["models"]["default"]["engine"] |= {"fake_step_ms": 50}
    path = tmp_path / "easel.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def ask(url: str) -> httpx.Response:
    body = {"model": "easel", "prompt": "Hello", "max_tokens": 8}
    return httpx.post(url + "/v1/completions", json=body, timeout=PATIENCE_S, trust_env=False)


def stays_empty(folder: Path) -> bool:
    return not processes.members(str(folder), None)


@pytest.fixture
def commands() -> Iterator[list[Command]]:
    begun: list[Command] = []
    yield begun
    for command in begun:
        command.close()


def test_serves_drains_and_stops_twice_on_one_port_beside_another_session(
    local: Local, config: Path, commands: list[Command]
) -> None:
    port = session.free_ports(1, session._claimed(session._root()))[0]
    # First run: a request that runs when Ctrl-C comes is answered in full, then nothing is left.
    first = Command(config, "--port", str(port))
    commands.append(first)
    url = first.find(r"Listening on (\S+)\. ")
    assert url == f"http://127.0.0.1:{port}"
    folder = Path(first.find(r"cat (\S+)/token"))
    keeper = json.loads((folder / "session.json").read_text())["keeper"]
    assert len(processes.members(str(folder), keeper)) > 8
    body = {"model": "easel", "prompt": "Hello", "max_tokens": 500}
    with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=url, timeout=PATIENCE_S, trust_env=False) as http:
        request = http.build_request("POST", "/v1/completions", json={**body, "stream": True})
        stream = http.send(request, stream=True)
        first.process.send_signal(signal.SIGINT)
        rest = pool.submit(lambda: stream.read().decode())
        first.find("(Stopping)")
        assert rest.result(PATIENCE_S).rstrip().endswith("data: [DONE]")
    assert first.wait() == 0
    assert first.lines[-1] == "Stopped.\n"
    assert stays_empty(folder)
    assert not folder.exists()
    session.ensure_free("127.0.0.1", port, "port", "--port")

    # Second run, same port: killed outright, its keeper ends the rest.
    second = Command(config, "--port", str(port))
    commands.append(second)
    folder = Path(second.find(r"cat (\S+)/token"))
    assert ask(url).status_code == 200
    state = json.loads((folder / "session.json").read_text())
    second.process.kill()
    second.wait()
    wait_until(lambda: stays_empty(folder) and not psutil.pid_exists(state["keeper"]), "the keeper ended everything")
    session.ensure_free("127.0.0.1", port, "port", "--port")
    assert folder in session.sweep()
    assert not folder.exists()

    # The other session never noticed.
    assert ask(local.session.url).status_code == 200


def test_every_gpu_gets_an_engine_replica(
    config: Path, tmp_path: Path, commands: list[Command], environment: None
) -> None:
    """GPUs that are not there, for engines that need none: Ray plans with as many as it is told."""
    data = yaml.safe_load(config.read_text())
    data["deployments"]["engine"] |= {"gpus": 1, "cpus": 0.1}
    data["local"] |= {"every_gpu": True, "gpus": 3}
    path = tmp_path / "gpus.yaml"
    path.write_text(yaml.safe_dump(data))
    command = Command(path)
    commands.append(command)
    url = command.find(r"Listening on (\S+)\. ")
    assert "GPUs: 3, 1 for each engine. Replicas: 3 engine, 1 ingress.\n" in command.lines
    folder = Path(command.find(r"cat (\S+)/token"))

    def engines() -> int:
        own = {process.pid for process in processes.members(str(folder), None)}
        titles = [one.info["cmdline"] for one in psutil.process_iter(["cmdline"]) if one.pid in own]
        return sum(title[:1] == ["ray::ServeReplica:easel:engine"] for title in titles if title)

    wait_until(lambda: engines() == 3, "three engines run")
    assert ask(url).status_code == 200
    command.process.send_signal(signal.SIGINT)
    assert command.wait() == 0


def test_a_taken_port_is_said_before_anything_starts(local: Local, config: Path, commands: list[Command]) -> None:
    before = set(session._root().glob("*/*.json"))
    command = Command(config, "--port", str(local.session.ports.api))
    commands.append(command)
    assert command.wait() == 2
    assert f"port {local.session.ports.api} on 127.0.0.1 is taken" in command.lines[-1]
    assert set(session._root().glob("*/*.json")) <= before


def test_a_model_that_does_not_load_is_said_and_nothing_stays(config: Path, commands: list[Command]) -> None:
    """The checkpoint has no weights, which only the native engine misses."""
    data = yaml.safe_load(config.read_text())
    data["app"]["models"]["default"]["engine"]["kind"] = "native"
    config.write_text(yaml.safe_dump(data))
    command = Command(config, "--port", "0")
    commands.append(command)
    assert command.wait() == 1
    assert "The model did not start" in command.lines[-1]
    assert "ConfigurationError" in command.lines[-1]
    folder = Path(command.find(r"its logs are in (\S+)"))
    assert (folder / session.FAILED).exists()
    assert stays_empty(folder)

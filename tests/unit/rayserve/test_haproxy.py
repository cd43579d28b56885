"""The changes to Serve's configuration for HAProxy, made on what this version of Ray really writes."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from jinja2 import Environment
from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE

from easel.rayserve import session
from easel.rayserve.haproxy import tightened
from easel.settings import ServeSettings

BIND = re.compile(r"^\s*bind (\S+)", re.MULTILINE)


class Blank(SimpleNamespace):
    """Has every attribute; those not given are None."""

    def __getattr__(self, name: str) -> None:
        return None


@pytest.fixture
def written(tmp_path: Path) -> str:
    """Serve's template with no application yet."""
    config = Blank(
        log_target="/dev/null",
        socket_path=tmp_path / "admin.sock",
        maxconn=10,
        nbthread=1,
        bufsize=16384,
        retry_on="conn-failure",
        balance_algorithm="leastconn",
        metrics_uri="/metrics",
        metrics_port=21001,
        stats_port=21002,
        frontend_host="127.0.0.1",
        frontend_port=21003,
        stats_uri="/",
        error_file_path="/nowhere/500.http",
        timeout_client_s=5,
        timeout_connect_s=5,
        timeout_server_s=5,
    )
    route = SimpleNamespace(status=200, routes_content_type="text/plain", routes_message="ok")
    lists = {"backends": [], "backends_with_health_config": [], "grpc_backends": []}
    environment = Environment()
    environment.filters["haproxy_fmt"] = str  # only used for applications
    made = environment.from_string(HAPROXY_CONFIG_TEMPLATE).render(config=config, route_info=route, **lists)
    return str(made) + "\n"


@pytest.fixture
def errors(tmp_path: Path) -> Path:
    place = session.Session(tmp_path, None, "127.0.0.1", Path("/bin/true"), "token")  # type: ignore[arg-type]
    session._write_haproxy_files(place)
    return tmp_path


def test_requests_are_not_spliced(written: str, errors: Path) -> None:
    """Or HAProxy does not see a client leave: tests/integration/test_proxies.py has the whole of it."""
    assert "option splice-request" in written
    made = tightened(written, None, str(errors))
    assert "splice-request" not in made
    assert "option abortonclose" in made


def test_everything_moves_to_loopback(written: str, errors: Path) -> None:
    assert {":21001", "*:21002", "127.0.0.1:21003"} == set(BIND.findall(written))
    made = tightened(written, None, str(errors))
    assert {"127.0.0.1:21001", "127.0.0.1:21002", "127.0.0.1:21003"} == set(BIND.findall(made))


def test_only_the_apis_port_goes_elsewhere(written: str, errors: Path) -> None:
    made = tightened(written, "0.0.0.0:21003", str(errors))
    assert {"127.0.0.1:21001", "127.0.0.1:21002", "0.0.0.0:21003"} == set(BIND.findall(made))


def test_its_own_answers_are_ours(written: str, errors: Path) -> None:
    made = tightened(written, None, str(errors))
    assert "not found. Ping" in written
    assert "not found. Ping" not in made
    assert f"errorfile 502 {errors}/500.http" in made
    assert f"errorfile 503 {errors}/503.http" in made
    assert "text/plain" not in made.split("backend default_backend")[1].split("\n")[1]


def test_haproxy_accepts_it(written: str, errors: Path) -> None:
    binary = session.find_haproxy(ServeSettings())
    if binary is None:
        pytest.skip("no HAProxy for this platform")
    path = errors / "haproxy.cfg"
    path.write_text(tightened(written, None, str(errors)))
    done = subprocess.run([binary, "-c", "-f", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_twice_is_as_once(written: str, errors: Path) -> None:
    once = tightened(written, None, str(errors))
    assert tightened(once, None, str(errors)) == once


def test_the_kernel_keeps_little_of_what_nobody_reads(written: str, errors: Path) -> None:
    made = tightened(written, None, str(errors))
    section = made.split("defaults")[0]
    assert section.startswith("global\n")
    assert "tune.sndbuf.client 65536" in section
    assert "tune.rcvbuf.server 65536" in section

"""Ports, folders and the environment of a session; what is refused before anything starts."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from easel.errors import ConfigurationError
from easel.rayserve import session
from easel.settings import ServeSettings, parse


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sessions of these tests lie apart from those that run on this machine."""
    place = tmp_path / "sessions"
    place.mkdir(mode=0o700)
    monkeypatch.setattr(session, "_root", lambda: place)
    return place


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def local(**settings: object) -> ServeSettings:
    api = {"open_to_all": True}  # some of them listen beyond loopback
    return parse({"app": {"api": api}, "local": {"port": 0, "dashboard_port": 0, **settings}})


def test_two_sessions_share_no_port_and_no_folder() -> None:
    made = [session.create(local()) for _ in range(4)]
    ports = []
    for one in made:
        ports += [getattr(one.ports, name) for name in session.Ports.__dataclass_fields__ if name != "replicas"]
        ports += range(one.ports.replicas, one.ports.replicas + session.REPLICA_PORTS)
    assert len(ports) == len(set(ports))
    assert len({one.folder for one in made}) == 4
    assert len({one.token for one in made}) == 4


def test_a_taken_port_is_refused_with_the_way_out(taken: int, root: Path) -> None:
    with pytest.raises(ConfigurationError, match=rf"port {taken} on 127\.0\.0\.1 is taken; .*--port") as raised:
        session.create(local(port=taken))
    assert raised.value.param == "local.port"
    assert not list(root.glob("*/"))


def test_what_is_refused_holds_no_ports(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "find_spec", lambda name: None)
    monkeypatch.setattr(session.shutil, "which", lambda name: None)
    with pytest.raises(ConfigurationError, match="no haproxy on this machine") as raised:
        session.create(local(proxy="haproxy"))
    assert raised.value.param == "local.proxy"
    assert not list(root.glob("*/"))


def test_a_port_that_another_session_is_about_to_bind_is_taken() -> None:
    first = session.create(local())
    with pytest.raises(ConfigurationError, match="is taken"):
        session.create(local(port=first.ports.api))


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="cannot be used"):
        session.create(local(host="192.0.2.77", port=8000))


def test_a_taken_dashboard_port_moves_the_dashboard(taken: int) -> None:
    assert session.create(local(dashboard_port=taken)).ports.dashboard != taken


def test_the_token_is_for_its_owner_alone_and_not_in_what_is_printed() -> None:
    made = session.create(local())
    assert made.token_file.read_text() == made.token
    assert made.token_file.stat().st_mode & 0o077 == 0
    assert made.folder.stat().st_mode & 0o077 == 0
    assert made.token not in repr(made)
    assert made.token not in " ".join([*made.environment().values(), *made.command(local())])


def test_the_environment_is_closed_and_carries_the_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    made = session.create(local())
    env = made.environment()
    assert "RAY_ADDRESS" not in env
    assert env["EASEL_SESSION"] == str(made.folder)
    assert env["RAY_AUTH_MODE"] == "token"
    assert env["RAY_USAGE_STATS_ENABLED"] == "0"


def test_the_switch_that_keeps_ray_on_loopback_is_still_there() -> None:
    """Without it Ray listens on every interface of a Linux machine, and nobody would notice."""
    from ray._private import ray_constants, services

    assert ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR == "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
    assert session.create(local()).environment()[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] == "0"
    assert services.get_localhost_ip() == "127.0.0.1"


def test_socket_paths_stay_short() -> None:
    """Ray puts Unix sockets into its temporary folder; a path may have 107 characters."""
    longest = "/tmp/easel-4294967295/abcdef/ray/session_2026-12-31_23-59-59_999999_4194304/sockets/plasma_store"
    haproxy = f"/tmp/easel-4294967295/abcdef/haproxy/{'f' * 56}/metrics.sock"
    assert max(len(longest), len(haproxy)) < 107


def test_serves_own_proxy_gets_the_host_and_haproxy_keeps_replicas_on_loopback() -> None:
    own = session.create(local(proxy="serve", host="0.0.0.0"))
    assert (own.haproxy, own.proxy_host) == (None, "0.0.0.0")
    assert "RAY_SERVE_ENABLE_HA_PROXY" not in own.environment()
    fronted = session.create(local(host="0.0.0.0"))
    if fronted.haproxy is None:
        pytest.skip("no HAProxy for this platform")
    assert fronted.proxy_host == "127.0.0.1"
    assert fronted.environment()["EASEL_HAPROXY_FRONTEND"] == f"0.0.0.0:{fronted.ports.api}"
    assert fronted.url == f"http://127.0.0.1:{fronted.ports.api}"


def test_where_the_api_is_reached_is_an_address_for_ipv6_too() -> None:
    one = session.create(local())
    for host, there in (("::", "[::1]"), ("::1", "[::1]"), ("[::1]", "[::1]"), ("localhost", "localhost")):
        assert replace(one, host=host).url == f"http://{there}:{one.ports.api}"


def test_sweeps_what_is_dead_and_leaves_what_lives(root: Path) -> None:
    dead, failed, alive = (session.create(local()) for _ in range(3))
    for one in (dead, failed, alive):
        session.record(one, os.getpid())
    for one in (dead, failed):
        state = json.loads((one.folder / "session.json").read_text())
        (one.folder / "session.json").write_text(json.dumps(state | {"keeper_started": state["keeper_started"] - 1}))
    (failed.folder / session.FAILED).touch()
    assert session.sweep() == [dead.folder]
    assert not dead.folder.exists()
    assert failed.folder.exists()
    assert alive.folder.exists()


def test_sweeps_what_never_had_a_keeper_once_it_is_old() -> None:
    """Its ports would be taken for ever."""
    port = session.free_ports(1)[0]
    killed, fresh = session.create(local(port=port)), session.create(local())
    long_ago = time.time() - session.BEGUN_WITHIN_S - 1
    os.utime(killed.folder, (long_ago, long_ago))
    assert session.sweep() == [killed.folder]
    assert fresh.folder.exists()
    assert session.create(local(port=port)).ports.api == port


def test_cores_are_those_of_the_machine_or_what_replicas_ask_for() -> None:
    many = parse({"deployments": {"engine": {"replicas": 3, "cpus": 100.0}}})
    assert session.cpus(many) == 301
    assert session.cpus(parse({"local": {"cpus": 7}})) == 7
    scaled = {"cpus": 100.0, "autoscaling": {"min_replicas": 0, "max_replicas": 4}}
    assert session.cpus(parse({"deployments": {"engine": scaled}})) == 401


@pytest.mark.parametrize(("gpus", "options"), [(None, []), (0, ["--num-gpus=0"]), (8, ["--num-gpus=8"])])
def test_gpus_are_counted_by_ray_or_as_the_settings_say(root: Path, gpus: int | None, options: list[str]) -> None:
    settings = parse({"local": {"port": 0, "dashboard_port": 0, "gpus": gpus}})
    command = session.create(settings).command(settings)
    assert [option for option in command if option.startswith("--num-gpus")] == options

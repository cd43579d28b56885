"""What happens when processes die, hang or are replaced while requests run: nothing hangs, and service comes back."""

from __future__ import annotations

import contextlib
import ipaddress
import json
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import psutil

from easel.rayserve import processes
from easel.rayserve.local import Local
from tests.integration.conftest import APPLICATIONS, busy_slots, replica_of, wait_until
from tests.integration.script import SLOTS

QUICK = {"model": "easel", "prompt": "quick", "max_tokens": 8}
LONG = {"model": "easel", "prompt": "slow", "max_tokens": 4000}


def ask(local: Local, body: dict[str, object], path: str = "") -> httpx.Response:
    return httpx.post(f"{local.session.url}{path}/v1/completions", json=body, timeout=60, trust_env=False)


def begin(local: Local, pool: ThreadPoolExecutor, body: dict[str, object], path: str = "") -> Future[str]:
    """Start a stream; the future has what came after its head, which is in hand on return."""
    client = httpx.Client(base_url=local.session.url + path, timeout=60, trust_env=False)
    request = client.build_request("POST", "/v1/completions", json={**body, "stream": True})
    response = client.send(request, stream=True)
    assert response.status_code == 200

    def rest() -> str:
        try:
            return response.read().decode()
        finally:
            client.close()

    return pool.submit(rest)


def last_error(stream: str) -> dict[str, str]:
    assert "[DONE]" not in stream
    found: dict[str, str] = json.loads(stream.strip().split("\n\n")[-1].removeprefix("data: "))["error"]
    return found


def test_requests_end_with_an_error_and_service_returns_when_the_engines_process_is_killed(local: Local) -> None:
    with ThreadPoolExecutor(32) as pool:
        streams = [begin(local, pool, LONG) for _ in range(SLOTS - 1)]
        whole = pool.submit(ask, local, LONG)
        replica = replica_of(local, "engine")
        busy = busy_slots(local)
        wait_until(lambda: busy() == SLOTS, "every slot is taken")
        replica.kill()
        meanwhile = [pool.submit(ask, local, QUICK) for _ in range(8)]
        for stream in streams:
            error = last_error(stream.result(60))
            assert (error["code"], error["type"]) == ("engine_failed", "server_error")
            assert "Traceback" not in error["message"]
        assert whole.result(60).status_code == 500
        assert whole.result().json()["error"]["code"] == "engine_failed"
        for answer in meanwhile:
            assert answer.result(60).status_code == 200, answer.result().text
    assert replica_of(local, "engine").pid != replica.pid
    assert ask(local, QUICK).status_code == 200


def test_an_engine_whose_loop_is_stuck_is_replaced(local: Local) -> None:
    config = local.config(APPLICATIONS + "build")
    freezing = local.config(APPLICATIONS + "build_freezing")["applications"][0] | {
        "name": "freezing",
        "route_prefix": "/freezing",
    }
    for deployment in freezing["deployments"]:
        deployment["ray_actor_options"] = {"num_cpus": 0}
    try:
        local.dashboard.deploy(config | {"applications": [*config["applications"], freezing]})
        wait_until(lambda: ask(local, QUICK, "/freezing").status_code == 200, "the second application answers")
        stuck = replica_of(local, "engine", "freezing")
        with ThreadPoolExecutor(4) as pool:
            stream = begin(local, pool, {**LONG, "prompt": "freeze"}, "/freezing")
            assert last_error(stream.result(60))["code"] == "engine_failed"
        wait_until(lambda: ask(local, QUICK, "/freezing").status_code == 200, "it answers again")
        assert replica_of(local, "engine", "freezing").pid != stuck.pid
    finally:
        local.dashboard.deploy(config)


def test_every_answer_has_openais_shape_while_the_ingress_is_away(local: Local) -> None:
    replica = replica_of(local, "ingress")
    replica.kill()

    def answers_again() -> bool:
        try:
            answer = ask(local, QUICK)
        except httpx.TransportError:
            return False
        if answer.status_code != 200:
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        return answer.status_code == 200

    wait_until(answers_again, "the ingress is back")
    wait_until(lambda: replica_of(local, "ingress").pid != replica.pid, "a new ingress replica runs")


def test_nothing_listens_beyond_loopback(local: Local) -> None:
    addresses = set()
    for process in processes.members(local.session.mark, local.keeper):
        with contextlib.suppress(psutil.NoSuchProcess):
            for connection in process.net_connections("inet"):
                # CONN_NONE: UDP, where whoever is bound listens.
                if connection.status in (psutil.CONN_LISTEN, psutil.CONN_NONE) and connection.laddr:
                    addresses.add((connection.laddr.ip, process.name()))
    assert len(addresses) > 5
    for address, name in addresses:
        ip = ipaddress.ip_address(address)
        mapped = getattr(ip, "ipv4_mapped", None)
        assert (mapped or ip).is_loopback, f"{name} listens on {address}"


def test_nobody_without_the_token_talks_to_ray(local: Local) -> None:
    url = f"http://127.0.0.1:{local.session.ports.dashboard}/api/serve/applications/"
    assert httpx.get(url, trust_env=False).status_code in (401, 403)
    assert httpx.put(url, json={"applications": []}, trust_env=False).status_code in (401, 403)
    assert local.session.token_file.stat().st_mode & 0o077 == 0

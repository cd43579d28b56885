"""What happens when processes die, hang or are replaced while requests run: nothing hangs, and service comes back."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil

from easel.rayserve import processes
from easel.rayserve.local import Local
from tests.integration.conftest import APPLICATIONS, PATIENCE_S, let_go, replica_of, wait_until

QUICK = {"model": "easel", "prompt": "quick", "max_tokens": 8}
LONG = {"model": "easel", "prompt": "slow", "max_tokens": 4000}


def ask(local: Local, body: dict[str, object], path: str = "") -> httpx.Response:
    return httpx.post(f"{local.session.url}{path}/v1/completions", json=body, timeout=PATIENCE_S, trust_env=False)


class Begun:
    """A stream whose head is in hand."""

    def __init__(self, client: httpx.Client, response: httpx.Response, pool: ThreadPoolExecutor) -> None:
        self.first_canvas = threading.Event()
        self._client = client
        self._response = response
        self.rest = pool.submit(self._read)

    def _read(self) -> str:
        text = ""
        try:
            for part in self._response.iter_text():
                text += part
                if "data: " in text:
                    self.first_canvas.set()
        finally:
            self._client.close()
        return text


def begin(local: Local, pool: ThreadPoolExecutor, body: dict[str, object], path: str = "") -> Begun:
    """Start a stream."""
    client = httpx.Client(base_url=local.session.url + path, timeout=PATIENCE_S, trust_env=False)
    request = client.build_request("POST", "/v1/completions", json={**body, "stream": True})
    response = client.send(request, stream=True)
    assert response.status_code == 200
    return Begun(client, response, pool)


def last_error(stream: str) -> dict[str, str]:
    assert "[DONE]" not in stream
    found: dict[str, str] = json.loads(stream.strip().split("\n\n")[-1].removeprefix("data: "))["error"]
    return found


def test_a_killed_engine_ends_what_had_begun_and_nobody_else_notices(local: Local, tmp_path: Path) -> None:
    never, go = tmp_path / "never", tmp_path / "go"
    with ThreadPoolExecutor(32) as pool, let_go(never, go):
        # Two have a canvas when the process dies; two more have a slot and nothing of their answer.
        begun = [begin(local, pool, {**LONG, "prompt": f"hold {never} {i}"}) for i in range(2)]
        for stream in begun:
            assert stream.first_canvas.wait(PATIENCE_S)
        held = [begin(local, pool, {**LONG, "prompt": f"hold 0 {go} {i}", "max_tokens": 300}) for i in range(2)]
        replica = replica_of(local, "engine")
        replica.kill()
        go.touch()
        meanwhile = [pool.submit(ask, local, QUICK) for _ in range(8)]
        for stream in begun:
            error = last_error(stream.rest.result(PATIENCE_S))
            assert (error["code"], error["type"]) == ("engine_failed", "server_error")
            assert "Traceback" not in error["message"]
        for stream in held:
            assert stream.rest.result(PATIENCE_S).rstrip().endswith("data: [DONE]")
        for answer in meanwhile:
            assert answer.result(PATIENCE_S).status_code == 200, answer.result().text
    assert replica_of(local, "engine").pid != replica.pid
    assert ask(local, QUICK).status_code == 200


def test_a_request_that_kills_every_engine_is_quarantined_and_its_neighbours_are_answered(local: Local) -> None:
    """The process ends by itself this time, told so by the prompt."""
    with ThreadPoolExecutor(8) as pool:
        neighbours = [pool.submit(ask, local, {**LONG, "prompt": f"slow {i}", "max_tokens": 200}) for i in range(2)]
        poisoned = ask(local, {**QUICK, "prompt": "die"})
        assert poisoned.status_code == 500
        assert poisoned.json()["error"]["code"] == "request_quarantined"
        assert poisoned.headers["x-should-retry"] == "false"
        for neighbour in neighbours:
            assert neighbour.result(PATIENCE_S).status_code == 200, neighbour.result().text
    replica = replica_of(local, "engine")
    assert ask(local, {**QUICK, "prompt": "die"}).json()["error"]["code"] == "request_quarantined"
    assert ask(local, QUICK).status_code == 200
    assert replica_of(local, "engine").pid == replica.pid, "the third time no engine was touched"


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
            # It froze the first engine, was tried on the next, and froze that too.
            assert last_error(stream.rest.result(PATIENCE_S))["code"] == "request_quarantined"
        wait_until(lambda: ask(local, QUICK, "/freezing").status_code == 200, "it answers again")
        assert replica_of(local, "engine", "freezing").pid != stuck.pid
    finally:
        local.dashboard.deploy(config)


def test_every_answer_has_openais_shape_while_the_ingress_is_away(local: Local) -> None:
    replica = replica_of(local, "ingress")
    replica.kill()

    def answers_again() -> bool:
        answer = ask(local, QUICK)
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
    assert httpx.get(url, timeout=PATIENCE_S, trust_env=False).status_code in (401, 403)
    answer = httpx.put(url, json={"applications": []}, timeout=PATIENCE_S, trust_env=False)
    assert answer.status_code in (401, 403)
    assert local.session.token_file.stat().st_mode & 0o077 == 0

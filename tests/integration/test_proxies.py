"""nginx, HAProxy and Envoy before a real Easel, as docs/proxies.md shows them: streams, silence, TLS, leaving clients.

The engine holds the second canvas of a prompt `hold FILE` back until that file is there, so that what arrives when is
a matter of order and not of speed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from easel.rayserve.local import Local
from tests.integration import proxies
from tests.integration.conftest import PATIENCE_S, busy_slots, let_go, wait_until
from tests.integration.proxies import Certificates, Proxy
from tests.integration.test_slow_readers import haproxy_sends_to_the_ingress

KINDS = ("nginx", "haproxy", "envoy")
SILENCE_S = 17.0
"""Longer than Envoy's own limit (15 s), and than a heartbeat."""
SHORT: dict[str, dict[str, str]] = {
    "nginx": {"proxy_read_timeout 660s": "proxy_read_timeout 2s"},
    "haproxy": {"timeout server 660s": "timeout server 2s"},
    "envoy": {"                            timeout: 0s\n": ""},
}
"""What cuts an answer short: a timeout below the silence; Envoy's own is, where nothing is set."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def before(
    local: Local, certificates: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Proxy]]:
    """A proxy of each kind that this machine has."""
    folder = tmp_path_factory.mktemp("proxies")
    if local.session.haproxy is not None:
        wait_until(lambda: haproxy_sends_to_the_ingress(local), "HAProxy sends to the ingress replica")
    with contextlib.ExitStack() as stack:
        made = {
            kind: stack.enter_context(proxies.running(kind, folder / kind, local.session.ports.api, certificates))
            for kind in KINDS
            if proxies.binary(kind)
        }
        for kind, proxy in made.items():  # HAProxy checks what is behind it before it sends anything there
            wait_until(lambda url=proxy.url: _status(url, certificates) == 200, f"{kind} answers")  # type: ignore[misc]
        yield made


@pytest.fixture(params=KINDS)
def proxy(request: pytest.FixtureRequest, before: dict[str, Proxy]) -> Proxy:
    return _there(request.param, before)


def _there(kind: str, before: dict[str, Proxy]) -> Proxy:
    if kind not in before:
        pytest.skip(f"no {kind} on this machine")
    return before[kind]


def _status(url: str, certificates: Certificates) -> int:
    with contextlib.suppress(httpx.HTTPError), client(url, certificates) as http:
        return http.get("/readyz").status_code
    return 0


def client(url: str, certificates: Certificates) -> httpx.Client:
    return httpx.Client(base_url=url, verify=certificates.client, timeout=PATIENCE_S, trust_env=False)


def body(held: Path, stream: bool) -> dict[str, Any]:
    return {"model": "easel", "prompt": f"hold {held}", "max_tokens": 300, "stream": stream, "seed": 3}


def test_a_canvas_arrives_while_the_next_is_still_being_denoised(
    proxy: Proxy, certificates: Certificates, tmp_path: Path
) -> None:
    held = tmp_path / "go"
    with (
        client(proxy.url, certificates) as http,
        http.stream("POST", "/v1/completions", json=body(held, True)) as answer,
    ):
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        first = next(lines)
        assert first.startswith("data: {")
        held.touch()  # only now is there a second canvas
        rest = [line for line in lines if line]
    assert len([line for line in rest if '"text"' in line]) >= 1
    assert rest[-1] == "data: [DONE]"


def test_a_client_that_leaves_is_noticed_by_the_engine(
    proxy: Proxy, certificates: Certificates, tmp_path: Path
) -> None:
    held = tmp_path / "never"
    with client(proxy.url, certificates) as http:
        with http.stream("POST", "/v1/completions", json=body(held, True)) as answer:
            assert next(answer.iter_lines()).startswith("data: {")
        wait_until(Path(f"{held}.left").exists, "the engine hears of it")


async def test_a_client_that_stops_waiting_for_a_whole_answer_is_noticed_too(
    proxy: Proxy, certificates: Certificates, tmp_path: Path, local: Local
) -> None:
    held = tmp_path / "never"
    busy = busy_slots(local)
    wait_until(lambda: busy() == 0, "the engine has nothing to do")
    async with httpx.AsyncClient(base_url=proxy.url, verify=certificates.client, timeout=None, trust_env=False) as http:
        asked = asyncio.create_task(http.post("/v1/completions", json=body(held, False)))
        await asyncio.to_thread(wait_until, lambda: busy() == 1, "it has a slot")
        assert not asked.done()
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        await asyncio.to_thread(wait_until, Path(f"{held}.left").exists, "the engine hears of it")


def test_errors_keep_easels_words(proxy: Proxy, certificates: Certificates, local: Local) -> None:
    asked = {"model": "other", "prompt": "x"}
    with client(proxy.url, certificates) as http:
        answer = http.post("/v1/completions", json=asked, headers={"x-request-id": "mine-9"})
        health = http.get("/healthz")
    direct = httpx.post(local.session.url + "/v1/completions", json=asked, trust_env=False)
    assert (answer.status_code, answer.json()) == (404, direct.json())
    assert answer.headers["x-request-id"] == "mine-9"
    assert health.status_code == 200


def test_silence_passes_as_the_page_says_and_is_cut_where_it_is_not_heeded(
    local: Local, before: dict[str, Proxy], certificates: Certificates, tmp_path: Path
) -> None:
    """All at once: for each kind a whole answer through the page's configuration, and one through a configuration that
    is short of time."""
    if not before:
        pytest.skip("no proxy on this machine")
    go, busy = tmp_path / "go", busy_slots(local)

    def ask(url: str) -> httpx.Response:
        with client(url, certificates) as http:
            return http.post("/v1/completions", json=body(go, False))

    with contextlib.ExitStack() as stack:
        port = local.session.ports.api
        short = {
            kind: stack.enter_context(proxies.running(kind, tmp_path / kind, port, certificates, SHORT[kind]))
            for kind in before
        }
        for kind, proxy in short.items():
            wait_until(lambda url=proxy.url: _status(url, certificates) == 200, f"{kind} answers")  # type: ignore[misc]
        pool = stack.enter_context(ThreadPoolExecutor(2 * len(KINDS)))
        stack.enter_context(let_go(go))
        wait_until(lambda: busy() == 0, "the engine has nothing to do")
        wanted = {kind: pool.submit(ask, proxy.url) for kind, proxy in before.items()}
        wait_until(lambda: busy() == len(wanted), "all of them have a slot")
        silent_since = time.monotonic()
        cut = {kind: pool.submit(ask, proxy.url) for kind, proxy in short.items()}
        stopped = {kind: future.result() for kind, future in cut.items()}
        time.sleep(max(0.0, silent_since + SILENCE_S - time.monotonic()))
        assert not any(future.done() for future in wanted.values())
        go.touch()
        answers = {kind: future.result() for kind, future in wanted.items()}
    assert {kind: answer.status_code for kind, answer in stopped.items()} == dict.fromkeys(before, 504)
    for kind, answer in answers.items():
        assert answer.status_code == 200, kind
        assert len(answer.json()["choices"][0]["text"]) == 300, kind

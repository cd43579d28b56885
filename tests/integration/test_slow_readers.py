"""A reader that does not read, through HAProxy and Serve: it skips states, no canvas, and holds nobody up."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from easel.rayserve import processes
from easel.rayserve.local import Local
from easel.rayserve.session import REPLICA_PORTS
from tests.integration.conftest import PATIENCE_S, busy_slots, let_go, wait_until
from tests.unit.api.edge import Stream
from tests.unit.api.replay import replays

CANVASES = 12


def body(held: Path) -> dict[str, Any]:
    """Asks for three long answers, each of which stops after its first canvas until that file is there."""
    options = {"include_progress": True, "progress_hz": 30}
    asked = {"model": "easel", "prompt": f"slow hold {held}", "max_tokens": 3000, "n": 3, "seed": 5}
    return asked | {"stream": True, "stream_options": options}


def haproxy_sends_to_the_ingress(local: Local) -> bool:
    """Right after a start it still sends to Serve's proxy."""
    ports = range(local.session.ports.replicas, local.session.ports.replicas + REPLICA_PORTS)
    for process in processes.members(local.session.mark, local.keeper):
        with contextlib.suppress(psutil.Error, OSError):  # it may end while it is looked at
            command = process.cmdline()
            if "-f" in command and "haproxy" in process.name():
                config = Path(command[command.index("-f") + 1]).read_text()
                return any(f"127.0.0.1:{port} " in config for port in ports)
    return False


def memory(local: Local) -> int:
    """Bytes that the processes between engine and client hold."""
    total = 0
    for process in processes.members(local.session.mark, local.keeper):
        with contextlib.suppress(psutil.Error):  # it may end while it is looked at
            name = (process.cmdline() or [""])[0]
            if name.endswith((":ingress", "ray::ProxyActor")) or "haproxy" in process.name():
                total += process.memory_info().rss
    return total


@contextlib.contextmanager
def sleeper(local: Local, held: Path) -> Iterator[socket.socket]:
    """A client that has asked, and whose kernel takes 4 KB for it. Gone at the end."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(PATIENCE_S)
        connection.connect(("127.0.0.1", local.session.ports.api))
        raw = json.dumps(body(held)).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(raw)
        connection.sendall(head + raw)
        yield connection


def rest(connection: socket.socket) -> Stream:
    raw = b""
    while part := connection.recv(1 << 16):
        raw += part
    head, _, chunks = raw.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    body = b""
    while chunks:
        size, _, chunks = chunks.partition(b"\r\n")
        body, chunks = body + chunks[: int(size, 16)], chunks[int(size, 16) + 2 :]
    return Stream.of(body.decode())


def test_a_reader_that_does_not_read_skips_states_and_no_canvas(local: Local, tmp_path: Path) -> None:
    if local.session.haproxy is None:
        pytest.skip("Serve's own proxy reads ahead without a bound: docs/api.md")
    wait_until(lambda: haproxy_sends_to_the_ingress(local), "HAProxy sends to the ingress replica")
    url, go, later = local.session.url + "/v1/completions", tmp_path / "go", tmp_path / "later"
    busy = busy_slots(local)
    go.touch()
    # The first stream of a service costs memory that later ones find there: 21 MB, measured.
    awake = Stream.of(httpx.post(url, json=body(go), timeout=PATIENCE_S, trust_env=False).text)
    wait_until(lambda: busy() == 0, "the engine has nothing to do")
    before = memory(local)
    with sleeper(local, later) as asleep, let_go(later):
        wait_until(lambda: busy() == 3, "its choices run")
        later.touch()
        # Another client is served meanwhile, and the engine goes on to the end of what nobody reads.
        quick = {"model": "easel", "prompt": "quick", "max_tokens": 8}
        assert httpx.post(url, json=quick, timeout=PATIENCE_S, trust_env=False).status_code == 200
        wait_until(lambda: busy() == 0, "the engine is through")
        assert memory(local) - before < 16 * 1024 * 1024
        slow = rest(asleep)
    assert slow.done
    assert awake.done
    told = {}
    for name, stream in (("slow", slow), ("awake", awake)):
        found = replays(stream.events)
        assert [replay.committed for replay in found.values()] == [CANVASES] * 3
        assert all(replay.text() == stream.text(index) == awake.text(index) for index, replay in found.items())
        told[name] = sum(replay.states for replay in found.values())
    assert told["slow"] < 0.7 * told["awake"]


def test_a_reader_that_leaves_without_reading_frees_its_slots(local: Local, tmp_path: Path) -> None:
    never = tmp_path / "never"
    busy = busy_slots(local)
    wait_until(lambda: busy() == 0, "the engine has nothing to do")
    with let_go(never):
        with sleeper(local, never):
            wait_until(lambda: busy() == 3, "its choices run")
        wait_until(lambda: busy() == 0, "its slots are free")

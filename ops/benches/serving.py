"""What the benches of the service share: a local session around fake engines, and a light HTTP client.

The fake engine takes a set time for a step, and 10 to 48 steps a canvas as published. Clients, HAProxy, ingress, Ray
and engines share the machine's cores, so figures of different runs cannot be compared: ratios within a run can.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

from streams import percentile as percentile  # noqa: E402

from easel.rayserve import processes  # noqa: E402
from easel.rayserve.local import Local  # noqa: E402
from easel.rayserve.session import REPLICA_PORTS  # noqa: E402
from easel.settings import parse  # noqa: E402
from tests.integration.checkpoint import write_checkpoint  # noqa: E402

MACHINE = f"{os.cpu_count()} shared cores, {platform.machine()}, {platform.system()}; clients on the same cores"


@contextmanager
def serving(
    engine: dict[str, Any],
    deployment: dict[str, Any],
    app: dict[str, Any],
    build: str | None = None,
    checkpoint: str | None = None,
    ingress: dict[str, Any] | None = None,
    local: dict[str, Any] | None = None,
) -> Iterator[Local]:
    """A session that serves; everything it started has ended afterwards. Without a `checkpoint` its engine is a fake
    one."""
    paths = [str(ROOT), str(ROOT / "platform"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path for path in paths if path))
    with tempfile.TemporaryDirectory() as folder:
        slots = engine["slots"]
        if checkpoint is None:
            checkpoint, engine = str(write_checkpoint(Path(folder) / "fake")), {"kind": "fake", **engine}
        model = {"checkpoint": checkpoint, "engine": engine}
        settings = parse(
            {
                "app": {"models": {"default": model}, **app},
                "deployments": {
                    "engine": {
                        "max_ongoing_requests": slots + 2,
                        "cpus": 0.1,
                        "health_check_period_s": 1.0,
                        **deployment,
                    },
                    "ingress": {"cpus": 0.1, **(ingress or {})},
                },
                "local": {"port": 0, "dashboard_port": 0, **(local or {})},
            }
        )
        started = Local(settings, lambda line: print(line, file=sys.stderr, flush=True))
        started.start(*([build] if build else []))
        try:
            wait_for_ingress(started)
            yield started
        finally:
            started.kill()


def wait_for_ingress(local: Local) -> None:
    """Right after the start HAProxy still sends to Serve's own proxy, which is slower."""
    if local.session.haproxy is None:
        return
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for process in processes.members(local.session.mark, local.keeper):
            command = process.cmdline()
            if "-f" in command and "haproxy" in process.name():
                config = Path(command[command.index("-f") + 1]).read_text()
                if any(f"127.0.0.1:{local.session.ports.replicas + i} " in config for i in range(REPLICA_PORTS)):
                    return
        time.sleep(0.1)
    raise SystemExit("HAProxy never sent to the ingress replica")


@dataclass
class Answer:
    """One request as its client saw it. Seconds."""

    status: int
    began: float
    first_s: float
    seconds: float
    canvases: list[float]
    """When each part of a stream came, since the request was sent."""
    body: bytes
    retry_after_s: float | None

    @property
    def ok(self) -> bool:
        return self.status == 200 and b'"error"' not in self.body


class Client:
    """One keep-alive connection. `prefix`: of the application's routes."""

    def __init__(self, port: int, prefix: str = "") -> None:
        self._port = port
        self._prefix = prefix.encode()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, body: dict[str, Any]) -> Answer:
        """Status 0: the connection broke."""
        began = time.perf_counter()
        try:
            return await self._post(json.dumps(body).encode(), began)
        except (OSError, asyncio.IncompleteReadError, ValueError):
            self.close()
            return Answer(0, began, 0.0, time.perf_counter() - began, [], b"", None)

    async def _post(self, raw: bytes, began: float) -> Answer:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 20)
        reader, writer = self._streams
        head = b"POST %s/v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (self._prefix, len(raw))
        writer.write(head + raw)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        first = time.perf_counter() - began
        headers = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
        body, times = b"", []
        if "content-length" in headers:
            body = await reader.readexactly(int(headers["content-length"]))
        else:
            while size := int(await reader.readuntil(b"\r\n"), 16):
                part = (await reader.readexactly(size + 2))[:-2]
                if b'"text"' in part:
                    times.append(time.perf_counter() - began)
                body += part
            await reader.readexactly(2)
        retry = headers.get("retry-after-ms")
        status = int(lines[0].split()[1])
        seconds = time.perf_counter() - began
        return Answer(status, began, first, seconds, times, body, float(retry) / 1000 if retry else None)

    def close(self) -> None:
        """Let the connection go."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def closed_loop(port: int, clients: int, seconds: float, body: Any, prefix: str = "") -> list[Answer]:
    """So many clients, each asking again when it has its answer. `body(i)` makes the i-th request."""
    until, answers, count = time.perf_counter() + seconds, [], 0

    async def one() -> None:
        nonlocal count
        client = Client(port, prefix)
        while time.perf_counter() < until:
            count += 1
            answers.append(await client.post(body(count)))
        client.close()

    await asyncio.gather(*(one() for _ in range(clients)))
    return answers


async def open_loop(port: int, per_s: float, seconds: float, body: Any, seed: int = 0) -> list[Answer]:
    """Arrivals at random (Poisson), whoever is still waiting. Returns when all are answered."""
    from random import Random

    random, idle, tasks = Random(seed), [], []
    loop = asyncio.get_running_loop()

    async def one(number: int) -> Answer:
        client = idle.pop() if idle else Client(port)
        answer = await client.post(body(number))
        idle.append(client)
        return answer

    at, until, number = loop.time(), loop.time() + seconds, 0
    while at < until:
        await asyncio.sleep(max(0.0, at - loop.time()))
        number += 1
        tasks.append(asyncio.create_task(one(number)))
        at += random.expovariate(per_s)
    answers = await asyncio.gather(*tasks)
    for client in idle:
        client.close()
    return answers

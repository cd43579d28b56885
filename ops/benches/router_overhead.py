"""What HAProxy, ingress, router and Serve add to a request and to each canvas of a stream, against bare uvicorn.

    .venv/bin/python ops/benches/router_overhead.py > ops/benches/results/2026-11-24-router-overhead.json

`bare` is the same API around the same fake engine in one process behind uvicorn; `served` is the whole service with one
ingress and one engine replica. Both run at the same time and are asked in turns, so what else the machine does meets
both. The fake engine's steps take 1 ms and its canvases one step, so that what is left is the way there and back.
`requests_per_s` is with 32 clients on the same two cores.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from record import head
from serving import MACHINE, ROOT, Client, closed_loop, percentile, serving

SLOTS, ROUNDS, CANVASES = 64, 9, 8


def body(number: int, stream: bool = False) -> dict[str, object]:
    tokens = 256 * CANVASES if stream else 8
    return {"model": "easel", "prompt": f"request {number}", "max_tokens": tokens, "seed": number, "stream": stream}


def bare(checkpoint: str, port: int) -> None:
    """The process beside: API, fake engine, uvicorn."""
    import uvicorn

    from easel.api.app import create_app
    from easel.engine.factory import make_engine
    from easel.protocol import EngineLimits
    from easel.settings import parse

    class Backend:
        def __init__(self, engine: Any) -> None:
            self.generate = engine.generate

        async def ready(self) -> None:
            return None

    async def run() -> None:
        app = parse({"app": {"models": {"default": model(checkpoint)}}}).app
        engine = make_engine(app.model)
        await engine.start()
        await engine.reconfigure(EngineLimits(max_denoising_steps=1))  # as the replica is told by Serve
        config = uvicorn.Config(create_app(app, Backend(engine)), port=port, log_config=None, lifespan="off", ws="none")
        await uvicorn.Server(config).serve()

    asyncio.run(run())


def engine_settings() -> dict[str, Any]:
    return {
        "slots": SLOTS,
        "fake_step_ms": 1.0,
        "fake_step_ms_per_canvas": 0.0,
        "max_denoising_steps": 1,
        "context_tokens": 4096,
    }


def model(checkpoint: str) -> dict[str, Any]:
    return {"checkpoint": checkpoint, "engine": {"kind": "fake", **engine_settings()}}


async def one_round(port: int, start: int) -> dict[str, Any]:
    client = Client(port)
    whole = [await client.post(body(start + i)) for i in range(60)]
    streams = [await client.post(body(start + i, stream=True)) for i in range(8)]
    client.close()
    began = time.perf_counter()
    many = await closed_loop(port, 32, 3.0, lambda number: body(start + 1000 + number))
    seconds = time.perf_counter() - began
    failed = [answer for answer in [*whole, *streams, *many] if not answer.ok]
    if failed:
        raise SystemExit(f"{len(failed)} failed: {failed[0]}")
    gaps = [b - a for stream in streams for a, b in pairwise(stream.canvases)]
    return {
        "request_p50_ms": 1000 * (percentile([answer.seconds for answer in whole], 0.5) or 0),
        "request_p99_ms": 1000 * (percentile([answer.seconds for answer in whole], 0.99) or 0),
        "first_part_p50_ms": 1000 * (percentile([stream.first_s for stream in streams], 0.5) or 0),
        "canvas_p50_ms": 1000 * (percentile(gaps, 0.5) or 0),
        "canvas_p99_ms": 1000 * (percentile(gaps, 0.99) or 0),
        "requests_per_s": len(many) / seconds,
    }


async def measure(ports: dict[str, int]) -> dict[str, Any]:
    rounds: list[dict[str, dict[str, Any]]] = []
    for number in range(ROUNDS + 1):
        names = list(ports) if number % 2 else list(reversed(ports))
        rounds.append({name: await one_round(ports[name], 10_000 * number) for name in names})
    rounds = rounds[1:]  # the first one warms up
    keys = list(rounds[0]["bare"])
    found: dict[str, Any] = {
        name: {key: round(median(one[name][key] for one in rounds), 2) for key in keys} for name in ports
    }
    found["served_less_bare"] = {
        key: round(median(one["served"][key] - one["bare"][key] for one in rounds), 2) for key in keys if "ms" in key
    }
    found["requests_per_s_to_bare"] = round(
        median(one["served"]["requests_per_s"] / one["bare"]["requests_per_s"] for one in rounds), 3
    )
    return found


def main() -> None:
    if len(sys.argv) == 4 and sys.argv[1] == "--bare":
        bare(sys.argv[2], int(sys.argv[3]))
        return
    from easel.rayserve.session import free_ports

    with serving(engine_settings(), {"max_ongoing_requests": SLOTS + 2}, {}) as local:
        port = free_ports(1)[0]
        command = [sys.executable, __file__, "--bare", local.settings.app.model.checkpoint, str(port)]
        paths = os.pathsep.join([str(ROOT), str(ROOT / "platform"), str(Path(__file__).parent)])
        beside = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths})
        try:
            ports = {"bare": port, "served": local.session.ports.api}
            while asyncio.run(Client(port).post(body(0))).status != 200:
                time.sleep(0.2)
            found = asyncio.run(measure(ports))
        finally:
            beside.terminate()
            beside.wait()
    print(json.dumps({**head(MACHINE), "rounds": ROUNDS, "canvases_a_stream": CANVASES, **found}, indent=1))


if __name__ == "__main__":
    main()

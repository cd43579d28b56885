"""How late `deadline_ms` is kept: requests that would take far longer, to a running service under load.

    .venv/bin/easel serve --config deployments/local/easel.yaml &
    .venv/bin/python ops/benches/deadlines.py --requests 300 --beside 6 --at-once 4

`ops/benches/results/2026-11-24-deadlines.json` holds three runs, each with its command.

Each of `--requests` asks for a Sudoku whose canvas is never sure enough (`confidence` 0), with a deadline of 300, 1000
or 3000 ms, beside `--beside` clients that solve Sudokus one after the other. `late_ms` is when the client had the whole
answer, less the deadline, so HTTP, proxy and handle are in it. Negative is early: the engine ends a canvas when its
next step would be late. Only answers that were cut by their deadline count there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "platform")]

import httpx  # noqa: E402

from easel.evals.sudoku import held_out, solves  # noqa: E402

DEADLINES_MS = (300, 1000, 3000)
PUZZLES = held_out(200)["24-31"]


async def bounded(http: httpx.AsyncClient, model: str, index: int, deadline_ms: int) -> dict[str, Any]:
    """One request with a deadline: how late it was, and what came of it."""
    puzzle = PUZZLES[index % len(PUZZLES)]
    body = {
        "model": model,
        "messages": [{"role": "user", "content": puzzle}],
        "max_tokens": 96,
        "seed": index,
        "easel": {"deadline_ms": deadline_ms, "confidence": 0, "queue_timeout_ms": 60_000},
    }
    began = time.perf_counter()
    response = await http.post("/v1/chat/completions", json=body)
    late_ms = 1000 * (time.perf_counter() - began) - deadline_ms
    data = response.json()
    if response.status_code != 200:
        return {"status": response.status_code, "code": data["error"]["code"], "late_ms": late_ms}
    (canvas,) = data["choices"][0]["easel"]["canvases"]
    text = data["choices"][0]["message"]["content"]
    steps = canvas["denoising_steps"]
    return {"status": 200, "stop": canvas["stop"], "steps": steps, "solved": solves(puzzle, text), "late_ms": late_ms}


async def others(http: httpx.AsyncClient, model: str, client: int) -> None:
    """Solves one puzzle after the other until it is cancelled."""
    index = client
    while True:
        messages = [{"role": "user", "content": PUZZLES[index % len(PUZZLES)]}]
        await http.post("/v1/chat/completions", json={"model": model, "messages": messages, "max_tokens": 96})
        index += 7


def summed(found: list[dict[str, Any]]) -> dict[str, Any]:
    done = [one for one in found if one["status"] == 200]
    cut = sorted(one["late_ms"] for one in done if one["stop"] == "deadline")
    return {
        "requests": len(found),
        "refused": dict(Counter(one["code"] for one in found if one["status"] != 200)),
        "stops": dict(Counter(one["stop"] for one in done)),
        "late_ms": {name: round(at(cut, part), 1) for name, part in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))}
        | {"most": round(cut[-1], 1)}
        if cut
        else {},
        "steps_median": median(one["steps"] for one in done) if done else 0,
        "solved": sum(one["solved"] for one in done),
    }


def at(values: list[float], part: float) -> float:
    return values[min(len(values) - 1, int(part * len(values)))]


async def measure(url: str, requests: int, beside: int, at_once: int) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as http:
        model = (await http.get("/v1/models")).json()["data"][0]["id"]
        noise = [asyncio.create_task(others(http, model, client)) for client in range(beside)]
        gate = asyncio.Semaphore(at_once)
        found: dict[int, list[dict[str, Any]]] = {deadline: [] for deadline in DEADLINES_MS}

        async def one(index: int) -> None:
            async with gate:
                deadline = DEADLINES_MS[index % len(DEADLINES_MS)]
                found[deadline].append(await bounded(http, model, index, deadline))

        try:
            await asyncio.gather(*(one(index) for index in range(requests)))
        finally:
            for task in noise:
                task.cancel()
            await asyncio.gather(*noise, return_exceptions=True)
    return {
        "command": "ops/benches/deadlines.py " + " ".join(sys.argv[1:]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} shared cores, {platform.machine()}; clients on the same, and other programs",
        "beside": beside,
        "at_once": at_once,
        "by_deadline_ms": {str(deadline): summed(rows) for deadline, rows in found.items()},
        "all": summed([row for rows in found.values() for row in rows]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--beside", type=int, default=6)
    parser.add_argument("--at-once", type=int, default=4)
    given = parser.parse_args()
    print(json.dumps(asyncio.run(measure(given.url, given.requests, given.beside, given.at_once)), indent=1))


if __name__ == "__main__":
    main()

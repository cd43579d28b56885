"""Sixteen progress readers at once, slow ones and vanished ones: what the engine's throughput says to it.

    .venv/bin/python ops/benches/progress_readers.py --rounds 9 \\
        > ops/benches/results/2026-11-23-progress-readers.json

Tiny checkpoint, this process, real HTTP. Each round runs sixteen requests in ways that take turns, with the same seeds,
so that the engine does the same work each time, give or take a pass at the start:

    plain            sixteen plain streams
    read             sixteen with progress at the default rate, read as they come
    unread           the same, and nobody reads a byte until the engine is done with all
    plain_vanished   plain streams; four connections are closed once their first canvas is there
    read_vanished    with progress; the same four are closed then

A way's figure is the ratio of its passes of the engine's loop a second to those of the plain way of the same round
(`read_vanished` to `plain_vanished`): below 1 is slower. `cpu_s_per_step` is what server and clients together computed
for one pass: above 1 is dearer, and other programs on the machine disturb it least. Answers run to `max_tokens` and
each canvas for 16 steps.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import sys
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "platform"), str(Path(__file__).parent)]

import httpx  # noqa: E402
from bare_service import serving  # noqa: E402
from record import head  # noqa: E402

from easel.api.requests import PROGRESS_HZ  # noqa: E402
from easel.engine.native.engine import NativeEngine  # noqa: E402

READERS, LEAVE = 16, 4
WAYS = {
    "plain": (False, True, False),
    "read": (True, True, False),
    "unread": (True, False, False),
    "plain_vanished": (False, True, True),
    "read_vanished": (True, True, True),
}
"""Whether with progress, whether read as it comes, whether four leave."""
AGAINST = {"read": "plain", "unread": "plain", "read_vanished": "plain_vanished"}


async def stream(client: httpx.AsyncClient, body: dict[str, Any], gate: asyncio.Event, leaves: bool) -> int:
    """Bytes read. With `leaves`, the connection is closed once text of a canvas has come."""
    size = 0
    async with client.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        await gate.wait()
        async for line in response.aiter_lines():
            size += len(line) + 1
            if leaves and line.startswith("data: {"):
                choices = json.loads(line[6:])["choices"]
                if choices and choices[0]["text"]:
                    break
    return size


async def one_way(client: httpx.AsyncClient, engine: NativeEngine, way: str, tokens: int) -> dict[str, float]:
    progress, reads, some_leave = WAYS[way]
    gate = asyncio.Event()
    if reads:
        gate.set()
    steps = engine.stats().counters["easel_engine_steps_total"]
    began, worked, tasks = time.perf_counter(), time.process_time(), []
    for seed in range(READERS):
        body: dict[str, Any] = {"model": "tiny", "prompt": "an open-ended text that asks for nothing in particular"}
        body |= {"max_tokens": tokens, "seed": seed, "temperature": 1.5, "stream": True}
        if progress:
            body["stream_options"] = {"include_progress": True}
        leaves = some_leave and seed % (READERS // LEAVE) == 0
        tasks.append(asyncio.create_task(stream(client, body, gate, leaves)))
    while not engine.stats().sequences:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    while engine.stats().sequences or engine.stats().waiting:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    seconds, cpu = time.perf_counter() - began, time.process_time() - worked
    done = engine.stats().counters["easel_engine_steps_total"] - steps
    gate.set()
    sizes = await asyncio.gather(*tasks)
    rates = {"steps_per_s": done / seconds, "cpu_s_per_step": cpu / done}
    return {"seconds": seconds, "steps": done, "bytes": sum(sizes)} | rates


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="at least 2")
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    rounds: list[dict[str, dict[str, float]]] = []
    async with serving(slots=READERS, context_tokens=512) as (client, engine):
        await one_way(client, engine, "plain", args.tokens)
        for number in range(args.rounds):
            names = list(WAYS)
            turn = number % len(names)
            rounds.append({way: await one_way(client, engine, way, args.tokens) for way in names[turn:] + names[:turn]})
            print(number, {way: round(one["seconds"], 2) for way, one in rounds[-1].items()}, file=sys.stderr)

    ways = {}
    for way, other in AGAINST.items():
        figures: dict[str, Any] = {}
        for what in ("steps_per_s", "cpu_s_per_step"):
            ratios = [round(one[way][what] / one[other][what], 3) for one in rounds]
            spread = [round(value, 3) for value in quantiles(ratios, n=4, method="inclusive")[::2]]
            figures |= {f"median_{what}": median(ratios), f"quartiles_{what}": spread, what: ratios}
        ways[way] = figures | {
            "against": other,
            "median_bytes": median(one[way]["bytes"] for one in rounds),
            "steps_same_as_other": all(one[way]["steps"] == one[other]["steps"] for one in rounds),
        }
    print(
        json.dumps(
            {
                **head(f"{platform.machine()}, {platform.system()}, client and server in one process"),
                "streams": READERS,
                "that_leave": LEAVE,
                "progress_hz": PROGRESS_HZ,
                "tokens_each": args.tokens,
                "rounds": args.rounds,
                "plain": {what: round(median(one["plain"][what] for one in rounds), 4) for what in rounds[0]["plain"]},
                "ways": ways,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    asyncio.run(main())

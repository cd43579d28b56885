"""What one progress stream costs the seven plain streams beside it: tiny checkpoint, this process, real HTTP.

    .venv/bin/python ops/benches/progress_overhead.py --rounds 9 --tokens 96 \
        > ops/benches/results/2026-11-23-progress-overhead.json

Each round streams the same eight requests in ways that take turns: none with progress, one with it at the default rate,
one at the highest rate, and one at the highest rate that nobody reads until the rest is done. The seeds are the same,
so the engine does the same work each time, give or take a pass at the start: what differs is what telling costs. A
way's figure is the median over the rounds of its ratio to the plain way of the same round; above 1 is slower. `seven_s`
is when the last of the seven others ended, `steps_per_s` counts passes of the engine's loop, `cpu_s_per_step` what
server and clients together computed for one of them, which other programs on the machine disturb least. Answers run to
`max_tokens` and each canvas for 16 steps, whatever the model says: the tiny one would be done before there is anything
to tell.
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
from easel.settings import ApiSettings  # noqa: E402

MOST_HZ = ApiSettings().max_progress_hz
WAYS: dict[str, tuple[float, bool]] = {
    "plain": (0.0, True),
    "default_rate": (PROGRESS_HZ, True),
    "highest_rate": (MOST_HZ, True),
    "highest_rate_unread": (MOST_HZ, False),
}
"""Events a second of the first stream, and whether it is read as it comes."""


async def stream(
    client: httpx.AsyncClient, body: dict[str, Any], gate: asyncio.Event | None = None
) -> tuple[float, int]:
    """When it ended, and how many bytes it had. Reads nothing before the gate is open."""
    size = 0
    async with client.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        if gate is not None:
            await gate.wait()
        async for part in response.aiter_raw():
            size += len(part)
    return time.perf_counter(), size


async def one_way(client: httpx.AsyncClient, engine: NativeEngine, way: str, tokens: int) -> dict[str, float]:
    hertz, reads = WAYS[way]
    gate = None if reads else asyncio.Event()
    bodies = []
    for seed in range(8):
        body: dict[str, Any] = {"model": "tiny", "prompt": "an open-ended text that asks for nothing in particular"}
        body |= {"max_tokens": tokens, "seed": seed, "temperature": 1.5, "stream": True}
        bodies.append(body)
    if hertz:
        bodies[0]["stream_options"] = {"include_progress": True, "progress_hz": hertz}
    steps = engine.stats().counters["easel_engine_steps_total"]
    began, worked = time.perf_counter(), time.process_time()
    first = asyncio.create_task(stream(client, bodies[0], gate))
    seven = await asyncio.gather(*(stream(client, body) for body in bodies[1:]))
    if gate is not None:
        while engine.stats().sequences:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        gate.set()
    _, size = await first
    ended = max(end for end, _ in seven)
    while engine.stats().sequences:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    seconds, cpu = time.perf_counter() - began, time.process_time() - worked
    done = engine.stats().counters["easel_engine_steps_total"] - steps
    rates = {"steps_per_s": done / seconds, "cpu_s_per_step": cpu / done}
    return {"seven_s": ended - began, "all_s": seconds, "steps": done, "bytes": size} | rates


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="at least 2")
    parser.add_argument("--tokens", type=int, default=320)
    args = parser.parse_args()
    rounds: list[dict[str, dict[str, float]]] = []
    async with serving(slots=8, context_tokens=1024) as (client, engine):
        await one_way(client, engine, "plain", args.tokens)
        for number in range(args.rounds):
            names = list(WAYS)
            turn = number % len(names)
            found = {way: await one_way(client, engine, way, args.tokens) for way in names[turn:] + names[:turn]}
            rounds.append(found)
            print(number, {way: round(one["seven_s"], 2) for way, one in found.items()}, file=sys.stderr)

    def ratios(way: str, what: str) -> list[float]:
        return [round(one[way][what] / one["plain"][what], 3) for one in rounds]

    def quartiles(found: list[float]) -> list[float]:
        return [round(value, 3) for value in quantiles(found, n=4, method="inclusive")[::2]]

    print(
        json.dumps(
            {
                **head(f"{platform.machine()}, {platform.system()}, client and server in one process"),
                "streams": 8,
                "tokens_each": args.tokens,
                "rounds": args.rounds,
                "plain": {what: round(median(one["plain"][what] for one in rounds), 4) for what in rounds[0]["plain"]},
                "ways": {
                    way: {
                        "progress_hz": WAYS[way][0],
                        "read_as_it_comes": WAYS[way][1],
                        "median_seven_s_to_plain": median(ratios(way, "seven_s")),
                        "median_steps_per_s_to_plain": median(ratios(way, "steps_per_s")),
                        "quartiles_seven_s_to_plain": quartiles(ratios(way, "seven_s")),
                        "quartiles_steps_per_s_to_plain": quartiles(ratios(way, "steps_per_s")),
                        "median_cpu_s_per_step_to_plain": median(ratios(way, "cpu_s_per_step")),
                        "quartiles_cpu_s_per_step_to_plain": quartiles(ratios(way, "cpu_s_per_step")),
                        "median_bytes_of_the_stream": median(one[way]["bytes"] for one in rounds),
                        "seven_s_to_plain": ratios(way, "seven_s"),
                    }
                    for way in list(WAYS)[1:]
                },
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    asyncio.run(main())

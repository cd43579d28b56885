"""Engine processes killed under load: what clients see, and how long it takes until all is as before.

    .venv/bin/python ops/benches/router_kills.py > ops/benches/results/2026-11-23-router-kills.json

Clients stream answers of two canvases, each asking again when it has its answer; every few seconds one of three engine
processes is ended with SIGKILL. A request fails only where part of its answer was sent: an error event, at once.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from random import Random

from record import head
from serving import MACHINE, Answer, Local, closed_loop, percentile, serving
from session_watch import Metrics, members, running

SLOTS, REPLICAS, STEP_MS = 4, 3, 30.0
SECONDS, KILLS = 50.0, 4


def body(number: int) -> dict[str, object]:
    return {"model": "easel", "prompt": f"request {number}", "max_tokens": 512, "seed": number, "stream": True}


async def kill(local: Local, began: float) -> list[dict[str, float]]:
    """When, and how long until as many replicas ran as before."""
    random, kills = Random(0), []
    for number in range(KILLS):
        await asyncio.sleep(max(0.0, began + 4.0 + number * (SECONDS - 10) / KILLS - time.perf_counter()))
        victim = random.choice(await asyncio.to_thread(members, local, "engine"))
        victim.kill()
        at = time.perf_counter()
        # The controller says RUNNING until its next look, so the first thing to wait for is that it noticed.
        while await asyncio.to_thread(running, local) == REPLICAS:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        noticed = time.perf_counter() - at
        while await asyncio.to_thread(running, local) < REPLICAS:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        kills.append({"noticed_s": round(noticed, 2), "recovered_s": round(time.perf_counter() - at, 2)})
    return kills


async def measure(local: Local) -> dict[str, object]:
    port = local.session.ports.api
    await closed_loop(port, SLOTS * REPLICAS, 5.0, lambda number: body(number + 100_000))
    calm: list[Answer] = await closed_loop(port, SLOTS * REPLICAS, 15.0, lambda number: body(number + 200_000))
    killing = asyncio.create_task(kill(local, time.perf_counter()))
    answers = await closed_loop(port, SLOTS * REPLICAS, SECONDS, body)
    kills = await killing
    await asyncio.sleep(8)  # metrics leave the ingress every few seconds
    retries = await asyncio.to_thread(lambda: Metrics(local).by("verdict", "easel_request_retries_total"))
    bad = [answer for answer in answers if not answer.ok]
    codes = Counter(
        json.loads(answer.body.split(b"data: ")[-1])["error"]["code"] if answer.body else "connection broke"
        for answer in bad
    )
    return {
        "asked": len(answers),
        "failed": len(bad),
        "failed_with": dict(codes),
        "failed_before_anything_was_sent": sum(not answer.canvases for answer in bad),
        "deaths_met_by_verdict": {name: round(times) for name, times in retries["easel_request_retries_total"].items()},
        "kills": kills,
        "calm_p50_s": percentile([answer.seconds for answer in calm if answer.ok], 0.5),
        "calm_p99_s": percentile([answer.seconds for answer in calm if answer.ok], 0.99),
        "p50_s": percentile([answer.seconds for answer in answers if answer.ok], 0.5),
        "p99_s": percentile([answer.seconds for answer in answers if answer.ok], 0.99),
        "throughput_to_calm": round((sum(a.ok for a in answers) / SECONDS) / (sum(a.ok for a in calm) / 15.0), 3),
    }


def main() -> None:
    engine = {"slots": SLOTS, "fake_step_ms": STEP_MS, "fake_step_ms_per_canvas": 2.0}
    with serving(engine, {"replicas": REPLICAS, "health_check_period_s": 0.5}, {}) as local:
        found = asyncio.run(measure(local))
    setup = {"replicas": REPLICAS, "slots": SLOTS, "step_ms": STEP_MS, "clients": SLOTS * REPLICAS}
    print(json.dumps({**head(MACHINE), **setup, "seconds": SECONDS, **found}, indent=1))


if __name__ == "__main__":
    main()

"""Twice the load that two replicas can carry: what is answered in time, how late, and how fast the rest is refused.

    .venv/bin/python ops/benches/router_overload.py > ops/benches/results/2026-11-24-router-overload.json

Capacity is measured first, in the same run: as many clients as keep every seat taken. Then arrivals at random, at
capacity and at twice it, on the real service: HAProxy, ingress, router, Serve, fake engines. In time: within the
request timeout, which is also the deadline that the engine gets.
"""

from __future__ import annotations

import asyncio
import json

from record import head
from serving import MACHINE, Answer, closed_loop, open_loop, percentile, serving

SLOTS, REPLICAS, STEP_MS = 4, 2, 30.0
QUEUE_S, DEADLINE_S = 2.0, 6.0
SECONDS = 60.0


def body(number: int) -> dict[str, object]:
    """One canvas or two, and no prompt twice."""
    return {"model": "easel", "prompt": f"request {number}", "max_tokens": 256 + 256 * (number % 2), "seed": number}


def summary(answers: list[Answer], seconds: float) -> dict[str, object]:
    good = [
        answer for answer in answers if answer.ok and answer.seconds <= DEADLINE_S and b'"deadline"' not in answer.body
    ]
    cut = [answer for answer in answers if answer.ok and b'"deadline"' in answer.body]
    admitted = [answer for answer in answers if answer.ok]
    at_once = [answer for answer in answers if answer.status in (429, 503) and b"queue_timeout" not in answer.body]
    late = [answer for answer in answers if b"queue_timeout" in answer.body]
    known = len(admitted) + len(at_once) + len(late)
    return {
        "asked": len(answers),
        "asked_per_s": round(len(answers) / seconds, 2),
        "answered_in_time": len(good),
        "goodput_per_s": round(len(good) / seconds, 3),
        "cut_at_the_deadline": len(cut),
        "refused_at_once": len(at_once),
        "left_the_queue_at_its_timeout": len(late),
        "other": len(answers) - known,
        "admitted_p50_s": percentile([answer.seconds for answer in admitted], 0.5),
        "admitted_p99_s": percentile([answer.seconds for answer in admitted], 0.99),
        "refusal_p50_s": percentile([answer.seconds for answer in at_once], 0.5),
        "refusal_p99_s": percentile([answer.seconds for answer in at_once], 0.99),
        "retry_after_p50_s": percentile([answer.retry_after_s or 0.0 for answer in at_once + late], 0.5),
        "without_retry_after": sum(answer.retry_after_s is None for answer in at_once + late),
    }


async def measure(port: int) -> dict[str, object]:
    await closed_loop(port, SLOTS * REPLICAS, 5.0, body)  # estimates, step times
    full = await closed_loop(port, (SLOTS + 1) * REPLICAS, 20.0, lambda number: body(number + 10_000))
    last = max(answer.began + answer.seconds for answer in full) - min(answer.began for answer in full)
    capacity = sum(answer.ok for answer in full) / last
    found: dict[str, object] = {"capacity_per_s": round(capacity, 3)}
    for name, factor in (("at_capacity", 1.0), ("at_twice", 2.0)):
        start = 20_000 * int(2 * factor)
        answers = await open_loop(port, factor * capacity, SECONDS, lambda number, start=start: body(number + start))
        found[name] = summary(answers, max(a.began + a.seconds for a in answers) - min(a.began for a in answers))
    return found


def main() -> None:
    app = {"router": {"queue_timeout_s": QUEUE_S}, "api": {"request_timeout_s": DEADLINE_S}}
    engine = {"slots": SLOTS, "fake_step_ms": STEP_MS, "fake_step_ms_per_canvas": 2.0}
    with serving(engine, {"replicas": REPLICAS}, app) as local:
        found = asyncio.run(measure(local.session.ports.api))
    setup = {"replicas": REPLICAS, "slots": SLOTS, "step_ms": STEP_MS, "queue_timeout_s": QUEUE_S}
    print(json.dumps({**head(MACHINE), **setup, "deadline_s": DEADLINE_S, **found}, indent=1))


if __name__ == "__main__":
    main()

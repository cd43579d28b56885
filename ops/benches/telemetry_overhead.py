"""What telemetry costs: everything on, what is on by default, and nothing, over the fake engine at saturation.

    .venv/bin/python ops/benches/telemetry_overhead.py > ops/benches/results/2026-11-27-telemetry-overhead.json

Three applications in one session, asked in turns by as many clients as keep it full, in another order each round, so
that whatever else the machine does meets all of them:

    nothing   no metrics, no traces, no log lines
    default   metrics for Prometheus, one log line a request
    all       that, and metrics, traces and logs over OTLP to a collector on this machine, every request traced

`engine`: the engine is the limit, as in service: its slots are always taken, canvases take 10 to 48 steps. `ingress`:
the ingress's core is the limit, which no real engine reaches: one step of 1 ms a canvas. CPU is that of the
application's replicas, from their process times.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from statistics import median, quantiles
from typing import Any

import psutil
from record import head
from serving import MACHINE, ROOT, closed_loop, serving

from easel.rayserve import processes
from easel.rayserve.local import Local

ROUNDS, SECONDS = 7, 3.0
VARIANTS = ("nothing", "default", "all")
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "engine": ({"slots": 16, "fake_step_ms": 6.0, "fake_step_ms_per_canvas": 0.3, "context_tokens": 4096}, 24),
    "ingress": (
        {
            "slots": 64,
            "fake_step_ms": 1.0,
            "fake_step_ms_per_canvas": 0.0,
            "max_denoising_steps": 1,
            "context_tokens": 4096,
        },
        32,
    ),
}
"""Engine, and clients."""


def body(number: int) -> dict[str, object]:
    return {"model": "easel", "prompt": f"request {number}", "max_tokens": 256, "seed": number}


def deploy(local: Local, collector: str) -> None:
    """All three beside the session's own application, which stays idle."""
    before = local.config()
    added = []
    for variant in VARIANTS:
        path = "ops.benches.silent_service:build" if variant == "nothing" else "easel.rayserve.app:build"
        one = local.config(path)["applications"][0] | {"name": variant, "route_prefix": f"/{variant}"}
        for deployment in one["deployments"]:
            deployment["ray_actor_options"] = {"num_cpus": 0}
        if variant == "all":
            one["args"] = {**one["args"], "telemetry": {"otlp_endpoint": collector, "trace_ratio": 1.0}}
        added.append(one)
    local.dashboard.deploy(before | {"applications": [*before["applications"], *added]})


def replicas(local: Local, variant: str) -> list[psutil.Process]:
    title = f"ray::ServeReplica:{variant}:"
    found = []
    for process in processes.members(local.session.mark, local.keeper):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith(title):
                found.append(process)
        except psutil.Error:
            continue
    return found


def cpu_s(found: list[psutil.Process]) -> float:
    times = [process.cpu_times() for process in found]
    return sum(one.user + one.system for one in times)


async def one_turn(local: Local, variant: str, clients: int, start: int) -> dict[str, float]:
    found = replicas(local, variant)
    if len(found) != 2:
        raise SystemExit(f"{variant} has {len(found)} replicas")
    before, began = cpu_s(found), time.perf_counter()
    answers = await closed_loop(
        local.session.ports.api, clients, SECONDS, lambda number: body(start + number), f"/{variant}"
    )
    seconds, cpu = time.perf_counter() - began, cpu_s(found) - before
    failed = [answer for answer in answers if not answer.ok]
    if failed:
        raise Failed(f"{len(failed)} of {variant} failed: {failed[0]}")
    return {"requests_per_s": len(answers) / seconds, "cpu_ms_a_request": 1000 * cpu / len(answers)}


class Failed(Exception):
    """A turn that says nothing: HAProxy closes connections when it is told of new replicas, right after the start."""


async def one_round(local: Local, clients: int, number: int) -> dict[str, dict[str, float]]:
    order = [VARIANTS[(number + i) % 3] for i in range(3)]
    return {variant: await one_turn(local, variant, clients, 100_000 * number) for variant in order}


async def measure(local: Local, clients: int) -> dict[str, Any]:
    rounds: list[dict[str, dict[str, float]]] = []
    warming, deadline = True, time.monotonic() + 60
    while warming:
        try:
            await one_round(local, clients, 0)
            warming = False
        except Failed:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(1)
    for number in range(1, ROUNDS + 1):
        rounds.append(await one_round(local, clients, number))
    found: dict[str, Any] = {
        variant: {key: round(median(one[variant][key] for one in rounds), 2) for key in rounds[0][variant]}
        for variant in VARIANTS
    }
    for variant in ("default", "all"):
        ratios = [one[variant]["requests_per_s"] / one["nothing"]["requests_per_s"] for one in rounds]
        low, _, high = quantiles(ratios, n=4)
        cpu = [one[variant]["cpu_ms_a_request"] - one["nothing"]["cpu_ms_a_request"] for one in rounds]
        found[f"{variant}_to_nothing"] = {
            "throughput_median": round(median(ratios), 3),
            "throughput_quartiles": [round(low, 3), round(high, 3)],
            "throughput_each_round": [round(ratio, 3) for ratio in ratios],
            "cpu_ms_a_request_more": round(median(cpu), 2),
        }
    return found


def wait(local: Local) -> None:
    """Until each answers."""
    for variant in VARIANTS:
        until = time.monotonic() + 90
        while time.monotonic() < until:
            answers = asyncio.run(closed_loop(local.session.ports.api, 1, 0.1, body, f"/{variant}"))
            if all(answer.ok for answer in answers):
                break
            time.sleep(0.5)
        else:
            raise SystemExit(f"{variant} never answered")


COLLECTOR = """
import sys, time
from tests.otlp_receiver import Receiver, receiver
Receiver.take = lambda self, path, body: None
with receiver() as made:
    print(made.url, flush=True)
    sys.stdin.read()
"""
"""A process of its own that takes everything and keeps nothing."""


def main() -> None:
    result: dict[str, Any] = {**head(MACHINE), "rounds": ROUNDS, "seconds_a_turn": SECONDS}
    collector = subprocess.Popen(
        [sys.executable, "-c", COLLECTOR], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert collector.stdin is not None
    assert collector.stdout is not None
    try:
        url = collector.stdout.readline().strip()
        for name in sys.argv[1:] or CASES:
            engine, clients = CASES[name]
            with serving(engine, {}, {}) as local:
                deploy(local, url)
                wait(local)
                result[name] = {"clients": clients, **asyncio.run(measure(local, clients))}
    finally:
        collector.stdin.close()
        collector.wait()
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

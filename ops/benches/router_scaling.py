"""From no replica to several and back to none: queue, work and replicas over time.

    .venv/bin/python ops/benches/router_scaling.py --plot docs/images/router_scaling.png \
        > ops/benches/results/2026-11-23-router-scaling.json

Nothing runs; a request comes and is held while a replica starts; then arrivals at random, at a rate that takes more
than two replicas; then silence, until the last replica is gone. What is queued and running is read where the
autoscaling policy reads it, replicas from Serve's own account.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from record import head
from serving import MACHINE, Answer, Client, Local, open_loop, percentile, serving

SLOTS, STEP_MS = 4, 40.0
AUTOSCALING: dict[str, Any] = {
    "min_replicas": 0,
    "max_replicas": 4,
    "target_s": 4.0,
    "down_delay_s": 8.0,
    "to_zero_delay_s": 10.0,
}
PER_S, SECONDS = 5.0, 45.0


def body(number: int) -> dict[str, object]:
    return {"model": "easel", "prompt": f"request {number}", "max_tokens": 256, "seed": number}


class Watch:
    """Samples the service five times a second."""

    def __init__(self, local: Local) -> None:
        # Ray reads these when it is imported: without them it looks for the cluster on the machine's own address.
        for key, value in local.session.environment().items():
            if key.startswith("RAY_"):
                os.environ[key] = value
        import ray

        from easel.rayserve.ledger import NAMESPACE, ledger_name

        self._local = local
        ray.init(
            address=f"127.0.0.1:{local.session.ports.gcs}",
            namespace=NAMESPACE,
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
        )
        self._get = ray.get
        self._actor = ray.get_actor(ledger_name("easel"), namespace=NAMESPACE)
        self._began = time.perf_counter()
        self.samples: list[dict[str, float]] = []

    def now(self) -> float:
        return time.perf_counter() - self._began

    def sample(self) -> dict[str, float]:
        reports, _ = self._get(self._actor.read.remote(), timeout=5)
        engine = self._local.dashboard.applications()["applications"]["easel"]["deployments"]["engine"]
        states = [replica["state"] for replica in engine["replicas"]]
        told = [report for _, report in reports]
        found = {"at_s": round(self.now(), 2)}
        for name in ("queued_requests", "queued_work", "running_requests", "running_work"):
            found[name] = round(sum(report[name] for report in told), 1)
        found["target"] = engine["target_num_replicas"]
        found["ready"] = states.count("RUNNING")
        self.samples.append(found)
        return found

    async def run(self) -> None:
        while True:
            await asyncio.to_thread(self.sample)
            await asyncio.sleep(0.2)


async def until(watch: Watch, ready: int, timeout_s: float) -> float:
    """When there were that many."""
    deadline = watch.now() + timeout_s
    while watch.now() < deadline:
        if watch.samples and watch.samples[-1]["ready"] == ready and watch.samples[-1]["target"] == ready:
            return watch.samples[-1]["at_s"]
        await asyncio.sleep(0.1)
    raise SystemExit(f"never {ready} replicas: {watch.samples[-1]}")


async def measure(local: Local, watch: Watch) -> dict[str, Any]:
    watching = asyncio.create_task(watch.run())
    await until(watch, 0, 120)
    client = Client(local.session.ports.api)
    first = await client.post(body(0))
    client.close()
    began = watch.now()
    answers: list[Answer] = await open_loop(local.session.ports.api, PER_S, SECONDS, body)
    ended = watch.now()
    zero_at = await until(watch, 0, 120)
    watching.cancel()
    after = [sample for sample in watch.samples if sample["at_s"] >= began]
    ready = [sample["ready"] for sample in watch.samples]
    return {
        "first_answer_from_zero_s": round(first.seconds, 3),
        "first_status": first.status,
        "arrivals_from_s": round(began, 1),
        "arrivals_to_s": round(began + SECONDS, 1),
        "asked": len(answers),
        "answered": sum(answer.ok for answer in answers),
        "p50_s": percentile([answer.seconds for answer in answers if answer.ok], 0.5),
        "p99_s": percentile([answer.seconds for answer in answers if answer.ok], 0.99),
        "most_replicas": max(ready),
        "changes_of_target": sum(a["target"] != b["target"] for a, b in pairwise(after)),
        "zero_again_after_last_answer_s": round(zero_at - ended, 1),
        "still_counted_at_the_end": watch.samples[-1]["queued_requests"] + watch.samples[-1]["running_requests"],
        "samples": watch.samples,
    }


def plot(samples: list[dict[str, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    at = [sample["at_s"] for sample in samples]
    figure, (work, replicas) = pyplot.subplots(2, 1, sharex=True, figsize=(9, 5), height_ratios=[2, 1])
    work.stackplot(
        at,
        [sample["running_work"] for sample in samples],
        [sample["queued_work"] for sample in samples],
        labels=["running", "queued at the ingress"],
        colors=["#4c78a8", "#f58518"],
    )
    work.set_ylabel("remaining work (units)")
    work.legend(loc="upper right")
    replicas.step(at, [sample["target"] for sample in samples], where="post", label="target", color="#999999")
    replicas.step(at, [sample["ready"] for sample in samples], where="post", label="ready", color="#4c78a8")
    replicas.set_ylabel("replicas")
    replicas.set_xlabel("seconds")
    replicas.legend(loc="lower center")
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    engine = {"slots": SLOTS, "fake_step_ms": STEP_MS, "fake_step_ms_per_canvas": 2.0}
    app = {"router": {"queue_timeout_s": 60.0}}
    with serving(engine, {"autoscaling": AUTOSCALING}, app) as local:
        watch = Watch(local)
        found = asyncio.run(measure(local, watch))
        import ray

        ray.shutdown()
        for log in sorted((local.session.logs).rglob("controller_*.log")):
            lines = [
                line.partition("autoscaling: ")[2] for line in log.read_text().splitlines() if "autoscaling: " in line
            ]
            found["decisions"] = found.get("decisions", []) + lines
    setup = {"slots": SLOTS, "step_ms": STEP_MS, "autoscaling": AUTOSCALING, "arrivals_per_s": PER_S}
    samples = found.pop("samples")
    print(json.dumps({**head(MACHINE), **setup, **found, "samples": samples[::2]}, indent=None))
    if args.plot:
        plot(samples, args.plot)
    print({key: value for key, value in found.items() if key != "decisions"}, file=sys.stderr)


if __name__ == "__main__":
    main()

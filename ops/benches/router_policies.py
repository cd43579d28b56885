"""Remaining work against counting requests, for placement and for scaling, on the same load on virtual time.

    export PYTHONPATH=platform:.
    .venv/bin/python ops/benches/router_policies.py --out ops/benches/results/DATE-router-policies.json
    .venv/bin/python ops/benches/router_policies.py --plot ops/benches/results/DATE-router-policies.json

The classes that decide are the router's own; replicas, statistics' age and cold starts are simulated
(`easel.router.simulation`), so the same seed gives the same figures on any machine. Writes one JSON object, and with
`--plot` docs/images/router-placement.png and router-policies-scaling.png from it. Four ways to place: the
router's; least remaining work alone; fewest requests, with what one ingress knows of the others (statistics of up to
half a second); and fewest requests with every count known without delay, which nobody has in service.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from easel.protocol import GenerationRequest
from easel.router.autoscaling import ScalingTargets
from easel.router.simulation import virtual_time
from easel.router.simulation.load import Arrival, Kind, arrivals
from easel.router.simulation.service import Order, Plan, Service, fewest_requests

ROOT = Path(__file__).parents[2]
MIX = [Kind(1, weight=0.7), Kind(4, 0.1, weight=0.2), Kind(16, 0.1, weight=0.1)]
SHARED = [replace(kind, prompt_tokens=2300, shared_tokens=2048) for kind in MIX]
SECONDS = 200.0


def least_work(service: Service, request: GenerationRequest, candidates: list[str]) -> list[str]:
    """The replica with the least remaining work, however many requests that is."""
    places = service.routers[service.ingress_of(request)].placement.place(request, candidates)
    return [place.replica for place in sorted(places, key=lambda place: (place.free <= 0, place.work))]


def fewest_as_known(service: Service, request: GenerationRequest, candidates: list[str]) -> list[str]:
    """The replica with the fewest requests, as far as this ingress knows of the others'."""
    places = service.routers[service.ingress_of(request)].placement.place(request, candidates)
    return [place.replica for place in sorted(places, key=lambda place: -place.free)]


POLICIES: dict[str, Order | None] = {
    "soonest through": None,
    "least work": least_work,
    "fewest requests": fewest_as_known,
    "fewest requests, all-knowing": fewest_requests,
}


def mean_work(kinds: list[Kind]) -> float:
    sample = list(arrivals(kinds, 10.0, 1000.0, seed=99))
    return sum(one.work for one in sample) / len(sample)


def serve(plan: Plan, load: Iterator[Arrival] | list[Arrival], order: Order | None = None) -> Service:
    async def main() -> Service:
        service = Service(plan, order)
        await service.serve(load)
        return service

    return virtual_time.run(main())


def at(values: list[float], part: float) -> float:
    return round(values[min(len(values) - 1, int(part * len(values)))], 3) if values else 0.0


def summary(service: Service) -> dict[str, Any]:
    """Seconds, and how requests ended."""
    answered = [record for record in service.records if record.code == "ok"]
    whole = sorted(record.seconds for record in answered)
    first = sorted(record.first_canvas_at - record.arrival.at for record in answered)
    return {
        "requests": len(service.records),
        "ended": dict(Counter(record.code for record in service.records)),
        "seconds": {"p50": at(whole, 0.5), "p90": at(whole, 0.9), "p99": at(whole, 0.99)},
        "first_canvas_s": {"p50": at(first, 0.5), "p90": at(first, 0.9), "p99": at(first, 0.99)},
    }


def placement() -> list[dict[str, Any]]:
    found = []
    for name, kinds, prefixes in (("mixed lengths", MIX, 0), ("2,048 tokens of prompt shared", SHARED, 4096)):
        plan = Plan(replicas=6, ingresses=3, prefixes=prefixes)
        for load in (0.5, 0.7, 0.9):
            rate = load * plan.replicas * plan.work_per_s / mean_work(kinds)
            for policy, order in POLICIES.items():
                arriving = list(arrivals(kinds, rate, SECONDS, seed=7))
                found.append({"load": load, "mix": name, "policy": policy} | summary(serve(plan, arriving, order)))
    return found


def day() -> list[Arrival]:
    """Short answers, then as much work in few long ones, then a third of that: over 15 minutes."""
    short, long = [Kind(1)], [Kind(12, 0.05)]
    phases = [
        (short, 400.0, 0.0, 200.0),
        (short, 1200.0, 200.0, 400.0),
        (long, 1200.0, 400.0, 700.0),
        (long, 400.0, 700.0, 900.0),
    ]
    load: list[Arrival] = []
    for index, (kinds, work_per_s, start, end) in enumerate(phases):
        load += arrivals(kinds, work_per_s / mean_work(kinds), end, seed=100 + index, start=start)
    return load


def scaling() -> list[dict[str, Any]]:
    base = ScalingTargets(0, 12, down_delay_s=60.0, to_zero_delay_s=60.0)
    found = []
    for policy, targets in (
        ("remaining work", base),
        ("queue depth, 4 a replica", replace(base, mode="queue_depth", queue_depth=4.0)),
        ("queue depth, 16 a replica", replace(base, mode="queue_depth", queue_depth=16.0)),
    ):
        plan = Plan(replicas=1, scaling=targets, cold_start_s=30.0)
        load = day()
        service = serve(plan, load)
        changes = [two.target - one.target for one, two in pairwise(service.samples)]
        turns = [change for change in changes if change]
        done = sum(record.work for record in service.records if record.code == "ok")
        found.append(
            {"policy": policy}
            | summary(service)
            | {
                "replica_seconds": round(service.replica_seconds),
                "replica_seconds_needed": round(done / plan.work_per_s),
                "waste": round(1.0 - done / plan.work_per_s / service.replica_seconds, 3),
                "changes": len(turns),
                "reversals": sum(one * two < 0 for one, two in pairwise(turns)),
                "replicas_moved": sum(map(abs, turns)),
                "over_time": [
                    [round(s.at, 1), s.ready, s.target, round(s.queued_work), round(s.running_work)]
                    for s in service.samples[::20]
                ],
            }
        )
    return found


def plot(found: dict[str, Any]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    colours = dict(zip(POLICIES, ("#0b6e99", "#c2571a", "#8a8a8a", "#5f8f3f"), strict=True))
    rows = found["placement"]
    mixes = list(dict.fromkeys(row["mix"] for row in rows))
    figure, axes = plt.subplots(1, len(mixes), figsize=(9, 3.4), sharey=False)
    for axis, mix in zip(axes, mixes, strict=True):
        for policy, colour in colours.items():
            mine = [row for row in rows if row["mix"] == mix and row["policy"] == policy]
            loads = [100 * row["load"] for row in mine]
            for part, style in (("p50", "-"), ("p99", "--")):
                values = [row["first_canvas_s"][part] for row in mine]
                axis.plot(loads, values, style, marker="o", color=colour, label=f"{policy}, {part}")
        axis.set(title=mix, xlabel="load, % of what replicas do", yscale="log")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("seconds to the first canvas")
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(ROOT / "docs/images/router-placement.png", dpi=130)

    rows = found["scaling"]
    figure, axes = plt.subplots(2, 1, figsize=(9, 5), sharex=True)
    for row, colour in zip(rows, ("#0b6e99", "#c2571a", "#8a8a8a"), strict=True):
        times = [sample[0] for sample in row["over_time"]]
        axes[0].step(times, [sample[2] for sample in row["over_time"]], where="post", color=colour, label=row["policy"])
        axes[1].plot(times, [max(1, sample[3]) for sample in row["over_time"]], color=colour)
    axes[0].set_ylabel("replicas wanted")
    axes[0].legend(fontsize=8)
    axes[1].set(ylabel="queued work, units", xlabel="seconds", yscale="log")
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(ROOT / "docs/images/router-policies-scaling.png", dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the figures go")
    parser.add_argument("--plot", type=Path, help="figures to draw instead of taking them")
    options = parser.parse_args()
    if options.plot is not None:
        plot(json.loads(options.plot.read_text()))
        return
    began = time.perf_counter()
    found = {
        "command": "ops/benches/router_policies.py",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"virtual time, {platform.python_implementation()} {platform.python_version()}",
        "placement": placement(),
        "scaling": scaling(),
        "took_s": round(time.perf_counter() - began, 1),
    }
    text = json.dumps(found, indent=1)
    if options.out is None:
        print(text)
    else:
        options.out.write_text(text + "\n")
        print(f"wrote {options.out} in {found['took_s']} s")


if __name__ == "__main__":
    main()

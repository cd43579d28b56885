"""Draws what `scaling.py` recorded of autoscaling and of a kill.

.venv/bin/python ops/benches/scaling_plot.py results.json docs/images/scaling.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

RUNNING, QUEUED, GREY = "#4c78a8", "#f58518", "#999999"


def autoscaling(axes: Any, found: dict[str, Any]) -> None:
    """Queue and remaining work above, target and ready replicas below."""
    work, queue, replicas = axes
    samples = found["samples"]
    at = [one["at_s"] for one in samples]
    layers = [[one["running_work"] for one in samples], [one["queued_work"] for one in samples]]
    work.stackplot(at, layers, labels=["with replicas", "queued at ingresses"], colors=[RUNNING, QUEUED])
    work.set_ylabel("remaining work (units)")
    queue.plot(at, [one["queued_requests"] for one in samples], color=QUEUED, label="queued requests")
    queue.plot(at, [one["running_requests"] for one in samples], color=RUNNING, label="running requests")
    queue.set_ylabel("requests")
    replicas.step(at, [one["target"] for one in samples], where="post", label="target", color=GREY)
    replicas.step(at, [one["ready"] for one in samples], where="post", label="ready", color=RUNNING)
    replicas.set_ylabel("replicas")
    replicas.set_xlabel("seconds")
    for axis in axes:
        axis.axvspan(found["load_rises_at_s"], found["load_falls_at_s"], color=GREY, alpha=0.15)
        axis.legend(loc="upper left" if axis is replicas else "upper right")


def kill(axis: Any, found: dict[str, Any]) -> None:
    """Busy slots of the replicas, from the least to the most busy, around the kill at 0."""
    samples = found["samples"]
    at = [one["at"] for one in samples]
    axis.fill_between(
        at,
        [min(one["busy"], default=0) for one in samples],
        [max(one["busy"], default=0) for one in samples],
        color=RUNNING,
        alpha=0.5,
        step="post",
        label="busy slots, least to most busy replica",
    )
    axis.step(at, [one["ready"] for one in samples], where="post", color=GREY, label="ready replicas")
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_xlabel("seconds after the kill")
    axis.legend(loc="lower right")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("image", type=Path)
    args = parser.parse_args()
    found = json.loads(args.results.read_text())
    parts = [name for name in ("autoscaling", "kill") if "samples" in found.get(name, {})]
    if not parts:
        parser.error(f"{args.results}: neither `autoscaling` nor `kill` was recorded")
    rows = 3 * ("autoscaling" in parts) + ("kill" in parts)
    figure, axes = pyplot.subplots(rows, 1, figsize=(9, 2.2 * rows), squeeze=False)
    left = list(axes[:, 0])
    if "autoscaling" in parts:
        autoscaling(left[:3], found["autoscaling"])
        left = left[3:]
    if "kill" in parts:
        kill(left[0], found["kill"])
    figure.tight_layout()
    figure.savefig(args.image, dpi=90)


if __name__ == "__main__":
    main()

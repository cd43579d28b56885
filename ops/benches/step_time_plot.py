"""Draws step time against canvases: the floor, Easel, and vLLM, from the results of both.

    PYTHONPATH=ops python ops/benches/step_time_plot.py STEP.json VLLM.json --out docs/images/step_time.png

Owns: the picture. Refuses to know: how anything was measured (`step_time`, `peers/vllm_step`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("easel", type=Path)
    parser.add_argument("vllm", type=Path)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    ours, peer = json.loads(arguments.easel.read_text()), json.loads(arguments.vllm.read_text())
    rows = [row for row in ours["rows"] if row["context"] == arguments.context]
    canvases = [row["canvases"] for row in rows]
    figure, axes = plt.subplots(figsize=(7, 4.4), layout="constrained")
    for name, marker in (("humming", "v"), ("default", "^")):
        label = f"vLLM {peer['versions']['vllm']}, {name} MoE back end"
        axes.plot(*zip(*((x["canvases"], x["step_ms"]) for x in peer[name]), strict=True), marker=marker, label=label)
    # The same clock for both: scheduler and results included.
    axes.plot(canvases, [row["wall_ms"] for row in rows], marker="o", label="Easel")
    axes.plot(canvases, [row["floor"]["total"] for row in rows], "--", color="grey", label="floor")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(canvases, [str(count) for count in canvases])
    ticks = [8, 16, 32, 64, 128]
    axes.set_yticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlabel("canvases in a step")
    axes.set_ylabel("ms a step")
    shapes = f"DiffusionGemma 26B-A4B shapes, {arguments.context} tokens of context"
    axes.set_title(f"Denoising step, {shapes}\n{ours.get('machine') or ours['gpu']}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(arguments.out, dpi=130)


if __name__ == "__main__":
    main()

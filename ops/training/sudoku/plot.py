"""Draw the curves of a run: `PYTHONPATH=ops python -m training.sudoku.plot`. Needs the extra `plots`.

Reads `results/log.jsonl` and `results/evaluation.json`; writes `results/training.png` and the docs' picture of solve
rate against the cap of denoising steps.
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results"
PICTURE = Path(__file__).parents[3] / "docs" / "images" / "sudoku_step_cap.png"
COLOURS = {"45-60": "#2a9d8f", "32-44": "#e9a23b", "24-31": "#c8553d"}


def training() -> None:
    lines = [json.loads(line) for line in (RESULTS / "log.jsonl").read_text().splitlines()]
    steps, evals = [x for x in lines if "loss" in x], [x for x in lines if x.get("event") == "eval"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
    left.plot([x["elapsed"] for x in steps], [x["loss"] for x in steps], color="#264653")
    left.set(xlabel="seconds of training, one H100", ylabel="loss on canvases", yscale="log")
    for band, colour in COLOURS.items():
        rates = [100 * x["rates"][band] for x in evals]
        right.plot([x["elapsed"] for x in evals], rates, color=colour, marker="o", ms=3, label=f"{band} givens")
    right.set(xlabel="seconds of training", ylabel="validation puzzles solved, %", ylim=(0, 101))
    right.legend(loc="lower right")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(RESULTS / "training.png", dpi=110)


def step_cap() -> None:
    rows = json.loads((RESULTS / "evaluation.json").read_text())["against_step_cap"]
    figure, axes = plt.subplots(figsize=(6.4, 4))
    for band, colour in COLOURS.items():
        for adaptive, style in ((True, "-o"), (False, "--x")):
            chosen = [r for r in rows if r["adaptive"] is adaptive]
            axes.plot(
                [r["cap"] for r in chosen], [100 * r["bands"][band]["rate"] for r in chosen], style, color=colour, ms=5,
                label=f"{band} givens, {'adaptive stopping' if adaptive else 'all steps taken'}",
            )  # fmt: skip
    axes.set_xscale("log", base=2)
    caps = sorted({r["cap"] for r in rows})
    axes.set_xticks(caps, [str(c) for c in caps])
    axes.set(xlabel="cap of denoising steps", ylabel="held-out puzzles solved, %", ylim=(0, 101))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    training()
    step_cap()

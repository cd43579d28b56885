"""What each tier solves, in how many denoising steps, and in what time: held-out Sudokus to a running service.

    .venv/bin/easel serve --config deployments/local/easel.yaml &
    .venv/bin/python ops/benches/tiers.py --limit 150 > ops/benches/results/2026-11-24-tiers.json
    .venv/bin/python ops/benches/tiers.py --plot ops/benches/results/2026-11-24-tiers.json

Every puzzle is asked in each tier before the next one is, so that whatever else runs on the machine disturbs the tiers
alike; `--concurrency` puzzles are asked at a time. `seconds_to_default` is the median over puzzles of a tier's seconds
over those of the default tier for the same puzzle.

`same_text`: the same requests once more, at temperature 1 with their seeds, first alone and then beside `--beside`
others: how many of the pairs have the same text.

`errors`: what was said where no answer came, the first of it, and how often each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "platform")]

import httpx  # noqa: E402

from easel.evals.sudoku import MAX_TOKENS, Answer, ask, held_out, report  # noqa: E402

PICTURE = ROOT / "docs" / "images" / "tiers.png"
MARKERS = "osD^v*"
COLOURS = {"45-60": "#2a9d8f", "32-44": "#e9a23b", "24-31": "#c8553d"}


async def solve(
    http: httpx.AsyncClient, model: str, tiers: Sequence[str], limit: int, concurrency: int, errors: Counter[str]
) -> dict[str, list[Answer]]:
    """Answers by tier, in the same order of puzzles. `errors` counts by text those that were none, as they came."""
    answers: dict[str, list[Answer]] = {tier: [] for tier in tiers}
    gate = asyncio.Semaphore(concurrency)

    async def counted(index: int, band: str, puzzle: str, tier: str) -> Answer:
        answer = await ask(http, model, band, puzzle, index, tier)
        if answer.error:
            errors[answer.error] += 1
        return answer

    async def one(index: int, band: str, puzzle: str) -> dict[str, Answer]:
        async with gate:
            # Each tier is first, second and third equally often.
            turned = [tiers[(place + index) % len(tiers)] for place in range(len(tiers))]
            return {tier: await counted(index, band, puzzle, tier) for tier in turned}

    asked = [(band, puzzle) for band, puzzles in held_out(limit).items() for puzzle in puzzles]
    for found in await asyncio.gather(*(one(i, band, puzzle) for i, (band, puzzle) in enumerate(asked))):
        for tier, answer in found.items():
            answers[tier].append(answer)
    return answers


async def same_text(http: httpx.AsyncClient, model: str, pairs: int, beside: int) -> dict[str, int]:
    """The same requests alone, and among others that come and go."""
    puzzles = held_out(pairs)["24-31"]

    async def text(index: int) -> str:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": puzzles[index]}],
            "max_tokens": MAX_TOKENS,
            "temperature": 1,
            "seed": index,
            "easel": {"queue_timeout_ms": 600_000},
        }
        response = await http.post("/v1/chat/completions", json=body)
        response.raise_for_status()
        return str(response.json()["choices"][0]["message"]["content"])

    async def others() -> None:
        while True:
            await http.post(
                "/v1/completions",
                json={
                    "model": model,
                    "prompt": "x" * 40,
                    "max_tokens": 96,
                    "easel": {"confidence": 0, "max_denoising_steps": 9},
                },
            )

    alone = [await text(index) for index in range(pairs)]
    noise = [asyncio.create_task(others()) for _ in range(beside)]
    try:
        gate = asyncio.Semaphore(beside)

        async def gated(index: int) -> str:
            async with gate:
                return await text(index)

        loaded = await asyncio.gather(*(gated(index) for index in range(pairs)))
    finally:
        for task in noise:
            task.cancel()
        await asyncio.gather(*noise, return_exceptions=True)
    return {"pairs": pairs, "same": sum(a == b for a, b in zip(alone, loaded, strict=True)), "beside": beside}


def summed(answers: dict[str, list[Answer]], default: str) -> dict[str, Any]:
    """The figures of each tier, by band and over all."""
    tiers: dict[str, Any] = {}
    for tier, found in answers.items():
        ratios = [
            (a.band, a.seconds / b.seconds)
            for a, b in zip(found, answers[default], strict=True)
            if not a.error and not b.error
        ]
        all_of_them = [ratio for _, ratio in ratios]
        bands = {}
        for line in report(found):
            part = [ratio for band, ratio in ratios if band == line.band]
            bands[line.band] = {
                "puzzles": line.puzzles,
                "errors": line.errors,
                "solved": line.solved,
                "solve_rate": round(line.solve_rate, 4),
                "steps_per_canvas": round(line.steps_per_canvas, 3),
                "tokens_per_forward": round(line.tokens_per_forward, 2),
                "median_s": round(line.median_s, 3),
                "p90_s": round(line.p90_s, 3),
                "seconds_to_default": round(median(part), 3) if part else None,
                "stops": line.stops,
            }
        tiers[tier] = {"seconds_to_default": round(median(all_of_them), 3) if all_of_them else None, "bands": bands}
    return tiers


async def measure(url: str, limit: int, concurrency: int, pairs: int, beside: int) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=url, timeout=600) as http:
        served = (await http.get("/v1/models")).json()["data"][0]
        own = served["easel"]
        errors = Counter[str]()
        answers = await solve(http, served["id"], list(own["tiers"]), limit, concurrency, errors)
        return {
            "command": "ops/benches/tiers.py " + " ".join(sys.argv[1:]),
            "date": datetime.now(UTC).date().isoformat(),
            "machine": f"{os.cpu_count()} shared cores, {platform.machine()}; client on the same, and other programs",
            "limits": own["tiers"],
            "concurrency": concurrency,
            "tiers": summed(answers, own["default_tier"]),
            "errors": {"first": next(iter(errors), None), "by_text": dict(errors)},
            "same_text": await same_text(http, served["id"], pairs, beside),
        }


def plot(source: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    found = json.loads(source.read_text())
    figure, axes = plt.subplots(figsize=(6.4, 3.8))
    for band, colour in COLOURS.items():
        rows = [(name, tier["bands"][band]) for name, tier in found["tiers"].items()]
        steps = [row["steps_per_canvas"] for _, row in rows]
        rates = [100 * row["solve_rate"] for _, row in rows]
        error = [100 * (row["solve_rate"] * (1 - row["solve_rate"]) / row["puzzles"]) ** 0.5 for _, row in rows]
        axes.errorbar(steps, rates, error, color=colour, lw=1.2, capsize=3, label=f"{band} givens")
        for (_, _), x, y, marker in zip(rows, steps, rates, MARKERS, strict=False):
            axes.plot(x, y, marker, color=colour, ms=7)
    for name, marker in zip(found["tiers"], MARKERS, strict=False):
        axes.plot([], [], marker, color="#555555", label=name)
    axes.set(
        xlabel="denoising steps a canvas, mean", ylabel="held-out puzzles solved, %", ylim=(90, 101), xlim=(0, None)
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left", fontsize=8, ncols=2)
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--limit", type=int, default=150, help="puzzles of each band")
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--beside", type=int, default=8)
    parser.add_argument("--plot", type=Path, help="draw this result instead of measuring")
    given = parser.parse_args()
    if given.plot is not None:
        plot(given.plot)
        return
    print(
        json.dumps(asyncio.run(measure(given.url, given.limit, given.concurrency, given.pairs, given.beside)), indent=1)
    )


if __name__ == "__main__":
    main()

"""What the stop scope `reachable` costs and saves: the trained Sudoku checkpoint, with both scopes, puzzle by puzzle.

    export PYTHONPATH=platform:ops
    python ops/benches/stop_scope.py --limit 200 > ops/benches/results/2026-11-27-stop-scope.json

The native engine's scheduler, runner and rules on the CPU, exact, temperature 0: figures depend on the puzzles alone
and on no clock. Each held-out puzzle is judged with `canvas` and with `reachable`:

- `whole`: the answer as it is, 90 tokens and an end token on a canvas of 96: 5 positions cannot be reached.
- `opening`: `max_tokens` 30, so the first three lines: 66 positions cannot be reached. Right are those of the puzzle's
  only solution.
- `line`: `max_tokens` 10, so the first line.

All once with the checkpoint's stability and once with 0, as the tier `fast` has it. No step of a canvas depends on when
it stops, so each canvas is denoised once, until the last of these rules has had enough. `lost` and `won`: puzzles that
only `canvas` got right, and that only `reachable` did; `same`: answers that are equal in both.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from easel.engine.native.assembly import Parts, assemble
from easel.engine.native.sequence import Sequence
from easel.evals.sudoku import held_out
from easel.protocol import CanvasStop, Denoising, GenerationRequest, Sampling, StopScope
from easel.settings import EngineSettings
from training.sudoku.generator import solve

FOLDER = Path(__file__).resolve().parents[2] / "platform" / "easel" / "checkpoints" / "sudoku"
CASES = {"whole": (128, 81), "opening": (30, 27), "line": (10, 9)}
"""Most tokens, and cells that are judged."""
STABILITIES = (1, 0)
SCOPES: tuple[StopScope, ...] = ("canvas", "reachable")
Way = tuple[str, int, StopScope]
"""Case, stability and scope."""


@dataclass(frozen=True, slots=True)
class Puzzle:
    """One question."""

    band: str
    solution: str
    prompt: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """Of one puzzle, in one way."""

    text: str
    right: bool
    steps: int
    converged: bool


def puzzles(tokenizer: Tokenizer, limit: int) -> Iterator[Puzzle]:
    """The first `limit` of each band, spread evenly."""
    for band, found in held_out(limit).items():
        for cells in found:
            grid = solve(np.array([int(cell) for cell in cells.replace(".", "0")], dtype=np.uint8))
            assert grid is not None, cells
            text = f"<bos><|turn>user\n{cells}<turn|>\n<|turn>model\n"
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            yield Puzzle(band, "".join(str(cell) for cell in grid), tuple(ids))


def ways(parts: Parts, request: GenerationRequest) -> dict[Way, Sequence]:
    """A sequence for each way, which is only told what the steps found."""
    asked = {}
    for case, stability, scope in product(CASES, STABILITIES, SCOPES):
        denoising = Denoising(stability=stability, stop_scope=scope)
        own = replace(request, max_tokens=CASES[case][0], denoising=denoising)
        asked[case, stability, scope] = parts.rules.sequence(own, None, None, 0.0, 0)
    return asked


def answers(parts: Parts, tokenizer: Tokenizer, asked: list[Puzzle]) -> list[dict[Way, Answer]]:
    """What each puzzle came to in each way."""
    scheduler, runner = parts.scheduler, parts.runner
    found: list[dict[Way, Answer]] = [{} for _ in asked]
    numbers: dict[Sequence, int] = {}
    open_ways: dict[Sequence, dict[Way, Sequence]] = {}
    for number, puzzle in enumerate(asked):
        # Never sure, so it goes on until it is ended.
        request = GenerationRequest(str(number), puzzle.prompt, 128, sampling=Sampling(seed=number, temperature=0.0),
                                    denoising=Denoising(confidence=0.0))  # fmt: skip
        sequence = parts.rules.sequence(request, scheduler.kv, None, 0.0, number)
        numbers[sequence], open_ways[sequence] = number, ways(parts, request)
        scheduler.add(sequence)
    while scheduler.sequences:
        plan, _ = scheduler.plan(0.0, 0.0)
        results = runner.run(plan)
        scheduler.advance(plan, results, 0.0, 0.0, 0.0)
        for sequence in plan.denoises:
            number = numbers[sequence]
            for way, told in list(open_ways[sequence].items()):
                told.denoised(results[sequence], 0.0)
                stop = told.canvas_stop(0.0)
                if stop is not None:
                    steps, text = told.step, tokenizer.decode(list(told.commit(stop).tokens))
                    right = "".join(text.split()) == asked[number].solution[: CASES[way[0]][1]]
                    found[number][way] = Answer(text, right, steps, stop is CanvasStop.CONVERGED)
                    del open_ways[sequence][way]
            if not open_ways[sequence]:
                if sequence in scheduler.sequences:
                    scheduler.finish(sequence, "cancelled")
                runner.forget(sequence)
    return found


def measure(limit: int, slots: int) -> dict[str, Any]:
    """All cases, both stabilities, both scopes."""
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    parts = assemble(FOLDER, EngineSettings(device="cpu", slots=slots, context_tokens=512))
    asked = list(puzzles(tokenizer, limit))
    found = answers(parts, tokenizer, asked)
    parts.runner.close()
    rows = []
    for case, stability in product(CASES, STABILITIES):
        for band in dict.fromkeys(puzzle.band for puzzle in asked):
            part = [answer for puzzle, answer in zip(asked, found, strict=True) if puzzle.band == band]
            pairs = [(answer[case, stability, "canvas"], answer[case, stability, "reachable"]) for answer in part]
            rows.append({"case": case, "stability": stability, "band": band} | compared(pairs))
    return {
        "command": "ops/benches/stop_scope.py " + " ".join(sys.argv[1:]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"CPU, {platform.machine()}, exact: no figure depends on its speed",
        "rows": rows,
    }


def compared(pairs: list[tuple[Answer, Answer]]) -> dict[str, Any]:
    """Figures of one band: for each scope, and of one against the other."""
    figures: dict[str, Any] = {"puzzles": len(pairs)}
    for place, scope in enumerate(SCOPES):
        found = [pair[place] for pair in pairs]
        figures[scope] = {
            "right": sum(answer.right for answer in found),
            "steps_per_canvas": round(sum(answer.steps for answer in found) / len(found), 3),
            "converged": sum(answer.converged for answer in found),
        }
    figures["lost"] = sum(canvas.right and not reachable.right for canvas, reachable in pairs)
    figures["won"] = sum(reachable.right and not canvas.right for canvas, reachable in pairs)
    figures["same"] = sum(canvas.text == reachable.text for canvas, reachable in pairs)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=200, help="puzzles of each band")
    parser.add_argument("--slots", type=int, default=4)
    given = parser.parse_args()
    print(json.dumps(measure(given.limit, given.slots), indent=1))


if __name__ == "__main__":
    main()

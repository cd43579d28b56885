"""What the stop scope `reachable` costs and saves: the trained Sudoku checkpoint, with both scopes, puzzle by puzzle.

    export PYTHONPATH=platform:ops
    python ops/benches/stop_scope.py --limit 200 > ops/benches/results/2026-11-27-stop-scope.json

The native engine on the CPU, exact, temperature 0, so that the figures depend on the puzzles alone and on no clock.
Each held-out puzzle is asked with `canvas` and with `reachable`:

- `whole`: the answer as it is, 90 tokens and an end token on a canvas of 96: 5 positions cannot be reached.
- `opening`: `max_tokens` 30, so the first three lines: 66 positions cannot be reached. Right are those of the puzzle's
  only solution.
- `line`: `max_tokens` 10, so the first line.

All once with the checkpoint's stability and once with 0, as the tier `fast` has it. `lost` and `won`: puzzles that
only `canvas` got right, and that only `reachable` did; `same`: answers that are equal in both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from easel.engine.native.engine import NativeEngine
from easel.evals.sudoku import held_out
from easel.protocol import CanvasCommitted, CanvasStop, Denoising, GenerationRequest, Sampling, StopScope
from easel.settings import EngineSettings
from training.sudoku.generator import solve

FOLDER = Path(__file__).resolve().parents[2] / "platform" / "easel" / "checkpoints" / "sudoku"
CASES = {"whole": (128, 81), "opening": (30, 27), "line": (10, 9)}
"""Most tokens, and cells that are judged."""
SCOPES: tuple[StopScope, ...] = ("canvas", "reachable")


@dataclass(frozen=True, slots=True)
class Answer:
    """Of one puzzle, with one scope."""

    text: str
    right: bool
    steps: int
    converged: bool


def prompts(tokenizer: Tokenizer, limit: int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Band, the only solution, and the prompt's tokens."""
    for band, puzzles in held_out(limit).items():
        for puzzle in puzzles:
            grid = solve(np.array([int(cell) for cell in puzzle.replace(".", "0")], dtype=np.uint8))
            assert grid is not None, puzzle
            text = f"<bos><|turn>user\n{puzzle}<turn|>\n<|turn>model\n"
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            yield band, "".join(str(cell) for cell in grid), tuple(ids)


async def ask(engine: NativeEngine, tokenizer: Tokenizer, request: GenerationRequest, expected: str) -> Answer:
    """The first canvas: the answer never needs more."""
    tokens: list[int] = []
    canvases: list[CanvasCommitted] = []
    async for event in engine.generate(request):
        if isinstance(event, CanvasCommitted):
            tokens += event.token_ids
            canvases.append(event)
    text = tokenizer.decode(tokens)
    return Answer(
        text,
        "".join(text.split())[: len(expected)] == expected,
        sum(canvas.steps for canvas in canvases),
        all(canvas.stop is CanvasStop.CONVERGED for canvas in canvases),
    )


async def measure(limit: int, slots: int) -> dict[str, Any]:
    """All cases, both stabilities, both scopes."""
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    engine = NativeEngine(FOLDER, EngineSettings(device="cpu", slots=slots, context_tokens=512))
    await engine.start()
    puzzles = list(prompts(tokenizer, limit))
    gate = asyncio.Semaphore(2 * slots)
    rows = []
    for case, (most, cells) in CASES.items():
        for stability in (1, 0):

            async def both(
                index: int, truth: str, prompt: tuple[int, ...], most: int = most, stability: int = stability
            ) -> tuple[Answer, Answer]:
                async with gate:
                    pair = [
                        await ask(
                            engine,
                            tokenizer,
                            GenerationRequest(
                                id=f"{index}-{scope}",
                                prompt=prompt,
                                max_tokens=most,
                                sampling=Sampling(seed=index, temperature=0.0),
                                denoising=Denoising(stability=stability, stop_scope=scope),
                            ),
                            truth,
                        )
                        for scope in SCOPES
                    ]
                return pair[0], pair[1]

            pairs = await asyncio.gather(*(both(i, t[:cells], ids) for i, (_, t, ids) in enumerate(puzzles)))
            for band in dict.fromkeys(band for band, _, _ in puzzles):
                part = [pair for pair, (of, _, _) in zip(pairs, puzzles, strict=True) if of == band]
                rows.append({"case": case, "stability": stability, "band": band} | compared(part))
                print(rows[-1], file=sys.stderr, flush=True)
    await engine.stop()
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
    print(json.dumps(asyncio.run(measure(given.limit, given.slots)), indent=1))


if __name__ == "__main__":
    main()

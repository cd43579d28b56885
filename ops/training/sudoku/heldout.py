"""The held-out puzzles: three bands of givens, each puzzle on a solution grid of its own, and what training must avoid.

`python -m training.sudoku.heldout` writes `platform/easel/evals/sudoku_heldout.json`. Validation puzzles, on which the
decoding parameters are chosen, come from another seed and are kept out of training in the same way.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.sudoku.generator import BANDS, Cells, generate, invariants, solve
from training.sudoku.notation import puzzle_text

SEED, VALIDATION_SEED = 20_261_123, 20_261_124
PER_BAND = 1000
PATH = Path(__file__).parents[3] / "platform" / "easel" / "evals" / "sudoku_heldout.json"


def bands(
    seed: int, per_band: int = PER_BAND, banned: NDArray[np.uint64] | None = None
) -> dict[str, tuple[Cells, Cells]]:
    """Puzzles and solutions of each band, numbers of givens spread evenly over the band."""
    out: dict[str, tuple[Cells, Cells]] = {}
    for index, (name, (low, high)) in enumerate(BANDS.items()):
        givens = low + np.arange(per_band)[:, None] * (high - low + 1) // per_band
        out[name] = generate(seed + 1000 * index, givens, banned)
    return out


def parse(text: str) -> Cells:
    """81 characters to cells."""
    return np.array([int(c) if c.isdigit() else 0 for c in text], np.uint8)


def load(path: Path = PATH) -> dict[str, tuple[Cells, Cells]]:
    """Puzzles and solutions of each band of the held-out file."""
    out: dict[str, tuple[Cells, Cells]] = {}
    for band, lines in json.loads(path.read_text())["bands"].items():
        puzzles = np.stack([parse(line) for line in lines])
        solutions = [solve(p) for p in puzzles]
        out[band] = puzzles, np.stack([s for s in solutions if s is not None])
    return out


def validation() -> dict[str, tuple[Cells, Cells]]:
    """As `load`, from another seed, no grid of which is a held-out grid in another guise."""
    held = np.concatenate([invariants(s) for _, s in load().values()])
    return bands(VALIDATION_SEED, banned=held)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PATH)
    path: Path = parser.parse_args().out
    content = {
        "about": "Sudoku puzzles with exactly one solution, never seen in training up to symmetry; 0 is an empty cell.",
        "seed": SEED,
        "bands": {name: [puzzle_text(p, "0") for p in puzzles] for name, (puzzles, _) in bands(SEED).items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"{path}: {sum(len(v) for v in content['bands'].values())} puzzles, {path.stat().st_size} bytes")  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()

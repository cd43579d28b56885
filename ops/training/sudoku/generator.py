"""Sudoku puzzles at compiled speed: grids, puzzles with exactly one solution, unsolvable ones, symmetry.

Owns the bridge to `generator.c`, which the C compiler builds at first use. Knows nothing of text, tokens or models.
A puzzle is a uint8 array of 81 cells, row by row, 0 for empty. Everything follows from a seed, whatever the number of
threads.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Cells = NDArray[np.uint8]
SOURCE = Path(__file__).with_name("generator.c")
BANDS: dict[str, tuple[int, int]] = {"45-60": (45, 60), "32-44": (32, 44), "24-31": (24, 31)}


@cache
def library() -> ctypes.CDLL:
    """Build `generator.c` once for each version of its text and load it. Raises RuntimeError without a C compiler."""
    text = SOURCE.read_bytes()
    target = Path(tempfile.gettempdir()) / f"easel-sudoku-{os.getuid()}-{hashlib.sha256(text).hexdigest()[:16]}.so"
    if not target.exists():
        compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            raise RuntimeError("the Sudoku generator needs a C compiler: set CC or install gcc")
        partial = target.with_suffix(f".{os.getpid()}.tmp")
        subprocess.run([compiler, "-O3", "-shared", "-fPIC", "-o", str(partial), str(SOURCE)], check=True)
        partial.replace(target)
    lib = ctypes.CDLL(str(target))
    lib.invariant.restype = ctypes.c_uint64
    lib.count_solutions.restype = ctypes.c_int
    return lib


def _pointer(array: NDArray[np.generic]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def count_solutions(puzzle: Cells, limit: int = 2) -> int:
    """Number of solutions of one puzzle [81], counted up to `limit`."""
    cells = np.ascontiguousarray(puzzle, dtype=np.uint8)
    return int(library().count_solutions(_pointer(cells), limit, None))


def solve(puzzle: Cells) -> Cells | None:
    """The solution [81] of a puzzle that has one, or None."""
    cells = np.ascontiguousarray(puzzle, dtype=np.uint8)
    out = np.zeros(81, np.uint8)
    return out if library().count_solutions(_pointer(cells), 1, _pointer(out)) else None


def invariants(grids: Cells) -> NDArray[np.uint64]:
    """A number for each full grid [n, 81] that no symmetry of Sudoku changes: unequal numbers prove two grids apart."""
    cells = np.ascontiguousarray(grids, dtype=np.uint8)
    return np.array([library().invariant(_pointer(g)) for g in cells], dtype=np.uint64)


def generate(
    seed: int,
    targets: NDArray[np.integer],
    banned: NDArray[np.uint64] | None = None,
    *,
    threads: int = 1,
    first: int = 0,
) -> tuple[Cells, Cells]:
    """Puzzles with exactly one solution and their solutions, each [n * k, 81], for targets [n, k].

    Each row of `targets` shares one solution grid and lists numbers of givens, which are sorted to fall. No grid has an
    invariant in `banned`. Row i depends on (seed, first + i) and its targets alone.
    """
    wanted = np.ascontiguousarray(-np.sort(-targets.astype(np.int64), axis=1), dtype=np.uint8)
    groups, per_grid = wanted.shape
    ban = np.sort(banned) if banned is not None else np.zeros(0, np.uint64)
    puzzles, solutions = np.zeros((groups * per_grid, 81), np.uint8), np.zeros((groups * per_grid, 81), np.uint8)
    lib = library()

    def part(lo: int, hi: int) -> None:
        at = lo * per_grid
        lib.generate(
            ctypes.c_uint64(seed), ctypes.c_int64(first + lo), ctypes.c_int64(hi - lo), per_grid, _pointer(wanted[lo:]),
            _pointer(ban), ctypes.c_int64(len(ban)), _pointer(puzzles[at:]), _pointer(solutions[at:]),
        )  # fmt: skip

    edges = np.linspace(0, groups, 8 * threads + 1 if threads > 1 else 2).astype(int)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, edges[:-1], edges[1:]))
    return puzzles, solutions


def spoil(seed: int, puzzles: Cells) -> Cells:
    """The same puzzles [n, 81] with one given changed so that none has a solution: every other one by a plain clash."""
    out = np.ascontiguousarray(puzzles, dtype=np.uint8).copy()
    library().spoil(ctypes.c_uint64(seed), ctypes.c_int64(len(out)), _pointer(out))
    return out


def symmetric_image(rng: np.random.Generator, grid: Cells) -> Cells:
    """A random image of a grid or puzzle [81] under all symmetries of Sudoku."""
    digits = np.concatenate([[0], 1 + rng.permutation(9)]).astype(np.uint8)
    rows = np.concatenate([3 * band + rng.permutation(3) for band in rng.permutation(3)])
    columns = np.concatenate([3 * stack + rng.permutation(3) for stack in rng.permutation(3)])
    square = digits[grid].reshape(9, 9)[rows][:, columns]
    return (square.T if rng.integers(2) else square).reshape(81)

"""The Sudoku generator: exactly one solution, the givens asked for, reproducible, and apart from the held-out grids."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from training.sudoku import heldout
from training.sudoku.generator import BANDS, count_solutions, generate, invariants, solve, spoil, symmetric_image

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="the generator is built with the C compiler"
)


def backtracking_count(cells: list[int], limit: int = 2) -> int:
    """Solutions of a puzzle, the slow and obvious way."""

    def free(i: int, d: int) -> bool:
        r, c = divmod(i, 9)
        return all(
            cells[j] != d
            for j in range(81)
            if j != i and (j // 9 == r or j % 9 == c or (j // 27 == i // 27 and j % 9 // 3 == c // 3))
        )

    if any(cells[i] and not free(i, cells[i]) for i in range(81)):
        return 0
    options = [(i, [d for d in range(1, 10) if free(i, d)]) for i in range(81) if not cells[i]]
    if not options:
        return 1
    i, digits = min(options, key=lambda option: len(option[1]))
    found = 0
    for d in digits:
        cells[i] = d
        found += backtracking_count(cells, limit - found)
        cells[i] = 0
        if found >= limit:
            break
    return found


def is_solution(grid: np.ndarray) -> bool:
    square = grid.reshape(9, 9)
    boxes = square.reshape(3, 3, 3, 3).swapaxes(1, 2).reshape(9, 9)
    return all(sorted(unit) == list(range(1, 10)) for view in (square, square.T, boxes) for unit in view)


def test_every_number_of_givens_gives_a_puzzle_with_exactly_one_solution() -> None:
    givens = np.arange(24, 61)[:, None]
    puzzles, solutions = generate(5, givens)
    assert ((puzzles > 0).sum(1) == givens[:, 0]).all()
    for puzzle, solution in zip(puzzles, solutions, strict=True):
        assert is_solution(solution)
        assert (puzzle[puzzle > 0] == solution[puzzle > 0]).all()
        assert count_solutions(puzzle) == 1
        assert (solve(puzzle) == solution).all()


def test_the_solver_counts_as_plain_backtracking_does() -> None:
    puzzles, _ = generate(11, np.full((6, 1), 46))
    rng = np.random.default_rng(0)
    counts = set()
    for puzzle in puzzles:
        for removed in (0, 12):  # fewer givens: often more than one solution
            opened = puzzle.copy()
            opened[rng.choice(np.flatnonzero(opened), removed, replace=False)] = 0
            expected = backtracking_count(opened.tolist())
            assert count_solutions(opened) == expected
            counts.add(expected)
    assert counts == {1, 2}


def test_the_result_depends_on_the_seed_alone_not_on_threads_or_batches() -> None:
    targets = np.tile([50, 36, 30], (24, 1))
    whole = generate(3, targets)
    for other in (generate(3, targets, threads=3), generate(3, targets[:, ::-1])):
        assert all((a == b).all() for a, b in zip(whole, other, strict=True))
    tail, _ = generate(3, targets[10:], first=10)
    assert (whole[0][30:] == tail).all()
    assert (generate(4, targets)[0] != whole[0]).any()


def test_the_invariant_ignores_every_symmetry_and_tells_grids_apart() -> None:
    rng = np.random.default_rng(1)
    _, grids = generate(7, np.full((300, 1), 60))
    numbers = invariants(grids)
    images = np.stack([symmetric_image(rng, g) for g in grids])
    assert (images != grids).any(axis=1).all()
    assert all(is_solution(g) for g in images[:20])
    assert (invariants(images) == numbers).all()
    assert len(set(numbers.tolist())) > 295


def test_banned_grids_are_not_used_in_any_guise() -> None:
    targets = np.full((40, 1), 60)
    _, first = generate(9, targets)
    banned = invariants(first[:25])
    _, second = generate(9, targets, banned)
    assert not set(invariants(second).tolist()) & set(banned.tolist())
    assert (second[25:] == first[25:]).all()


def test_spoiled_puzzles_differ_in_one_given_and_have_no_solution() -> None:
    puzzles, _ = generate(13, np.full((40, 1), 36))
    spoiled = spoil(2, puzzles)
    assert ((spoiled != puzzles).sum(1) == 1).all()
    assert ((spoiled > 0) == (puzzles > 0)).all()
    assert all(count_solutions(p) == 0 for p in spoiled)


def test_the_held_out_file_is_what_its_seed_gives_and_training_cannot_meet_it() -> None:
    content = json.loads(heldout.PATH.read_text())
    assert content["seed"] == heldout.SEED
    again = heldout.bands(heldout.SEED, 1000)
    held = set()
    for band, (low, high) in BANDS.items():
        puzzles, solutions = again[band]
        assert content["bands"][band] == ["".join(map(str, p)) for p in puzzles.tolist()]
        givens = (puzzles > 0).sum(1)
        assert givens.min() == low
        assert givens.max() == high
        held |= set(invariants(solutions).tolist())
    validation = np.concatenate([s for _, s in heldout.bands(1, 40, np.array(sorted(held), np.uint64)).values()])
    assert not held & set(invariants(validation).tolist())

"""A Sudoku as text: puzzles in, boards out, and what breaks the rules. Cannot solve.

Refuses to know: colours, where digits come from beyond the layout of an answer: nine lines of nine digits, one
character a position.
"""

from __future__ import annotations

from collections.abc import Sequence

from easel.chat.canvas import Canvas, Cell

CELLS = 81
UNITS = (
    *([9 * i + j for j in range(9)] for i in range(9)),
    *([9 * j + i for j in range(9)] for i in range(9)),
    *([27 * (b // 3) + 3 * (b % 3) + 9 * (i // 3) + i % 3 for i in range(9)] for b in range(9)),
)
EMPTY = "0._*"


def read_puzzle(text: str) -> str | None:
    """81 characters, `.` for an empty cell, from digits with `0`, `.`, `_` or `*` for those; None if it is no puzzle.

    Blank space and the lines of a drawn grid (`|`, `-`, `+`) are passed over.
    """
    found = "".join("." if character in EMPTY else character for character in text if character not in "|-+ \t\r\n")
    return found if len(found) == CELLS and set(found) <= set("123456789.") else None


def read_answer(text: str) -> list[str] | None:
    """The 81 digits of an answer, or None where it is something else."""
    digits = "".join(text.split())
    return list(digits) if len(digits) == CELLS and set(digits) <= set("123456789") else None


def on_board(canvas: Canvas) -> list[Cell | None]:
    """For each cell of the board the position that says it; None where that holds no digit (yet)."""
    found: list[Cell | None] = []
    for index in range(CELLS):
        position = 10 * (index // 9) + index % 9
        cell = canvas.cells[position] if position < len(canvas.cells) else None
        found.append(cell if cell is not None and len(cell.text) == 1 and cell.text in "123456789" else None)
    return found


def conflicts(digits: Sequence[str]) -> set[int]:
    """Cells that share a row, column or box with the same digit. Empty cells are "" or "."."""
    found: set[int] = set()
    for unit in UNITS:
        for a in unit:
            if digits[a] not in ("", ".") and any(b != a and digits[a] == digits[b] for b in unit):
                found.add(a)
    return found


def broken(puzzle: str, digits: Sequence[str]) -> set[int]:
    """What is wrong with an answer: conflicts, and cells that are not the given one."""
    changed = {index for index, given in enumerate(puzzle) if given != "." and digits[index] not in ("", given)}
    return conflicts(digits) | changed


def verdict(puzzle: str, text: str) -> str:
    """What a committed answer is worth, in a sentence."""
    digits = read_answer(text)
    if digits is None:
        return f"The model answered with something that is no board: {text.strip()[:200]}"
    wrong = broken(puzzle, digits)
    return f"Not solved: {len(wrong)} cells are wrong." if wrong else "Solved: every row, column and box holds 1 to 9."

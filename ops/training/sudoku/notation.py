"""How a puzzle is written as a prompt, and how its answer is written on the canvas.

A prompt is a template of token ids in which negative entries stand for cells, so a whole batch is rendered by one
gather. Owns the notations, the phrases around them, the chat turns and the sentences that answer what cannot be
solved. Knows no generator, model or loss.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.tokenizer import BOS, BYTE_OFFSET, EOS, PAD, TURN_CLOSE, TURN_OPEN, encode_text

CANVAS = 96
SHORT, LONG = 128, 384
"""Prompt lengths of the two batches: 81 cells or nine lines and a phrase; separators, system turns, earlier turns."""

NO_SOLUTION = "This puzzle has no solution."
NO_PUZZLE = "Send me a Sudoku: 81 characters, with . or 0 for the empty cells."

# Cell references: the puzzle, then an earlier puzzle of the conversation and its solution.
PUZZLE, EARLIER, EARLIER_SOLUTION = 0, 81, 162

Piece = str | int
"""Text, or the reference of one cell."""

SHORT_PHRASES = (
    "Solve: ", "Sudoku: ", "Sudoku:\n", "Solve this sudoku:\n", "Solve this Sudoku: ", "Please solve:\n", "solve ",
    "Puzzle: ", "puzzle:\n", "Solve:\n", "Can you solve this?\n", "Fill in the grid:\n", "Please solve this sudoku:\n",
    "Here is a sudoku:\n", "sudoku\n", "Help me with this:\n", "Solve it\n", "Hi! Solve this:\n",
    "What is the answer?\n",
)  # fmt: skip
LONG_PHRASES = (
    *SHORT_PHRASES,
    "Please solve the following Sudoku puzzle and give me the completed grid:\n\n",
    "Can you solve this Sudoku for me? Empty cells are shown as dots or zeros.\n",
    "I am stuck on this one, could you finish it?\n",
    "Solve this 9x9 Sudoku. Answer with nine lines of nine digits.\n",
    "Here is today's puzzle from the newspaper:\n",
    "Fill in the missing digits so that every row, column and box holds 1 to 9:\n\n",
)
SUFFIXES = ("", "", "", "", "\n", "?", "\nThanks!", "\nThank you", "\nplease", "\nSolve it.", " solve")
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You solve Sudoku puzzles.",
    "Answer with the solved grid only.",
    "You are Easel, a small model that solves Sudoku.",
    "Be brief.",
)
RULES = ("---+---+---", "------+-------+------", "- - - + - - - + - - -", "-----------", "---------------------")


def _lines(cells: list[Piece], between: str = "", stack: str = "") -> list[list[Piece]]:
    """Nine lines of pieces: `between` neighbours, `stack` in place of it at the two stack edges."""
    rows: list[list[Piece]] = []
    for r in range(9):
        row: list[Piece] = []
        for c in range(9):
            if c:
                row.append(stack if stack and c % 3 == 0 else between)
            row.append(cells[9 * r + c])
        rows.append(row)
    return rows


def _joined(rows: list[list[Piece]], newline: str = "\n") -> list[Piece]:
    out: list[Piece] = []
    for row in rows:
        out += [*([newline] if out else []), *row]
    return out


def bare(cells: list[Piece]) -> list[Piece]:
    """81 characters."""
    return list(cells)


def nine_lines(cells: list[Piece]) -> list[Piece]:
    return _joined(_lines(cells))


def separated(rng: random.Random, cells: list[Piece]) -> list[Piece]:
    """One of the notations with separators, at most 337 characters."""
    kind = rng.randrange(7)
    if kind == 0:  # spaces or commas between cells, in lines or on one line
        return _joined(_lines(cells, rng.choice((" ", " ", ",", ", ", "\t"))), rng.choice(("\n", "\n", "\n", " ", ",")))
    if kind == 1:  # bands apart
        rows = _lines(cells, "", rng.choice((" ", "|", "")))
        return _joined([*rows[:3], [""], *rows[3:6], [""], *rows[6:]])
    if kind == 2:  # a rule between bands
        between, stack, rule = rng.choice(
            (("", "|", RULES[0]), (" ", " | ", RULES[1]), (" ", " | ", RULES[4]), ("", "|", RULES[3]))
        )
        rows = _lines(cells, between, stack)
        return _joined([*rows[:3], [rule], *rows[3:6], [rule], *rows[6:]])
    if kind == 3:  # a box around it
        plus, bar = rng.choice(((("+-------+-------+-------+"), "| "), ("+---+---+---+", "|")))
        spaced = len(plus) > 13
        rows = _lines(cells, " " if spaced else "", " | " if spaced else "|")
        rows = [[bar, *row, bar[::-1]] for row in rows]
        edge: list[list[Piece]] = [[plus]]
        return _joined([*edge, *rows[:3], *edge, *rows[3:6], *edge, *rows[6:], *edge])
    if kind == 4:  # a list of lists
        gap = rng.choice(("", "\n"))
        rows = [["[", *row, "]"] for row in _lines(cells, ",")]
        return ["[", *_joined(rows, "," + gap), "]"]
    if kind == 5:  # stacks apart, lines kept
        return _joined(_lines(cells, rng.choice(("", " ")), rng.choice(("|", " | ", "  "))))
    return _joined(_lines(cells), rng.choice((" ", ",", "/", "|", "\n\n")))  # rows on one line


@dataclass(frozen=True)
class Templates:
    """Prompts waiting for puzzles: entries [n, length] (below zero: -1 - cell reference), pad tokens on the left, and
    the token that stands for an empty cell."""

    entries: NDArray[np.int16]
    pad: NDArray[np.int32]
    empty: NDArray[np.int16]


def _ids(pieces: list[Piece]) -> list[int]:
    out: list[int] = []
    for piece in pieces:
        out += [-1 - piece] if isinstance(piece, int) else encode_text(piece)
    return out


def _turn(role: str, ids: list[int]) -> list[int]:
    return [TURN_OPEN, *encode_text(f"{role}\n"), *ids, TURN_CLOSE, *encode_text("\n")]


def chat_ids(content: list[int], before: list[int] | None = None) -> list[int]:
    """Prompt of one user turn; `before` holds the turns that precede it."""
    return [BOS, *(before or []), *_turn("user", content), TURN_OPEN, *encode_text("model\n")]


def cells_from(start: int) -> list[Piece]:
    return list(range(start, start + 81))


def _template(rng: random.Random, length: int) -> list[int]:
    long = length > SHORT
    cells = cells_from(PUZZLE)
    roll = rng.random()
    if long and roll < 0.75:
        grid = separated(rng, cells)
    elif rng.random() < 0.6:
        grid = bare(cells)
    else:
        grid = nine_lines(cells)
    prefix: Piece = rng.choice(LONG_PHRASES if long else SHORT_PHRASES) if rng.random() < 0.45 else ""
    suffix: Piece = rng.choice(SUFFIXES) if prefix and rng.random() < 0.5 else ""
    content = _ids([prefix, *grid, suffix])
    if rng.random() < 0.25:  # a raw completion
        return [BOS, *content, *encode_text(rng.choice(("", "\n", "\n", "\n\n")))]
    while content[-1] == BYTE_OFFSET + 10:  # the chat template trims
        content.pop()
    before: list[int] = []
    if long and rng.random() < 0.2:
        before += _turn("system", encode_text(rng.choice(SYSTEM_PROMPTS)))
    if long and rng.random() < 0.2:
        earlier = rng.choice((bare, nine_lines))(cells_from(EARLIER))
        before += _turn("user", _ids(earlier))
        before += _turn("model", _ids(nine_lines(cells_from(EARLIER_SOLUTION))))
    return chat_ids(content, before)


def templates(seed: int, count: int, length: int) -> Templates:
    """`count` random prompts of at most `length` tokens, padded on the left."""
    rng = random.Random(seed)
    entries = np.full((count, length), PAD, np.int16)
    pad, empty = np.zeros(count, np.int32), np.zeros(count, np.int16)
    for i in range(count):
        ids = _template(rng, length)
        while len(ids) > length:
            ids = _template(rng, length)
        pad[i] = length - len(ids)
        entries[i, pad[i] :] = ids
        empty[i] = BYTE_OFFSET + ord(rng.choice(".....0000_*"))
    return Templates(entries, pad, empty)


def padded(prompts: list[list[int]], length: int) -> tuple[NDArray[np.int16], NDArray[np.int32]]:
    """Token ids [n, length] padded on the left, and the padding [n]. Raises ValueError for a prompt that is longer."""
    ids, pad = np.full((len(prompts), length), PAD, np.int16), np.zeros(len(prompts), np.int32)
    for i, prompt in enumerate(prompts):
        if len(prompt) > length:
            raise ValueError(f"prompt {i} has {len(prompt)} tokens, more than {length}")
        pad[i] = length - len(prompt)
        ids[i, pad[i] :] = prompt
    return ids, pad


def puzzle_text(puzzle: NDArray[np.uint8], empty: str = ".") -> str:
    """81 characters."""
    return "".join(empty if c == 0 else str(c) for c in puzzle.tolist())


def answer_text(solution: NDArray[np.uint8]) -> str:
    """Nine lines of nine digits."""
    digits = "".join(str(c) for c in solution.tolist())
    return "\n".join(digits[9 * r : 9 * r + 9] for r in range(9))


def canvas_ids(text: str) -> list[int]:
    """The canvas that answers with `text`: the turn's end, then <eos> to the end.

    Raises:
        ValueError: the text does not fit.
    """
    ids = [*encode_text(text), TURN_CLOSE]
    if len(ids) > CANVAS:
        raise ValueError(f"an answer of {len(ids)} tokens does not fit a canvas of {CANVAS}")
    return ids + [EOS] * (CANVAS - len(ids))


def answer_layout() -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """The canvas [96] of an answer with zeros at cells, and the cell of each position (-1 where there is none)."""
    ids = np.array(canvas_ids(answer_text(np.ones(81, np.uint8))), np.int16)
    cell = np.full(CANVAS, -1, np.int16)
    for r in range(9):
        cell[10 * r : 10 * r + 9] = np.arange(9 * r, 9 * r + 9)
    ids[cell >= 0] = 0
    return ids, cell

"""What a terminal gets: colours by entropy, marks with a shape, and never a character that does something."""

from __future__ import annotations

import io
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from easel.chat import drawing
from easel.chat.board import broken, conflicts, read_answer, read_puzzle
from easel.chat.canvas import Answer, Canvas, Cell
from easel.chat.plain_text import JOINERS, KEPT, one_line, safe
from tests.unit.chat.recorded import PUZZLE, states

HOSTILE = "\x1b]0;taken\x07\x1b[2Jx\u202ey\x9b31m\r[red]not markup[/red]"


def printed(text: object, width: int = 80) -> str:
    """As a terminal with colours gets it."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system="truecolor", width=width, markup=False, emoji=False)
    console.print(text)
    return out.getvalue()


@given(st.text())
def test_no_text_does_anything(text: str) -> None:
    allowed = KEPT | JOINERS
    assert all(c in allowed or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in safe(text))
    assert not {"\n", "\t"} & set(one_line(text))


def test_escapes_and_markup_from_a_model_stay_text() -> None:
    cells = tuple(Cell(1, character, 3.0, False) for character in HOSTILE)
    for answer in (Answer(text=HOSTILE), Answer(canvas=Canvas(0, 1, cells))):
        out = printed(drawing.draw_answer(answer, 200, 20), 200)
        assert "\x1b]" not in out
        assert "\x1b[2J" not in out
        assert not {"\x07", "\u202e", "\x9b", "\r"} & set(out)
    assert "[red]not markup[/red]" in printed(drawing.draw_answer(Answer(text=HOSTILE), 200, 20), 200)


def test_colour_is_entropy_and_changes_are_underlined() -> None:
    quiet, loud = Cell(1, "a", 0.0, True), Cell(1, "a", 3.0, False)
    assert drawing.style(quiet) == ""
    assert drawing.NOISY in drawing.style(loud)
    looks = [drawing.style(Cell(1, "a", entropy, True)) for entropy in (0, 0.05, 0.3, 0.7, 1.5, 9)]
    assert len(set(looks)) == len(looks)
    assert drawing.style(Cell(1, "a", 0, True, flips=1)) == "underline"
    assert drawing.style(Cell(1, "a", 0, True, flips=1, moved=True)) == "underline bold"
    assert drawing.style(Cell(1, "a", 3, True, flips=1, moved=True), done=True) == ""


@given(st.lists(st.sampled_from(["a", "wörd", "漢字", "\n", "<turn|>", "", "🦊"]), max_size=60), st.integers(8, 40))
def test_a_canvas_never_wraps_by_itself(tokens: list[str], width: int) -> None:
    canvas = Canvas(0, 1, tuple(Cell(1, text, 1.0, True) for text in tokens))
    lines = drawing.draw_canvas(canvas, width)
    assert all(cell_len(line.plain) <= width for line in lines)
    assert "".join(line.plain for line in lines) == "".join(drawing.glyph(text) for text in tokens)


def test_a_long_answer_shows_its_end() -> None:
    lines = drawing.draw_answer(Answer(text="\n".join(map(str, range(100)))), 80, 10).plain.split("\n")
    assert len(lines) <= 10
    assert lines[-2] == "99"


def test_a_recorded_solve_fills_the_board_and_keeps_the_givens() -> None:
    boards = [drawing.draw_board(PUZZLE, answer).plain for answer in states("sudoku")]
    assert len(set(boards)) >= 4
    digits = ["".join(c for c in board if c in "123456789·") for board in boards]
    assert all(len(board) == 81 for board in digits)
    for board in digits:
        assert all(given in (".", cell) for given, cell in zip(PUZZLE, board, strict=True))
    assert digits[0] == PUZZLE.replace(".", "·")
    assert "!" not in boards[-1]
    assert any("!" in board for board in boards), "the model was never wrong on its way"


def test_an_answer_that_changes_a_given_is_marked() -> None:
    good = states("sudoku")[-1].text
    bad = good.replace("5", "x").replace("6", "5").replace("x", "6")
    digits = read_answer(bad)
    assert digits
    assert not conflicts(digits)
    wrong = broken(PUZZLE, digits)
    assert wrong == {index for index, given in enumerate(PUZZLE) if given in "56"}
    assert drawing.draw_board(PUZZLE, Answer(text=bad)).plain.count("!") == len(wrong)


@pytest.mark.parametrize(
    ("text", "puzzle"),
    [
        (PUZZLE, PUZZLE),
        (PUZZLE.replace(".", "0"), PUZZLE),
        ("\n".join(PUZZLE[9 * i : 9 * i + 9].replace(".", "_") for i in range(9)), PUZZLE),
        (PUZZLE[:-1], None),
        (PUZZLE[:-1] + "x", None),
        ("", None),
    ],
)
def test_puzzles_are_read_as_people_write_them(text: str, puzzle: str | None) -> None:
    assert read_puzzle(text) == puzzle

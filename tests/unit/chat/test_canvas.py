"""Canvases and figures of an answer, from recorded streams."""

from __future__ import annotations

import pytest

from easel.chat.board import on_board, read_answer, verdict
from easel.chat.canvas import Answer, Canvas
from easel.evals.sudoku import solves
from tests.unit.chat.recorded import PUZZLE, events, states


def change(position: int, token: int, text: str, entropy: float = 0.0) -> dict[str, object]:
    return {"position": position, "token_id": token, "text": text, "entropy": entropy, "accepted": True}


def progress(*changes: dict[str, object], step: int = 1, committed: bool = False) -> dict[str, object]:
    return {"choice": 0, "canvas": 0, "step": step, "canvas_length": 4, "committed": committed, "changes": changes}


def test_a_recorded_solve_ends_in_the_solution_and_its_figures() -> None:
    seen = states("sudoku")
    last = seen[-1]
    assert solves(PUZZLE, last.text)
    assert verdict(PUZZLE, last.text).startswith("Solved")
    assert last.canvas is None
    committed = next(answer for answer in seen if answer.canvas and answer.canvas.committed)
    assert committed.canvas
    assert [cell and cell.text for cell in on_board(committed.canvas)] == read_answer(last.text)
    usage = events("sudoku")[-1]["usage"]
    assert [len(last.steps), sum(last.steps)] == [usage["easel"]["canvases"], usage["easel"]["denoising_steps"]]
    assert f"{usage['completion_tokens'] / sum(last.steps):.1f} tokens per forward" in last.statistics()
    assert "1 canvas · " in last.statistics()
    assert last.first_s is not None


def test_what_is_committed_replays_to_the_text() -> None:
    for name in ("sudoku", "words"):
        seen = states(name)
        text = "".join(
            cell.text
            for answer in seen
            if (canvas := answer.canvas) and canvas.committed
            for cell in canvas.cells[: canvas.tokens]
            if cell and not cell.text.startswith("<")
        )
        assert text.rstrip("\n") == seen[-1].text.rstrip("\n")


def test_a_position_that_changes_its_mind_is_marked_once_it_does() -> None:
    canvas = Canvas.blank(0, 4)
    first = canvas.revised(progress(change(0, 7, "a"), change(9, 7, "outside")))
    second = first.revised(progress(change(0, 8, "b"), change(1, 7, "a"), step=2))
    third = second.revised(progress(change(0, 8, "b", 0.5), step=3))
    told = [[(cell.text, cell.flips, cell.moved) if cell else None for cell in c.cells] for c in (first, second, third)]
    assert told == [
        [("a", 0, False), None, None, None],
        [("b", 1, True), ("a", 0, False), None, None],
        [("b", 1, False), ("a", 0, False), None, None],
    ]
    assert canvas.cells == (None,) * 4


def test_other_choices_and_unknown_events_change_nothing() -> None:
    answer = Answer()
    answer.take({"choices": [{"index": 1, "delta": {"content": "no"}}]}, 0.1)
    answer.take({"choices": [], "easel": {"progress": progress() | {"choice": 1}}}, 0.2)
    answer.take({"choices": [], "usage": None}, 0.3)
    assert (answer.text, answer.canvas, answer.states, answer.seconds) == ("", None, 0, 0.3)


@pytest.mark.parametrize(("finish", "said"), [("stop", False), ("length", True), ("deadline", True)])
def test_statistics_say_why_it_ended_where_that_is_not_usual(finish: str, said: bool) -> None:
    assert (f"ended by {finish}" in Answer(steps=[3], stops=["step_cap"], finish=finish).statistics()) is said
    assert "step cap" in Answer(steps=[3], stops=["step_cap"]).statistics()

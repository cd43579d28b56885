"""The judge of Sudoku answers, and the run against a service that answers what the test says."""

from __future__ import annotations

import json

import httpx
import pytest

from easel.evals import sudoku
from easel.evals.sudoku import Answer, as_json, held_out, report, run, solves

SOLVED = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"
PUZZLE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"


def lines(cells: str) -> str:
    return "\n".join(cells[i : i + 9] for i in range(0, 81, 9))


def test_accepts_the_solution_in_lines_or_in_one() -> None:
    assert solves(PUZZLE, SOLVED)
    assert solves(PUZZLE, lines(SOLVED) + "\n")
    assert solves(PUZZLE.replace(".", "0"), lines(SOLVED))


@pytest.mark.parametrize(
    "text",
    [
        "",
        SOLVED[:-1],
        SOLVED + "1",
        "I cannot.",
        SOLVED.replace("5", "x"),
        SOLVED[1] + SOLVED[0] + SOLVED[2:],
        SOLVED.translate(str.maketrans("123456789", "912345678")),
    ],
    ids=["empty", "short", "long", "prose", "letters", "column", "other givens"],
)
def test_refuses_everything_else(text: str) -> None:
    assert not solves(PUZZLE, text)


def test_a_grid_with_good_rows_and_columns_still_needs_good_boxes() -> None:
    shifted = "".join("".join(str((r + c) % 9 + 1) for c in range(9)) for r in range(9))
    assert not solves("." * 81, shifted)


def test_held_out_puzzles_are_what_they_are_said_to_be() -> None:
    bands = held_out()
    assert {band: len(puzzles) for band, puzzles in bands.items()} == {"45-60": 1000, "32-44": 1000, "24-31": 1000}
    for band, puzzles in bands.items():
        low, high = map(int, band.split("-"))
        assert all(len(p) == 81 and low <= 81 - p.count("0") <= high for p in puzzles)
    assert len({p for puzzles in bands.values() for p in puzzles}) == 3000
    assert [len(puzzles) for puzzles in held_out(7).values()] == [7, 7, 7]


def service(request: httpx.Request) -> httpx.Response:
    """Solves by looking up; knows one puzzle only."""
    if request.url.path == "/v1/models":
        return httpx.Response(200, json={"data": [{"id": "m"}]})
    body = json.loads(request.content)
    assert body["model"] == "m"
    if body["messages"][0]["content"].startswith("2"):
        return httpx.Response(503, json={"error": {}})
    tier = body.get("easel", {}).get("tier", "balanced")
    if tier == "slow":
        return httpx.Response(400, json={"error": {"message": "Invalid value: 'slow'."}})
    own = {"denoising_steps": 4, "canvases": 1, "tier": tier, "stops": {"converged": 1}}
    usage = {"completion_tokens": 89, "easel": own}
    return httpx.Response(200, json={"choices": [{"message": {"content": lines(SOLVED)}}], "usage": usage})


async def test_asks_every_puzzle_and_counts_honestly(monkeypatch: pytest.MonkeyPatch) -> None:
    puzzles = {"easy": [PUZZLE, PUZZLE.replace("5", "4", 1)], "hard": ["2" + "." * 80]}
    monkeypatch.setattr(sudoku, "held_out", lambda limit: puzzles)
    client = httpx.AsyncClient(transport=httpx.MockTransport(service), base_url="http://easel")
    seen: list[Answer] = []
    answers = await run("http://easel", None, on_answer=seen.append, client=client)
    easy, hard = report(answers)
    assert (easy.puzzles, easy.solved, easy.solve_rate, easy.steps_per_canvas, easy.errors) == (2, 1, 0.5, 4, 0)
    assert easy.tokens_per_forward == pytest.approx(89 / 4)
    assert (hard.solved, hard.errors) == (0, 1)
    assert (easy.stops, hard.stops) == ({"converged": 2}, {})
    assert {answer.tier for answer in answers} == {"balanced", ""}
    assert len(seen) == 3
    assert json.loads(as_json(answers))["bands"][0]["band"] == "easy"


@pytest.mark.parametrize(("tier", "used", "error"), [("fast", "fast", ""), ("slow", "", "Invalid value: 'slow'.")])
async def test_asks_with_a_tier(monkeypatch: pytest.MonkeyPatch, tier: str, used: str, error: str) -> None:
    monkeypatch.setattr(sudoku, "held_out", lambda limit: {"easy": [PUZZLE]})
    client = httpx.AsyncClient(transport=httpx.MockTransport(service), base_url="http://easel")
    (answer,) = await run("http://easel", None, client=client, tier=tier)
    assert (answer.tier, answer.error, answer.solved) == (used, error, not error)


@pytest.mark.parametrize(
    ("status", "content", "error"),
    [
        (404, {"error": {"message": "The model 'm' does not exist."}}, "The model 'm' does not exist."),
        (502, "bad gateway", "HTTP 502"),
        (307, {"error": {"message": ""}}, "HTTP 307"),
        (200, [], "TypeError"),
        (200, {"choices": [{"message": {"content": SOLVED}}], "usage": None}, "AttributeError"),
        (200, {"choices": [{"message": {"content": SOLVED}}], "usage": {}}, "KeyError"),
    ],
)
async def test_whatever_comes_back_is_an_answer(
    monkeypatch: pytest.MonkeyPatch, status: int, content: object, error: str
) -> None:
    """Or one odd answer of thousands would take all others along."""
    monkeypatch.setattr(sudoku, "held_out", lambda limit: {"easy": [PUZZLE]})
    transport = httpx.MockTransport(lambda request: httpx.Response(status, json=content))
    client = httpx.AsyncClient(transport=transport, base_url="http://easel")
    (answer,) = await run("http://easel", "m", client=client)
    assert answer.error.startswith(error)
    assert not answer.solved

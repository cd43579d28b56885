"""What the bench of tiers says of requests that got no answer."""

from __future__ import annotations

from collections import Counter

import httpx

from easel.evals.sudoku import Answer
from ops.benches.tiers import solve, summed


async def test_errors_are_counted_by_what_they_say_in_the_order_in_which_they_came() -> None:
    texts = ["Too much work.", "Going down.", "Too much work."]

    def answer(request: httpx.Request) -> httpx.Response:
        if texts:
            return httpx.Response(503, json={"error": {"message": texts.pop(0)}})
        return httpx.Response(200, json={"choices": [{"message": {"content": ""}}], "usage": {"completion_tokens": 1}})

    errors = Counter[str]()
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://service") as http:
        answers = await solve(http, "model", ["fast", "balanced"], 1, 1, errors)
    assert list(errors.items()) == [("Too much work.", 2), ("Going down.", 1)]
    assert [sum(bool(one.error) for one in found) for found in answers.values()] == [1, 2]


def test_times_are_compared_within_a_band_also_where_an_answer_failed() -> None:
    def of(seconds: list[float], failed: int | None = None) -> list[Answer]:
        bands = ["45-60", "45-60", "24-31"]
        return [
            Answer(band, "", False, took, error="refused" if place == failed else "")
            for place, (band, took) in enumerate(zip(bands, seconds, strict=True))
        ]

    found = summed({"balanced": of([1.0, 1.0, 1.0]), "fast": of([0.5, 0.5, 0.25], failed=0)}, "balanced")
    assert {band: one["seconds_to_default"] for band, one in found["fast"]["bands"].items()} == {
        "45-60": 0.5,
        "24-31": 0.25,
    }

"""What the bench of tiers says of requests that got no answer."""

from __future__ import annotations

from collections import Counter

import httpx

from ops.benches.tiers import solve


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

"""What the load driver makes of answers: windows that lose and invent nothing, errors told apart."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest

from ops.benches.streams import (
    Answer,
    Load,
    gaps_between,
    one,
    percentile,
    split,
    summary,
    tokens_between,
    tokens_made_between,
)


def answer(began: float, *chunks: float, **more: object) -> Answer:
    """One that got 256 tokens a chunk."""
    made = Answer(began, chunks[-1] if chunks else began, list(chunks), 256 * len(chunks), 512, len(chunks))
    return replace(made, **more)  # type: ignore[arg-type]


def answers(count: int = 40, seed: int = 0) -> list[Answer]:
    random = Random(seed)
    made = []
    for _ in range(count):
        at = began = random.uniform(0, 50)
        chunks = []
        for _ in range(random.randrange(1, 9)):
            at += random.uniform(0.1, 2)
            chunks.append(at)
        made.append(answer(began, *chunks))
    return made


@pytest.mark.parametrize("streams", [1, 2, 16, 17, 64, 513])
def test_clients_share_the_streams_and_no_prompt(streams: int) -> None:
    parts = split(Load("http://x/v1", streams, 1.0))
    assert sum(part.streams for part in parts) == streams
    assert all(part.streams for part in parts)
    assert len({part.seed for part in parts}) == len(parts)


@pytest.mark.parametrize("count", [tokens_between, tokens_made_between])
def test_windows_side_by_side_hold_every_token_once(count: object) -> None:
    made = answers()
    edges = [0.0, 3.3, 10.0, 10.1, 40.0, 100.0]
    parts = [count(made, a, b) for a, b in pairwise(edges)]  # type: ignore[operator]
    assert sum(parts) == pytest.approx(sum(one.tokens for one in made))


@pytest.mark.parametrize("window", [(10.0, 20.0), (10.4, 19.7), (3.14, 4.0)])
def test_a_steady_load_has_one_rate_whatever_the_window(window: tuple[float, float]) -> None:
    """Eight streams whose canvases all end at once, every second: at a window's edge stand 2,048 tokens or none."""
    made = [answer(4.0 * i, *(4.0 * i + j for j in (1, 2, 3, 4))) for i in range(10) for _ in range(8)]
    start, end = window
    assert tokens_made_between(made, *window) == pytest.approx(8 * 256 * (end - start))


def test_a_broken_answer_counts_by_its_chunks() -> None:
    broken = answer(0.0, 1.0, 2.0, tokens=0, error="engine_failed")
    assert tokens_between([broken], 0.0, 1.5) == 256
    assert tokens_between([broken], 0.0, 9.0, chunk_tokens=1) == 2


def test_a_gap_belongs_to_the_window_in_which_it_ends() -> None:
    made = [answer(0.0, 1.0, 2.5, 3.0), answer(0.0, 2.0)]
    assert gaps_between(made, 0.0, 2.6) == [1.5]
    assert gaps_between(made, 2.6, 9.0) == [0.5]


def test_says_what_failed_and_whether_anything_had_come() -> None:
    made = [
        answer(1.0, 2.0, 3.0, steps=32),
        answer(1.0, 2.0, tokens=0, error="engine_failed"),
        answer(1.0, error="overloaded"),
        answer(1.0, error="overloaded"),
        answer(11.0, error="began after the window"),
    ]
    found = summary(made, 0.0, 10.0)
    assert found["asked"] == 4
    assert found["failed"] == {"engine_failed": 1, "overloaded": 2}
    assert found["failed_before_any_text"] == 2
    assert (found["canvases_a_request"], found["steps_a_canvas"]) == (2.0, 16.0)
    assert (found["requests_ended"], found["chunks"]) == (1, 3)
    assert found["first_chunk_p50_s"] == 1.0


async def test_a_refusal_is_told_in_the_servers_words() -> None:
    openai = pytest.importorskip("openai")
    httpx = pytest.importorskip("httpx")

    def refuse(request: object) -> object:
        return httpx.Response(400, json={"error": {"message": "no seed for diffusion", "code": "invalid_value"}})

    http = httpx.AsyncClient(transport=httpx.MockTransport(refuse))
    async with openai.AsyncOpenAI(base_url="http://x/v1", api_key="k", max_retries=0, http_client=http) as client:
        refused = await one(client, Load("http://x/v1", 1, 1.0), 7)
    assert refused.error == "invalid_value"
    found = summary([refused], 0.0, refused.ended + 1)
    assert found["failed"] == {"invalid_value": 1}
    assert "no seed for diffusion" in found["first_error"]


def test_a_service_that_tells_no_canvases_has_none() -> None:
    found = summary([answer(0.0, 1.0, canvases=None, steps=None)], 0.0, 2.0)
    assert found["canvases_a_request"] is None
    assert found["steps_a_canvas"] is None


def test_percentiles_are_of_what_there_is() -> None:
    assert percentile([], 0.99) is None
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([3.0, 1.0, 2.0], 1.0) == 3.0


def test_tokens_without_text_are_counted_by_the_usage_of_what_ended() -> None:
    made = [
        answer(0.0, tokens=1024, ended=4.0),
        answer(4.0, tokens=512, ended=9.0),
        answer(9.0, tokens=512, ended=12.0),
    ]
    seen = summary(made, 0.0, 10.0)
    assert seen["tokens_per_s"] == 0.0
    assert seen["ended_tokens_per_s"] == 153.6

"""A service's answers as this client takes them: events, errors in its words, streams that are cut, keys."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from easel.chat.asking import ask
from easel.chat.service import Served, Service, ServiceFailure
from easel.errors import ConfigurationError
from tests.unit.chat.recorded import PUZZLE, events, raw


def service(answer: Callable[[httpx.Request], httpx.Response], key: str | None = None) -> Service:
    return Service("http://easel.test/v1/", key, httpx.MockTransport(answer))


def streaming(content: bytes) -> Service:
    return service(lambda request: httpx.Response(200, content=content))


async def test_a_recorded_stream_is_shown_state_by_state() -> None:
    shown: list[int] = []
    answer = await ask(streaming(raw("sudoku")), "/x", {}, lambda answer: shown.append(answer.states))
    told = sum("easel" in event for event in events("sudoku") if not event["choices"])
    assert shown == sorted(shown)
    assert shown[-1] == answer.states == told
    assert len(shown) == len(events("sudoku"))
    assert len("".join(answer.text.split())) == len(PUZZLE)


async def test_bodies_and_keys_are_sent() -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, content=b"data: [DONE]\n\n")

    await ask(service(answer, "sesame"), "/v1/chat/completions", {"model": "m"}, lambda answer: None)
    assert str(asked[0].url) == "http://easel.test/v1/chat/completions"
    assert asked[0].headers["authorization"] == "Bearer sesame"
    assert json.loads(asked[0].content) == {"model": "m"}


@pytest.mark.parametrize(
    ("status", "content", "said"),
    [
        (400, {"error": {"message": "No.", "code": "invalid_value", "param": "n"}}, "No. (HTTP 400, invalid_value, n)"),
        (401, {"error": {"message": "A key, please.", "code": None, "param": None}}, "A key, please. (HTTP 401)"),
        (502, "Bad gateway", "Bad gateway (HTTP 502)"),
        (500, "", "no reason was given (HTTP 500)"),
        (500, {"error": "just text"}, "just text (HTTP 500)"),
    ],
)
async def test_refusals_are_said_as_they_are(status: int, content: Any, said: str) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    refusing = service(lambda request: httpx.Response(status, text=text))
    with pytest.raises(ServiceFailure) as caught:
        await ask(refusing, "/x", {}, lambda answer: None)
    assert (str(caught.value), caught.value.answered) == (said, status)
    with pytest.raises(ServiceFailure) as caught:
        await refusing.models()
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'data: {"choices": []}\n\n', "cut before the answer ended"),
        (b"", "cut before the answer ended"),
        (b"data: {nonsense\n\n", "no JSON"),
        (b"data: 3\n\n", "no JSON object"),
        (b'data: {"error": {"message": "Fire.", "code": "engine_failed"}}\n\n', "Fire. (engine_failed)"),
        (b'data: {"easel": {"progress": {"choice": 0}}}\n\ndata: [DONE]\n\n', "cannot read"),
        (b'data: {"choices": ["text"]}\n\ndata: [DONE]\n\n', "cannot read"),
    ],
)
async def test_a_stream_that_goes_wrong_is_no_answer(content: bytes, said: str) -> None:
    with pytest.raises(ServiceFailure) as caught:
        await ask(streaming(content), "/x", {}, lambda answer: None)
    assert said in str(caught.value)


async def test_what_came_before_a_failure_was_shown() -> None:
    seen: list[str] = []
    cut = raw("words").split(b"data: [DONE]")[0]
    with pytest.raises(ServiceFailure, match="cut"):
        await ask(streaming(cut), "/x", {}, lambda answer: seen.append(answer.text))
    assert seen[-1].startswith("Send me a Sudoku")


async def test_models_are_listed_and_nonsense_is_named() -> None:
    own = {"tiers": {"fast": {"stability": 0}}, "default_tier": "fast"}
    listing = service(lambda request: httpx.Response(200, json={"data": [{"id": "a", "easel": own}, {"id": "b"}]}))
    assert await listing.models() == [Served("a", {"fast": {"stability": 0}}, "fast"), Served("b")]
    for content in ("<html>", "[]", '{"data": [3]}', '{"data": [{"id": "a", "easel": 3}]}'):
        with pytest.raises(ServiceFailure, match="no list of models"):
            await service(lambda request, content=content: httpx.Response(200, text=content)).models()  # type: ignore[misc]


async def test_nobody_there_is_one_sentence() -> None:
    with pytest.raises(ServiceFailure, match=r"nothing answers at http://127\.0\.0\.1:9"):
        await Service("http://127.0.0.1:9").models()


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x", "http://", "", "http://[::1", "http://x:y", "http://\0"])
def test_what_is_no_address_is_named(url: str) -> None:
    with pytest.raises(ConfigurationError, match="--url"):
        Service(url)


def test_a_key_that_no_header_can_carry_is_named_and_not_shown() -> None:
    with pytest.raises(ConfigurationError, match="--api-key") as caught:
        Service("http://x", "se\nsame")
    assert "same" not in caught.value.message


class Slowly(httpx.AsyncByteStream):
    """A body in pieces that never ends. Says when all of it was taken, and when it was closed."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces
        self.taken, self.closed = asyncio.Event(), asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            yield piece
        self.taken.set()
        await asyncio.Event().wait()

    async def aclose(self) -> None:
        self.closed.set()


async def test_showing_never_slows_reading_and_leaving_closes_the_connection() -> None:
    body = Slowly([part + b"\n\n" for part in raw("words").split(b"\n\n") if part and b"[DONE]" not in part])
    shown: list[int] = []
    endless = service(lambda request: httpx.Response(200, stream=body))
    asking = asyncio.create_task(ask(endless, "/x", {}, lambda a: shown.append(a.states), pace_s=3600))
    await body.taken.wait()  # all was read while the first state is still being shown
    assert shown[-1] <= 1
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert body.closed.is_set()

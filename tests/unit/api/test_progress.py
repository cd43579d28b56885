"""Progress on request: what is asked, what is told, and that everybody else gets what they always got."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from easel.api.choices import Delta
from easel.api.detokenizer import make_token_text
from easel.api.progress import Change, Told
from easel.protocol import CanvasCommitted, CanvasProgress, CanvasStop
from tests.unit.api.edge import Stream, edge, saying, spell
from tests.unit.api.replay import replays

TEXT = "The quick brown fox jumps over the lazy dög."
PROGRESS = {"include_progress": True}
FAST = {"max_progress_hz": 1000.0}


def progress(step: int, tokens: dict[int, int], canvas: int = 0) -> Delta:
    count = len(tokens)
    state = CanvasProgress(canvas, step, tuple(tokens), tuple(tokens.values()), (1.0,) * count, (False,) * count)
    return Delta(0, progress=state)


def committed(*tokens: int, canvas: int = 0) -> Delta:
    event = CanvasCommitted(canvas, tokens, 5, CanvasStop.CONVERGED, 0.0, 1.0, mean_entropy=0.25)
    return Delta(0, "x", True, canvas=event)


def told(client: Told, delta: Delta) -> dict[int, int]:
    revision = client.revision(delta)
    assert revision is not None
    return {change.position: change.token_id for change in revision.changes}


def test_only_what_changed_is_told() -> None:
    client = Told(8, str)
    assert client.revision(Delta(0, "text")) is None
    assert told(client, progress(1, {0: 10, 1: 11, 2: 12})) == {0: 10, 1: 11, 2: 12}
    assert told(client, progress(2, {0: 10, 1: 21})) == {1: 21}  # 0 went away and came back while nobody read
    revision = client.revision(committed(10, 11, 30, 31))
    assert revision is not None
    assert revision.step == 5
    assert revision.changes == tuple(
        Change(position, token, str(token), 0.25, True) for position, token in ((1, 11), (2, 30), (3, 31))
    )


def test_each_canvas_begins_with_nothing_known() -> None:
    client = Told(8, str)
    assert told(client, progress(1, {0: 10})) == {0: 10}
    assert told(client, committed(10)) == {}
    assert told(client, progress(1, {0: 10}, canvas=1)) == {0: 10}
    assert told(client, committed(10, 11, canvas=2)) == {0: 10, 1: 11}  # of canvas 1 the rest was skipped


@pytest.mark.parametrize("route", ["completions", "chat"])
async def test_a_stream_shows_each_canvas_before_its_text(checkpoint: Path, route: str) -> None:
    async with edge(checkpoint, saying(TEXT), api=FAST) as e:
        ask = e.chat if route == "chat" else e.complete
        options = PROGRESS | {"include_usage": True, "progress_hz": 1000}
        stream = Stream.of((await ask(max_tokens=100, stream=True, stream_options=options)).text)
        assert stream.done
        assert e.backend.requests[0].progress_hz == 1000
        shown = [event for event in stream.events if "easel" in event]
        assert {event["object"] for event in shown} == {stream.events[0]["object"]}
        assert all(event["usage"] is None for event in shown)
        [replay] = replays(stream.events).values()
        assert replay.text() == stream.text() == TEXT
        assert replay.committed == 3
        assert replay.states >= 1
        assert len(replay.answer) == stream.events[-1]["usage"]["completion_tokens"]
        first = shown[0]["easel"]["progress"]
        assert list(first) == ["choice", "canvas", "step", "canvas_length", "committed", "changes"]
        assert len(first["changes"]) == 16
        assert list(first["changes"][0]) == ["position", "token_id", "text", "entropy", "accepted"]


async def test_nobody_else_sees_any_of_it(checkpoint: Path) -> None:
    async with edge(checkpoint, saying(TEXT)) as e:
        plain = Stream.of((await e.complete(max_tokens=100, stream=True)).text)
        off = {"include_progress": False, "progress_hz": None}
        also = Stream.of((await e.complete(max_tokens=100, stream=True, stream_options=off)).text)
        assert [len(s.events) for s in (plain, also)] == [4, 4]
        assert [request.progress_hz for request in e.backend.requests] == [None, None]


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"stream_options": PROGRESS}, "stream_options", "only allowed when 'stream' is enabled"),
        ({"hz": 31}, "stream_options.progress_hz", "Expected a value <= 30, but got 31 instead"),
        ({"hz": 0.05}, "stream_options.progress_hz", "Expected a value >= 0.1, but got 0.05 instead"),
        ({"hz": 0}, "stream_options.progress_hz", "Expected a value >= 0.1"),
        ({"hz": "9"}, "stream_options.progress_hz", "expected a number, but got a string"),
        ({"hz": True}, "stream_options.progress_hz", "expected a number, but got a boolean"),
        ({"stream": True, "stream_options": PROGRESS | {"include_progress": 1}}, "stream_options.include_progress", ""),
        ({"stream": True, "stream_options": {"progress_hz": 5}}, "stream_options.progress_hz", "include_progress"),
    ],
)
@pytest.mark.parametrize("route", ["completions", "chat"])
async def test_refusals_name_the_option(
    checkpoint: Path, route: str, body: dict[str, Any], param: str, words: str
) -> None:
    if "hz" in body:
        body = {"stream": True, "stream_options": PROGRESS | {"progress_hz": body["hz"]}}
    async with edge(checkpoint, saying(TEXT)) as e:
        response = await (e.chat if route == "chat" else e.complete)(**body)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == param
        assert words in response.json()["error"]["message"]
        assert not e.backend.requests


@pytest.mark.parametrize(("most", "default"), [(30.0, 10.0), (4.0, 4.0)])
async def test_the_rate_is_ten_or_what_the_settings_allow(checkpoint: Path, most: float, default: float) -> None:
    async with edge(checkpoint, saying(TEXT), api={"max_progress_hz": most}) as e:
        for options in (PROGRESS, PROGRESS | {"progress_hz": most}, PROGRESS | {"progress_hz": 1}):
            assert (await e.complete(stream=True, stream_options=options)).status_code == 200
        assert [request.progress_hz for request in e.backend.requests] == [default, most, 1.0]


async def test_a_stop_string_cuts_text_and_replay_alike(checkpoint: Path) -> None:
    async with edge(checkpoint, saying(TEXT), api=FAST) as e:
        options = PROGRESS | {"include_usage": True}
        response = await e.complete(max_tokens=100, stream=True, stream_options=options, stop=["jumps"])
        stream = Stream.of(response.text)
        [replay] = replays(stream.events).values()
        assert replay.text().endswith("fox jumps")
        assert replay.text("jumps") == stream.text() == "The quick brown fox "
        assert stream.events[-1]["usage"]["completion_tokens"] == len(replay.answer) == len("The quick brown fox jumps")


async def test_a_single_token_is_shown_by_its_text_or_name(checkpoint: Path) -> None:
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    control = frozenset(token for token, text in tokenizer.get_added_tokens_decoder().items() if text.special)
    text = make_token_text(tokenizer, control)
    assert text(106) == "<turn|>"
    assert [text(token) for token in spell("a é")] == ["a", " ", "\ufffd", "\ufffd"]
    assert text(10_000) == ""

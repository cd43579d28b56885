"""DELETE /v1/requests/{id}: what it ends, what its client gets, and whose requests it leaves alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from easel.api.cancelling import Halt, RunningCalls
from easel.engine.fake import FakeEngine, Script
from easel.errors import NotReady
from easel.protocol import CanvasCommitted, Event, GenerationRequest, Started
from easel.telemetry.names import REQUESTS, TENANT_REQUESTS
from tests.unit.api.edge import CANVAS, Edge, EngineBackend, Stream, edge, served, spell, until
from tests.unit.api.test_keys import sha256, write

LETTERS = "abcdefghijklmnopqrstuvwxyz" * 10


class Stalling(EngineBackend):
    """Its answers stop after so many canvases, until they are cancelled. With few `slots` the engine behind is slow, so
    that they stay taken."""

    def __init__(self, canvases: int, slots: int | None = None) -> None:
        steps, step_s = (2, 0.0) if slots is None else (48, 0.02)
        script = Script(answer=lambda request: spell(LETTERS), steps=lambda request, canvas: steps)
        super().__init__(FakeEngine(slots or 8, step_s, 0.0, canvas_length=CANVAS, script=script))
        self.canvases = canvases
        self.stalled = 0

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:  # type: ignore[override]
        committed = 0
        events = super().generate(request)
        try:
            async for event in events:
                if committed == self.canvases and not isinstance(event, Started):
                    self.stalled += 1
                    await asyncio.Event().wait()
                committed += isinstance(event, CanvasCommitted)
                yield event
        finally:
            await events.aclose()  # type: ignore[attr-defined]


async def stalling(canvases: int, slots: int | None = None) -> Stalling:
    backend = Stalling(canvases, slots)
    await backend.engine.start()
    return backend


async def delete(e: Edge, request_id: str, **headers: str) -> httpx.Response:
    return await e.client.delete(f"/v1/requests/{request_id}", headers=headers)


def asking(e: Edge, request_id: str, **body: Any) -> asyncio.Task[httpx.Response]:
    data = {"model": "easel", "prompt": "Hi", "max_tokens": 200} | body
    headers = {"x-request-id": request_id} | body.pop("headers", {})
    data.pop("headers", None)
    return asyncio.create_task(e.client.post("/v1/completions", json=data, headers=headers))


@pytest.mark.parametrize("progress", [False, True])
@pytest.mark.parametrize("canvases", [0, 2])
async def test_what_is_committed_stays_the_answer_whole_and_streamed(
    checkpoint: Path, canvases: int, progress: bool
) -> None:
    backend = await stalling(canvases)
    async with edge(checkpoint, backend=backend) as e:
        options = {"include_usage": True} | ({"include_progress": True} if progress else {})
        calls = [asking(e, "whole"), asking(e, "streamed", stream=True, stream_options=options)]
        await until(lambda: backend.stalled == 2)
        for name in ("whole", "streamed"):
            answer = await delete(e, name)
            assert (answer.status_code, answer.json()) == (200, {"id": name, "object": "request", "cancelled": True})
        whole, streamed = [(await call) for call in calls]
        stream = Stream.of(streamed.text)
    await backend.engine.stop()
    assert backend.busy == 0, "their slots are free"
    body, text = whole.json(), LETTERS[: canvases * CANVAS]
    assert whole.status_code == streamed.status_code == 200
    assert body["choices"][0]["text"] == stream.text() == text
    assert stream.done
    [end] = [choice for event in stream.events for choice in event["choices"] if choice["finish_reason"]]
    for choice in (body["choices"][0], end):
        assert (choice["finish_reason"], choice["easel"]["finish_reason"]) == ("length", "cancelled")
        assert choice["easel"]["canvases"] == [{"denoising_steps": 2, "stop": "converged"}] * canvases
    assert body["usage"] == stream.events[-1]["usage"]
    assert body["usage"]["completion_tokens"] == len(text)


@pytest.mark.parametrize("stream", [False, True])
async def test_what_has_not_begun_fails_with_a_status_of_its_own(checkpoint: Path, stream: bool) -> None:
    backend = await stalling(0, slots=1)
    async with edge(checkpoint, backend=backend) as e:
        running = asking(e, "running")
        await until(lambda: backend.busy == 1)
        waiting = asking(e, "waiting", stream=stream)
        await until(lambda: backend.busy == 2)
        assert (await delete(e, "waiting")).status_code == 200
        answer = await waiting
        assert answer.status_code == 499
        assert answer.json()["error"]["code"] == "request_cancelled"
        assert "retry-after" not in answer.headers
        await until(lambda: backend.busy == 1)
        assert not running.done()
        assert e.recorder.total(REQUESTS, code="request_cancelled") == 1
        assert e.recorder.total(TENANT_REQUESTS, outcome="gone") == 1
        await delete(e, "running")
        await running
    await backend.engine.stop()


@pytest.mark.parametrize("echo", ["", "Hi"])
@pytest.mark.parametrize("stream", [False, True])
async def test_all_choices_of_a_call_end_and_those_that_wait_end_empty(
    checkpoint: Path, stream: bool, echo: str
) -> None:
    backend = await stalling(1, slots=2)
    async with edge(checkpoint, backend=backend) as e:
        call = asking(e, "three", n=3, stream=stream, echo=bool(echo))
        await until(lambda: backend.stalled == 2)
        await delete(e, "three")
        answer = await call
        await until(lambda: backend.busy == 0)
    await backend.engine.stop()
    if stream:
        taken = Stream.of(answer.text)
        assert taken.done
        texts = [taken.text(index) for index in range(3)]
    else:
        texts = [choice["text"] for choice in answer.json()["choices"]]
        assert {choice["easel"]["finish_reason"] for choice in answer.json()["choices"]} == {"cancelled"}
    assert sorted(texts) == [echo, echo + LETTERS[:CANVAS], echo + LETTERS[:CANVAS]]


async def test_the_id_of_the_answer_does_too(checkpoint: Path) -> None:
    backend = await stalling(1)
    async with edge(checkpoint, backend=backend) as e, served(e.app) as url, httpx.AsyncClient() as http:
        body = {"model": "easel", "prompt": "Hi", "max_tokens": 200, "stream": True}
        async with http.stream("POST", f"{url}/v1/completions", json=body) as response:
            lines = response.aiter_lines()
            first = await anext(lines)
            answer_id = Stream.of(first + "\n\n").events[0]["id"]
            assert (await delete(e, answer_id)).status_code == 200
            assert "data: [DONE]" in [line async for line in lines]
        while (await delete(e, answer_id)).status_code == 200:  # the server has not seen yet that all was sent
            await asyncio.sleep(0.005)
        assert (await delete(e, answer_id)).status_code == 404
    await backend.engine.stop()


async def test_ids_that_several_calls_have_end_all_of_them(checkpoint: Path) -> None:
    backend = await stalling(1)
    async with edge(checkpoint, backend=backend) as e:
        calls = [asking(e, "same/id"), asking(e, "same/id"), asking(e, "other")]
        await until(lambda: backend.stalled == 3)
        await delete(e, "same/id")
        assert [(await call).status_code for call in calls[:2]] == [200, 200]
        assert not calls[2].done()
        await delete(e, "other")
        await calls[2]
    await backend.engine.stop()


@pytest.mark.parametrize("request_id", ["never-there", "", "a/b", "%00"])
async def test_an_unknown_id_is_a_404(checkpoint: Path, request_id: str) -> None:
    async with edge(checkpoint) as e:
        answer = await delete(e, request_id)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (404, "request_not_found", "request_id")
        assert (await e.client.get("/v1/requests/x")).status_code == 405


async def test_a_key_cancels_its_own_requests_only(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    write(file, *({"id": name, "sha256": sha256(name), "tenant": "one"} for name in ("ann", "bob")))
    ann, bob = ({"authorization": f"Bearer {name}"} for name in ("ann", "bob"))
    backend = await stalling(1)
    async with edge(checkpoint, backend=backend, api={"keys_file": str(file)}) as e:
        call = asking(e, "hers", headers=ann)
        await until(lambda: backend.stalled == 1)
        assert (await delete(e, "hers")).status_code == 401
        assert (await delete(e, "hers", **bob)).status_code == 404, "not even that it is there is told"
        assert not call.done()
        assert (await delete(e, "hers", **ann)).status_code == 200
        assert (await call).json()["choices"][0]["easel"]["finish_reason"] == "cancelled"
    await backend.engine.stop()


async def test_the_others_are_asked_where_it_is_not_here() -> None:
    asked = []

    async def elsewhere(owner: str, request_id: str) -> bool:
        asked.append((owner, request_id))
        if request_id == "unclear":
            raise NotReady("Ask again.")
        return request_id == "there"

    running = RunningCalls(elsewhere)
    with running.holding("ann", "here", "answer") as halt:
        assert await running.cancel_anywhere("ann", "here")
        assert halt.asked
        assert not asked
        assert not await running.cancel_anywhere("bob", "here")
    assert not running.cancel("ann", "answer")
    assert await running.cancel_anywhere("ann", "there")
    with pytest.raises(NotReady):
        await running.cancel_anywhere("ann", "unclear")
    assert asked == [("bob", "here"), ("ann", "there"), ("ann", "unclear")]


class Items:
    """An iterator that tells whether it was closed."""

    def __init__(self) -> None:
        self.closed = 0

    async def run(self) -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            self.closed += 1


async def test_work_of_a_client_that_reads_nothing_is_closed_too() -> None:
    items, halt = Items(), Halt()
    following = halt.following(items.run())
    assert await anext(following) == 1
    halt.ask()  # nobody waits for the next one
    await until(lambda: items.closed == 1)
    with pytest.raises(StopAsyncIteration):
        await anext(following)
    await following.aclose()
    assert items.closed == 1


async def test_a_task_that_is_cancelled_itself_is_not_taken_for_ended() -> None:
    items, halt = Items(), Halt()
    following = halt.following(items.run())
    await anext(following)
    waiting = asyncio.create_task(anext(following))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert items.closed == 1

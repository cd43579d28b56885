"""The openai SDK without asyncio, as most scripts use it, and every parameter through it: against a real server."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from easel.engine.fake import FakeEngine
from easel.errors import EaselError, QueueFull, RateLimited
from easel.protocol import GenerationRequest
from tests.contract.engines.rows import LENGTH, MESSAGES, PARAMETERS, PROMPT, Seen
from tests.contract.test_openai_sdk import TEXT, Refusing
from tests.unit.api.edge import CANVAS, EngineBackend, edge, saying, served, spell, write_checkpoint
from tests.unit.api.test_cancelling import Stalling
from tests.unit.api.test_thinking import ANSWER, REASONING, THINKING, THOUGHTS


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@contextmanager
def client(checkpoint: Path, backend: Any, **options: Any) -> Iterator[OpenAI]:
    """A client of a server that runs in a thread, over `backend`."""
    loop, stop, address = asyncio.new_event_loop(), asyncio.Event(), []
    started = threading.Event()

    async def serve() -> None:
        await backend.engine.start()
        async with edge(checkpoint, backend=backend) as e, served(e.app) as url:
            address.append(url)
            started.set()
            await stop.wait()
        await backend.engine.stop()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert started.wait(60)
        with OpenAI(base_url=address[0] + "/v1", api_key="none", **options) as made:
            yield made
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def answering(script: Any) -> EngineBackend:
    return EngineBackend(FakeEngine(step_s=0.0, step_s_per_canvas=0.0, canvas_length=CANVAS, script=script))


@pytest.fixture(scope="module")
def sdk(checkpoint: Path) -> Iterator[OpenAI]:
    with client(checkpoint, answering(saying(TEXT))) as made:
        yield made


def test_whole_and_streamed_on_both_routes(sdk: OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "Hello"}]
    chat = sdk.chat.completions.create(model="easel", messages=messages)
    assert chat.choices[0].message.content == TEXT
    parts = sdk.chat.completions.create(model="easel", messages=messages, stream=True)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == TEXT
    whole = sdk.completions.create(model="easel", prompt="Hello", max_tokens=100)
    assert whole.choices[0].text == TEXT
    texts = sdk.completions.create(model="easel", prompt="Hello", max_tokens=100, stream=True)
    assert "".join(part.choices[0].text for part in texts) == TEXT
    with sdk.chat.completions.stream(model="easel", messages=messages) as stream:
        assert [event.type for event in stream][-1] == "content.done"
        assert stream.get_final_completion().choices[0].message.content == TEXT
    assert [model.id for model in sdk.models.list()] == ["easel", "easel/alias"]
    assert sdk.models.retrieve("easel/alias").id == "easel/alias"


def test_raw_responses_have_the_headers(sdk: OpenAI) -> None:
    raw = sdk.completions.with_raw_response.create(
        model="easel", prompt="Hello", max_tokens=100, extra_headers={"X-Request-Id": "mine"}
    )
    assert (raw.status_code, raw.headers["x-request-id"], raw.request_id) == (200, "mine", "mine")
    assert raw.parse().choices[0].text == TEXT
    with sdk.completions.with_streaming_response.create(
        model="easel", prompt="Hello", max_tokens=100, stream=True
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert list(response.iter_lines())[-2:] == ["data: [DONE]", ""]
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.completions.with_raw_response.create(model="easel", prompt="Hello", max_tokens=0)
    assert (refused.value.param, refused.value.code) == ("max_tokens", "invalid_value")
    assert refused.value.request_id


@pytest.mark.parametrize("error", [RateLimited, QueueFull])
@pytest.mark.parametrize("stream", [False, True])
def test_it_waits_as_long_as_it_is_told_and_asks_again(
    checkpoint: Path, error: type[EaselError], stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(openai._base_client.time, "sleep", slept.append)
    backend = Refusing(error("Later.", retry_after_s=3.25), error("Later.", retry_after_s=0.5))
    with client(checkpoint, backend, max_retries=2) as sdk:
        answer: Any = sdk.completions.create(model="easel", prompt="Hello", max_tokens=100, stream=stream)
        text = "".join(part.choices[0].text for part in answer) if stream else answer.choices[0].text
        assert text == TEXT
        assert (backend.calls, slept) == (3, [3.25, 0.5])
        backend.errors = [error("Later.", retry_after_s=3.25)] * 3
        with pytest.raises(openai.APIStatusError) as given_up:
            sdk.completions.create(model="easel", prompt="Hello", stream=stream)
    assert given_up.value.status_code == error.status
    assert isinstance(given_up.value, openai.RateLimitError) is (error is RateLimited)
    assert given_up.value.response.headers["retry-after"] == "4"


def test_a_refusal_is_not_asked_again(checkpoint: Path) -> None:
    backend = answering(saying(TEXT))
    with client(checkpoint, backend, max_retries=2) as sdk, pytest.raises(openai.BadRequestError):
        sdk.completions.create(model="easel", prompt="Hello", suffix="!")
    assert not backend.requests


def test_reasoning_stands_beside_the_content(checkpoint: Path) -> None:
    messages: Any = [{"role": "user", "content": "Hello"}]
    with client(checkpoint, answering(THINKING)) as sdk:
        answer = sdk.chat.completions.create(model="easel", messages=messages, reasoning_effort="low")
        message: Any = answer.choices[0].message
        assert (message.content, message.reasoning_content) == (ANSWER, REASONING)
        assert answer.usage
        assert answer.usage.completion_tokens_details
        assert answer.usage.completion_tokens_details.reasoning_tokens == THOUGHTS
        on = {"chat_template_kwargs": {"enable_thinking": True}}
        deltas = [
            part.choices[0].delta
            for part in sdk.chat.completions.create(model="easel", messages=messages, stream=True, extra_body=on)
        ]
        assert "".join(delta.content or "" for delta in deltas) == ANSWER
        assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == REASONING
        more = [*messages, message, {"role": "user", "content": "More"}]
        assert sdk.chat.completions.create(model="easel", messages=more).choices[0].message.content == ANSWER


def test_a_call_is_cancelled_by_the_id_that_it_was_given(checkpoint: Path) -> None:
    backend = Stalling(1)
    with client(checkpoint, backend, max_retries=2) as sdk, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(
            sdk.completions.create, model="easel", prompt="Hi", max_tokens=200, extra_headers={"X-Request-Id": "mine"}
        )
        while not backend.stalled:
            threading.Event().wait(0.005)
        found: Any = sdk.delete("/requests/mine", cast_to=object)
        assert found == {"id": "mine", "object": "request", "cancelled": True}
        answer: Any = asked.result(60)
        with pytest.raises(openai.NotFoundError, match="No request 'mine'"):
            sdk.delete("/requests/mine", cast_to=object)
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].easel["finish_reason"] == "cancelled"
    assert len(answer.choices[0].text) == CANVAS


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_parameter_gets_through(checkpoint: Path, sdk: OpenAI, name: str) -> None:
    """In the SDK's own arguments where it has one of that name, otherwise in `extra_body`."""
    row = PARAMETERS[name]
    route: Any = sdk.chat.completions if row.chat else sdk.completions
    asked = {"messages": MESSAGES} if row.chat else {"prompt": PROMPT}
    wish: dict[str, Any] = {"model": "easel", "max_tokens": LENGTH, **asked, **row.wish}
    known = set(inspect.signature(route.create).parameters)
    arguments = {key: value for key, value in wish.items() if key in known}
    more = {key: value for key, value in wish.items() if key not in known}
    if wish.get("stream"):
        chunks = list(route.create(**arguments, extra_body=more))
        assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == TEXT[:LENGTH]
        return
    answer = route.with_raw_response.create(**arguments, extra_body=more)
    assert answer.parse().choices
    plain = route.with_raw_response.create(model="easel", max_tokens=LENGTH, **asked)
    assert row.shows(Seen(answer.http_response, plain.http_response, tells_steps=True)), answer.text


def test_the_backend_gets_what_was_asked(checkpoint: Path) -> None:
    backend = answering(saying(TEXT))
    with client(checkpoint, backend) as sdk:
        sdk.completions.create(
            model="easel",
            prompt="Hi",
            max_tokens=7,
            temperature=0.25,
            top_p=0.5,
            seed=9,
            frequency_penalty=0.5,
            presence_penalty=-0.5,
            logit_bias={"200": 5},
            logprobs=2,
            extra_body={"top_k": 4, "min_p": 0.125, "min_tokens": 3, "ignore_eos": True, "easel": {"stability": 2}},
        )
    request: GenerationRequest = backend.requests[0]
    sampling = request.sampling
    assert request.prompt == (2, *spell("Hi"))
    assert (request.max_tokens, request.min_tokens, request.ignore_eos) == (7, 3, True)
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.25, 0.5, 4, 0.125)
    assert (sampling.seed, sampling.frequency_penalty, sampling.presence_penalty) == (9, 0.5, -0.5)
    assert (sampling.logit_bias, sampling.logprobs) == (((200, 5.0),), 2)
    assert request.denoising.stability == 2

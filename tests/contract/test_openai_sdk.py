"""The openai SDK, as users install it, against the edge: in memory and behind a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from easel.engine.fake import FakeEngine, Script
from easel.errors import DeadlineExceeded, EaselError, EngineFailed, QueueFull
from easel.protocol import Event, GenerationRequest
from tests.unit.api.edge import Edge, EngineBackend, edge, saying, served, write_checkpoint

TEXT = "The quick brown fox jumps over the lazy dog."


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@asynccontextmanager
async def sdk(e: Edge, where: str, strict: bool = True) -> AsyncIterator[AsyncOpenAI]:
    """A client. `strict` makes it check every answer against its own models, which have no null for the
    `finish_reason` of a completion's chunk: there OpenAI itself sends one."""
    options: dict[str, Any] = {"api_key": "none", "_strict_response_validation": strict}
    if where == "memory":
        http = httpx.AsyncClient(transport=httpx.ASGITransport(e.app))
        async with AsyncOpenAI(base_url="http://edge/v1", http_client=http, **options) as client:
            yield client
    else:
        async with served(e.app) as url, AsyncOpenAI(base_url=url + "/v1", **options) as client:
            yield client


class Refusing(EngineBackend):
    """Refuses so often, then answers."""

    def __init__(self, *errors: EaselError) -> None:
        super().__init__(FakeEngine(step_s=0.0, script=saying(TEXT)))
        self.errors = list(errors)
        self.calls = 0

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:  # type: ignore[override]
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        async for event in self.engine.generate(request):
            yield event


WHERE = pytest.mark.parametrize("where", ["memory", "server"])


@WHERE
async def test_the_call_of_every_tutorial_works(checkpoint: Path, where: str) -> None:
    async with edge(checkpoint, saying(TEXT)) as e, sdk(e, where) as client:
        answer = await client.completions.create(model="easel", prompt="Hello", max_tokens=500, temperature=0.7)
        assert answer.choices[0].text == TEXT
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage is not None
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
        assert answer.system_fingerprint
        assert answer._request_id


@WHERE
async def test_streams_are_whole(checkpoint: Path, where: str) -> None:
    async with edge(checkpoint, saying(TEXT)) as e, sdk(e, where, strict=False) as client:
        stream = await client.completions.create(model="easel", prompt="Hello", max_tokens=500, stream=True)
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].text for chunk in chunks) == TEXT
        assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, None, None, "stop"]


@WHERE
async def test_chat_streams_are_whole_and_typed(checkpoint: Path, where: str) -> None:
    async with edge(checkpoint, saying(TEXT)) as e, sdk(e, where) as client:
        chat = await client.chat.completions.create(
            model="easel",
            messages=[{"role": "user", "content": "Hello"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in chat]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == TEXT
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[-2].choices[0].finish_reason == "stop"
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == len(TEXT)
        assert all(chunk.usage is None for chunk in chunks[:-1])


@WHERE
async def test_chats_lists_and_choices(checkpoint: Path, where: str) -> None:
    async with edge(checkpoint, saying(TEXT)) as e, sdk(e, where) as client:
        first = await client.chat.completions.create(
            model="easel",
            messages=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
            max_completion_tokens=100,
            stop=["jumps"],
            user="ann",
        )
        assert first.choices[0].message.content == "The quick brown fox "
        # What came back goes into the next request as it is.
        again = await client.chat.completions.create(
            model="easel",
            messages=[
                {"role": "user", "content": "Hello"},
                first.choices[0].message,  # type: ignore[list-item]
                {"role": "user", "content": [{"type": "text", "text": "More"}]},
            ],
            n=2,
        )
        assert [choice.index for choice in again.choices] == [0, 1]
        listed = await client.completions.create(model="easel", prompt=["a", "b"], n=2, max_tokens=100)
        assert [choice.text for choice in listed.choices] == [TEXT] * 4
        tokens = await client.completions.create(model="easel", prompt=[[2, 200], [2, 201]], max_tokens=100)
        assert len(tokens.choices) == 2
        models = [model.id async for model in client.models.list()]
        assert models == ["easel", "easel/alias"]
        assert (await client.models.retrieve("easel")).owned_by == "easel"


@WHERE
@pytest.mark.parametrize("usage", [False, True])
async def test_progress_does_not_disturb_a_loop_over_choices(checkpoint: Path, where: str, usage: bool) -> None:
    options: Any = {"include_progress": True, "progress_hz": 1000, "include_usage": usage}
    fast = {"max_progress_hz": 1000.0}
    async with edge(checkpoint, saying(TEXT), api=fast) as e, sdk(e, where, strict=False) as client:
        messages: Any = [{"role": "user", "content": "Hello"}]
        shown: list[Any] = []
        text = ""
        async for chunk in await client.chat.completions.create(
            model="easel", messages=messages, stream=True, stream_options=options
        ):
            for choice in chunk.choices:
                text += choice.delta.content or ""
            shown += [chunk.easel["progress"]] if hasattr(chunk, "easel") else []  # type: ignore[attr-defined]
        assert text == TEXT
        assert [state["canvas"] for state in shown if state["committed"]] == [0, 1, 2]
        text = ""
        async for part in await client.completions.create(
            model="easel", prompt="Hello", max_tokens=100, stream=True, stream_options=options
        ):
            for answer in part.choices:
                text += answer.text
            shown += [part.easel["progress"]] if hasattr(part, "easel") else []  # type: ignore[attr-defined]
        assert text == TEXT
        assert [state["canvas"] for state in shown if state["committed"]] == [0, 1, 2] * 2
        async with client.chat.completions.stream(model="easel", messages=messages, stream_options=options) as stream:
            async for _ in stream:
                pass
            final = await stream.get_final_completion()
        assert final.choices[0].message.content == TEXT


@WHERE
async def test_the_sdks_own_accumulator_follows_a_stream(checkpoint: Path, where: str) -> None:
    async with edge(checkpoint, saying(TEXT)) as e, sdk(e, where) as client:
        messages: Any = [{"role": "user", "content": "Hello"}]
        async with client.chat.completions.stream(model="easel", messages=messages, n=2) as stream:
            async for _ in stream:
                pass
            final = await stream.get_final_completion()
        assert [choice.message.content for choice in final.choices] == [TEXT, TEXT]


@WHERE
async def test_an_error_inside_a_stream_is_raised(checkpoint: Path, where: str) -> None:
    script = Script(fail=lambda request, canvas: EngineFailed("It broke.") if canvas == 2 else None)
    async with edge(checkpoint, script) as e, sdk(e, where, strict=False) as client:
        stream = await client.completions.create(model="easel", prompt="Hello", max_tokens=100, stream=True)
        seen: list[str] = []
        with pytest.raises(openai.APIError, match="It broke") as caught:
            await collect(stream, seen)
        assert len("".join(seen)) == 32
        assert caught.value.code == "engine_failed"


async def collect(stream: Any, seen: list[str]) -> None:
    async for chunk in stream:
        seen.append(chunk.choices[0].text)


async def test_a_full_service_is_asked_again_when_it_said(checkpoint: Path) -> None:
    backend = Refusing(QueueFull("Full.", retry_after_s=0.02), QueueFull("Full.", retry_after_s=0.02))
    await backend.engine.start()
    async with edge(checkpoint, backend=backend) as e, sdk(e, "server") as client:
        answer = await client.completions.create(model="easel", prompt="Hello", max_tokens=100)
        assert answer.choices[0].text == TEXT
        assert backend.calls == 3
        backend.errors = [QueueFull("Full.", retry_after_s=0.02)] * 3
        with pytest.raises(openai.InternalServerError) as caught:
            await client.completions.create(model="easel", prompt="Hello", stream=True)
        assert caught.value.status_code == 503
        assert caught.value.code == "server_is_overloaded"
        assert caught.value.response.headers["retry-after-ms"] == "20"
        assert backend.calls == 6
    await backend.engine.stop()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_missed_deadline_is_not_asked_again(checkpoint: Path, stream: bool) -> None:
    backend = Refusing(*[DeadlineExceeded("Too late.")] * 3)
    async with edge(checkpoint, backend=backend) as e, sdk(e, "server") as client:
        with pytest.raises(openai.InternalServerError) as caught:
            await client.completions.create(model="easel", prompt="Hello", stream=stream)
        assert caught.value.status_code == 504
        assert caught.value.response.headers["x-should-retry"] == "false"
        assert backend.calls == 1


@WHERE
async def test_each_refusal_is_the_exception_that_users_catch(checkpoint: Path, where: str) -> None:
    async with edge(checkpoint, saying(TEXT)) as e, sdk(e, where) as client:
        with pytest.raises(openai.NotFoundError) as missing:
            await client.completions.create(model="other", prompt="Hello")
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as odd:
            await client.completions.create(model="easel", prompt="Hello", suffix="!")
        assert (odd.value.code, odd.value.param) == ("unsupported_parameter", "suffix")
        image = {"type": "image_url", "image_url": {"url": "data:,"}}
        with pytest.raises(openai.BadRequestError) as picture:
            await client.chat.completions.create(
                model="easel",
                messages=[{"role": "user", "content": [{"type": "text", "text": "?"}, image]}],  # type: ignore[list-item]
            )
        assert picture.value.param == "messages.0.content.1"
        with pytest.raises(openai.BadRequestError) as long:
            await client.completions.create(model="easel", prompt="Hello", max_tokens=10_000)
        assert long.value.code == "context_length_exceeded"
        with pytest.raises(openai.APIStatusError) as image_route:
            await client.images.generate(model="easel", prompt="x")
        assert image_route.value.status_code == 404


async def test_the_synchronous_client_works_too(checkpoint: Path) -> None:
    import asyncio

    def ask(url: str) -> str:
        with OpenAI(base_url=url + "/v1", api_key="none") as client:
            parts = client.completions.create(model="easel", prompt="Hello", max_tokens=100, stream=True)
            return "".join(part.choices[0].text for part in parts)

    async with edge(checkpoint, saying(TEXT)) as e, served(e.app) as url:
        assert await asyncio.to_thread(ask, url) == TEXT

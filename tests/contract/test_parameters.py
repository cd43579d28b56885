"""OpenAI's sampling parameters, asked for with the openai SDK and answered by the native engine with a trained
checkpoint: each changes what it says it changes, and nothing else."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, cast

import httpx
import openai
import pytest

from easel.api.app import create_app
from easel.engine.native.engine import NativeEngine
from easel.protocol import Event, GenerationRequest
from easel.settings import AppSettings
from easel.telemetry.names import STEPS

SETTINGS = AppSettings.model_validate(
    {
        "models": {
            "default": {
                "checkpoint": "embedded:tiny",
                "engine": {"device": "cpu", "threads": 1, "slots": 4, "context_tokens": 512},
            }
        }
    }
)
PROMPT, TEXT = "reverse: abcdefgh\n", "hgfedcba"
WISH: dict[str, Any] = {"model": "easel", "prompt": PROMPT, "max_tokens": 32, "seed": 5}


class Bare:
    """A backend: the engine itself."""

    def __init__(self, engine: NativeEngine) -> None:
        self._engine = engine

    def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
        return self._engine.generate(request)

    async def ready(self) -> str | None:
        return None


@asynccontextmanager
async def sdk() -> AsyncIterator[openai.AsyncOpenAI]:
    engine = NativeEngine(SETTINGS.model.folder, SETTINGS.model.engine)
    await engine.start()
    try:
        transport = httpx.ASGITransport(create_app(SETTINGS, Bare(engine)))
        async with (
            httpx.AsyncClient(transport=transport, base_url="http://easel") as http,
            openai.AsyncOpenAI(base_url="http://easel/v1", api_key="-", max_retries=0, http_client=http) as client,
        ):
            yield client
    finally:
        await engine.stop()


async def complete(client: openai.AsyncOpenAI, **wishes: Any) -> Any:
    return await client.completions.create(**WISH | wishes)


def token(character: str) -> str:
    """Its id in the byte-level tokenizer of the checkpoint."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(SETTINGS.model.folder / "tokenizer.json"))
    [found] = tokenizer.encode(character, add_special_tokens=False).ids
    return str(found)


async def test_the_checkpoint_answers() -> None:
    async with sdk() as client:
        assert (await complete(client)).choices[0].text.strip() == TEXT


@pytest.mark.parametrize("narrow", [{"extra_body": {"top_k": 1}}, {"top_p": 0}, {"extra_body": {"min_p": 1}}])
async def test_draws_from_the_likeliest_token_alone_are_those_of_temperature_zero(narrow: dict[str, Any]) -> None:
    async with sdk() as client:
        cold = await complete(client, temperature=0, prompt="copy: q7\n")
        for temperature in (1.0, 2.0):
            drawn = await complete(client, temperature=temperature, prompt="copy: q7\n", **narrow)
            assert drawn.choices[0].text == cold.choices[0].text
            assert drawn.usage.model_extra["easel"] == cold.usage.model_extra["easel"], "step by step the same"


async def test_a_bias_bans_and_forces() -> None:
    async with sdk() as client:
        banned = await complete(client, logit_bias={token("h"): -100})
        assert "h" not in banned.choices[0].text
        forced = await complete(client, logit_bias={token("z"): 100}, max_tokens=8)
        assert forced.choices[0].text == "zzzzzzzz"


async def test_penalties_hold_from_canvas_to_canvas() -> None:
    """Sixteen tokens a canvas: the first is not touched, the others repeat less, or more."""
    long = {"max_tokens": 96, "temperature": 0, "extra_body": {"ignore_eos": True}, "prompt": "copy: aaaaaaaa\n"}
    async with sdk() as client:
        plain = (await complete(client, **long, logprobs=0)).choices[0].logprobs.tokens
        for name in ("presence_penalty", "frequency_penalty"):
            answers = [
                (await complete(client, **long, **{name: value}, logprobs=0)).choices[0].logprobs.tokens
                for value in (2.0, -2.0)
            ]
            assert [answer[:16] for answer in answers] == [plain[:16]] * 2
            assert len(set(answers[0])) > len(set(answers[1])), name


async def test_streamed_beside_others_is_what_it_is_whole_and_alone() -> None:
    long = {"max_tokens": 48, "extra_body": {"ignore_eos": True}}
    wishes: list[dict[str, Any]] = [
        long | {"presence_penalty": 1.5},
        long | {"frequency_penalty": -1.0, "logit_bias": {token("a"): 2}},
        long | {"top_p": 0.7, "temperature": 1.5},
        {"max_tokens": 48, "extra_body": {"min_tokens": 40, "top_k": 3}},
    ]

    async def streamed(client: openai.AsyncOpenAI, wish: dict[str, Any]) -> str:
        return "".join([chunk.choices[0].text async for chunk in await complete(client, stream=True, **wish)])

    async with sdk() as client:
        alone = [(await complete(client, **wish)).choices[0].text for wish in wishes]
        assert len(set(alone)) == len(alone)
        assert await asyncio.gather(*(streamed(client, wish) for wish in wishes)) == alone


async def test_a_stop_string_wastes_one_canvas_at_most() -> None:
    """Counted in the engine: usage is of what was answered."""
    engine = NativeEngine(SETTINGS.model.folder, SETTINGS.model.engine)
    await engine.start()
    assert engine._parts
    decode, passes, told = engine._parts.runner.run, itertools.count(1), threading.Event()

    def unhurried(plan: Any) -> Any:
        if next(passes) == 15:  # in the second canvas: what the first one says has time to arrive
            told.wait(30)
        return decode(plan)

    class Told(Bare):
        async def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
            try:
                async with aclosing(cast("Any", super().generate(request))) as events:
                    async for event in events:
                        yield event
            finally:
                told.set()

    engine._parts.runner.run = unhurried  # type: ignore[method-assign]
    try:
        backend = Told(engine)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(create_app(SETTINGS, backend)), base_url="http://easel"
        ) as http:
            # Confidence 0: each of thirteen canvases would take all ten steps.
            easel = {"confidence": 0, "max_denoising_steps": 10}
            body = WISH | {"max_tokens": 200, "ignore_eos": True, "stop": TEXT[2:5], "easel": easel}
            answer = (await http.post("/v1/completions", json=body)).json()
            while engine.stats().sequences:
                await asyncio.sleep(0.01)
            assert answer["choices"][0]["text"] == TEXT[:2]
            assert answer["usage"]["easel"]["denoising_steps"] == 10
            assert 10 <= engine.stats().counters[STEPS.name] <= 21, "its own canvas, one more, and that one's commit"
    finally:
        await engine.stop()


async def test_an_answer_ends_no_sooner_than_it_may() -> None:
    async with sdk() as client:
        free = await complete(client)
        longer = await complete(client, extra_body={"min_tokens": 20})
        assert free.usage.completion_tokens < 20 <= longer.usage.completion_tokens
        endless = await complete(client, extra_body={"ignore_eos": True})
        assert (endless.usage.completion_tokens, endless.choices[0].finish_reason) == (32, "length")


async def test_what_only_describes_a_call_changes_nothing() -> None:
    async with sdk() as client:
        plain = await complete(client)
        named = await complete(client, user="me", extra_body={"metadata": {"ticket": "7"}, "safety_identifier": "x"})
        assert named.choices[0].text == plain.choices[0].text


async def test_completions_say_how_likely_each_token_was() -> None:
    async with sdk() as client:
        whole = (await complete(client, logprobs=2)).choices[0]
        plain = (await complete(client)).choices[0]
        assert plain.logprobs is None
        assert whole.text == plain.text
        assert "".join(whole.logprobs.tokens) == whole.text
        assert all(-20 < value <= 0 for value in whole.logprobs.token_logprobs)
        for name, value, top in zip(
            whole.logprobs.tokens, whole.logprobs.token_logprobs, whole.logprobs.top_logprobs, strict=True
        ):
            assert max(top.values()) == top[name] == value, "what was committed is the likeliest"
            assert len(top) == 2
        assert [whole.text[at] for at in whole.logprobs.text_offset] == whole.logprobs.tokens
        tokens, offsets, text = [], [], ""
        async for chunk in await complete(client, logprobs=2, stream=True):
            text += chunk.choices[0].text
            if chunk.choices[0].logprobs:
                tokens += chunk.choices[0].logprobs.tokens
                offsets += chunk.choices[0].logprobs.text_offset
        assert (text, tokens, offsets) == (whole.text, whole.logprobs.tokens, whole.logprobs.text_offset)


async def test_tokens_that_are_no_character_alone_are_named_by_their_bytes() -> None:
    async with sdk() as client:
        told = (await complete(client, prompt="copy: é\n", logprobs=5)).choices[0].logprobs
        assert all(len(top) == 5 for top in told.top_logprobs), "none hides another"
        names = {name for top in told.top_logprobs for name in top}
        assert any(name.startswith("bytes:\\x") for name in names)
        for name, value, top in zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True):
            assert top[name] == value


@pytest.mark.parametrize("stop", ["dc", ["zz", "ed"], "gfedcb"])
async def test_tokens_that_a_stop_string_cuts_off_are_not_told(stop: str | list[str]) -> None:
    async with sdk() as client:
        cut = (await complete(client, stop=stop, logprobs=0)).choices[0]
        assert cut.finish_reason == "stop"
        assert "".join(cut.logprobs.tokens) == cut.text == TEXT[: TEXT.index(stop if isinstance(stop, str) else "ed")]
        streamed = [chunk async for chunk in await complete(client, stop=stop, logprobs=0, stream=True)]
        told = [chunk.choices[0].logprobs for chunk in streamed if chunk.choices[0].logprobs]
        assert [name for one in told for name in one.tokens] == cut.logprobs.tokens


async def test_chats_say_it_with_bytes() -> None:
    messages: Any = [{"role": "user", "content": "copy: abcé"}]
    async with sdk() as client:
        answer = await client.chat.completions.create(
            model="easel", messages=messages, max_tokens=16, seed=1, logprobs=True, top_logprobs=3
        )
        [choice] = answer.choices
        assert choice.logprobs
        assert choice.logprobs.content
        raw = b"".join(bytes(one.bytes or ()) for one in choice.logprobs.content)
        assert raw.decode(errors="replace") == choice.message.content
        assert all(len(one.top_logprobs) == 3 for one in choice.logprobs.content)
        assert all(one.top_logprobs[0].logprob == one.logprob for one in choice.logprobs.content)
        stream = await client.chat.completions.create(
            model="easel", messages=messages, max_tokens=16, seed=1, logprobs=True, top_logprobs=3, stream=True
        )
        told = [one async for chunk in stream for one in _content(chunk)]
        assert [one.model_dump() for one in told] == [one.model_dump() for one in choice.logprobs.content]


def _content(chunk: Any) -> list[Any]:
    return [one for choice in chunk.choices if choice.logprobs for one in choice.logprobs.content]


async def test_an_echo_begins_with_the_prompt() -> None:
    async with sdk() as client:
        plain, echo = await complete(client, n=2), await complete(client, n=2, echo=True)
        assert [one.text for one in echo.choices] == [PROMPT + one.text for one in plain.choices]
        texts = ["", ""]
        async for chunk in await complete(client, n=2, echo=True, stream=True):
            texts[chunk.choices[0].index] += chunk.choices[0].text
        assert texts == [one.text for one in echo.choices]
        ids = [2, *(int(token(character)) for character in "copy: a\n")]
        assert (await complete(client, prompt=ids, echo=True)).choices[0].text.startswith("copy: a\n")


@pytest.mark.parametrize(
    ("wishes", "param", "says"),
    [
        ({"top_p": 1.5}, "top_p", "<= 1"),
        ({"top_k": -2}, "top_k", ">= -1"),
        ({"top_k": 1.5}, "top_k", "an integer"),
        ({"min_p": -0.1}, "min_p", ">= 0"),
        ({"presence_penalty": 3}, "presence_penalty", "<= 2"),
        ({"frequency_penalty": -2.5}, "frequency_penalty", ">= -2"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5", "<= 100"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "'x' is not a token id"),
        ({"logit_bias": {"99999999": 1}}, "logit_bias", "is not a token id"),
        ({"logit_bias": {"5": 1, "05": 2}}, "logit_bias", "twice"),
        ({"logit_bias": {str(i): 1 for i in range(301)}}, "logit_bias", "at most 300"),
        ({"min_tokens": 33}, "min_tokens", "33 is more than the 32"),
        ({"ignore_eos": "yes"}, "ignore_eos", "a boolean"),
        ({"metadata": {"a": 1}}, "metadata.a", "a string"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata", "at most 16"),
        ({"logprobs": 6}, "logprobs", "<= 5"),
        ({"logprobs": 1, "echo": True}, "echo", "encodes a prompt without predicting it"),
        ({"repetition_penalty": 1.1}, "repetition_penalty", "not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"suffix": "!"}, "suffix", "not supported"),
        ({"top_logprobs": 1}, "top_logprobs", "Unknown parameter"),
        ({"presence_penality": 1}, "presence_penality", "Did you mean 'presence_penalty'?"),
    ],
)
async def test_wrong_values_are_refused_by_name(wishes: dict[str, Any], param: str, says: str) -> None:
    async with sdk() as client:
        with pytest.raises(openai.BadRequestError) as refused:
            await complete(client, extra_body=wishes)
    assert refused.value.param == param
    assert says in refused.value.message


@pytest.mark.parametrize(
    ("wishes", "param"),
    [
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 2}, "logprobs"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"echo": True}, "echo"),
    ],
)
async def test_wrong_values_in_a_chat_too(wishes: dict[str, Any], param: str) -> None:
    async with sdk() as client:
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(
                model="easel", messages=[{"role": "user", "content": "a"}], extra_body=wishes
            )
    assert refused.value.param == param

"""The same requests over HTTP on every engine: what a client sees does not depend on what decodes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from easel.api.app import create_app
from easel.capabilities import TABLE, asked_as
from easel.protocol import Engine, Event, GenerationRequest
from tests.contract.engines.conftest import Case
from tests.contract.engines.kinds import BYTE

# transformers' generate imports torch's compiler, which warns about itself.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
on_one_loop = pytest.mark.asyncio(loop_scope="module")

WISH: dict[str, Any] = {"model": "easel", "prompt": "repeat: a canvas holds sixteen bytes and more\n", "max_tokens": 40}


class Bare:
    """A backend: the engine itself."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
        return self._engine.generate(request)

    async def ready(self) -> str | None:
        return None


@asynccontextmanager
async def client(case: Case, **api: Any) -> AsyncIterator[httpx.AsyncClient]:
    settings = case.kind.settings
    settings = settings.model_copy(update={"api": settings.api.model_copy(update=api)})
    transport = httpx.ASGITransport(create_app(settings, Bare(case.engine)))
    async with httpx.AsyncClient(transport=transport, base_url="http://easel") as http:
        yield http


def seeded(case: Case) -> dict[str, Any]:
    return {"seed": 4} if case.kind.seeded else {}


async def whole(http: httpx.AsyncClient, **wish: Any) -> dict[str, Any]:
    response = await http.post("/v1/completions", json=WISH | wish)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def streamed(http: httpx.AsyncClient, **wish: Any) -> list[dict[str, Any]]:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    response = await http.post("/v1/completions", json=WISH | options | wish)
    assert response.status_code == 200, response.text
    *events, done = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert done == "[DONE]"
    return [json.loads(event) for event in events]


@on_one_loop
async def test_streamed_equals_whole(case: Case) -> None:
    async with client(case) as http:
        one, parts = await whole(http, **seeded(case)), await streamed(http, **seeded(case))
    choices = [part["choices"][0] for part in parts if part["choices"]]
    [ended] = [choice for choice in choices if choice["finish_reason"]]
    [usage] = [part["usage"] for part in parts if part.get("usage")]
    assert one["choices"][0]["text"]
    assert "".join(choice["text"] for choice in choices) == one["choices"][0]["text"]
    assert ended["finish_reason"] == one["choices"][0]["finish_reason"]
    assert ended["easel"] == one["choices"][0]["easel"]
    assert usage == one["usage"]


@on_one_loop
async def test_the_same_seed_the_same_text(case: Case) -> None:
    async with client(case) as http:
        texts = {(await whole(http, **seeded(case)))["choices"][0]["text"] for _ in range(3)}
        if case.kind.seeded:
            assert len(texts) == 1
            return
        refused = await http.post("/v1/completions", json=WISH | {"seed": 4})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "seed"


@on_one_loop
async def test_stop_strings_cut_across_canvases_and_free_the_slot(case: Case) -> None:
    async with client(case) as http:
        text = (await whole(http, **seeded(case)))["choices"][0]["text"]
        assert len(text) > 20
        stop = text[14:18]  # begins in the first canvas, ends in the second
        cut = await whole(http, stop=[stop, "never there"], **seeded(case))
    assert cut["choices"][0]["text"] == text[: text.index(stop)]
    assert cut["choices"][0]["easel"]["finish_reason"] == "stop"
    assert len(cut["choices"][0]["easel"]["canvases"]) == 2
    assert case.engine.stats().sequences <= 1


@on_one_loop
async def test_max_tokens_is_kept(case: Case) -> None:
    async with client(case) as http:
        for most in (1, 16, 17):
            answer = await whole(http, max_tokens=most, **seeded(case))
            assert answer["usage"]["completion_tokens"] == most
            assert answer["choices"][0]["finish_reason"] == "length"


@on_one_loop
async def test_n_answers_and_usage_that_adds_up(case: Case) -> None:
    async with client(case) as http:
        one = await whole(http, **seeded(case))
        three = await whole(http, n=3, **seeded(case))
    assert [choice["index"] for choice in three["choices"]] == [0, 1, 2]
    if case.kind.seeded:
        assert three["choices"][0]["text"] == one["choices"][0]["text"], "the first choice is the only one of n=1"
    usage, own = three["usage"], three["usage"]["easel"]
    canvases = [canvas for choice in three["choices"] for canvas in choice["easel"]["canvases"]]
    assert usage["prompt_tokens"] == one["usage"]["prompt_tokens"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert own["canvases"] == len(canvases)
    assert own["denoising_steps"] == sum(canvas["denoising_steps"] for canvas in canvases)
    assert sum(own["stops"].values()) == len(canvases)
    assert own["work"] > 0
    if case.kind.tells_steps:
        assert own["denoising_steps"] >= len(canvases)
    else:
        assert (own["denoising_steps"], set(own["stops"])) == (0, {"unknown"})


WISHES: dict[str, dict[str, Any]] = {
    "seed": {"seed": 5},
    "temperature": {"temperature": 0.5},
    "top_p": {"top_p": 0.5},
    "top_k": {"top_k": 3},
    "min_p": {"min_p": 0.2},
    "logit_bias": {"logit_bias": {str(BYTE + 97): -100}},
    "presence_penalty": {"presence_penalty": 1},
    "frequency_penalty": {"frequency_penalty": 1},
    "logprobs": {"logprobs": 2},
    "min_tokens": {"min_tokens": 5},
    "ignore_eos": {"ignore_eos": True},
    "max_steps": {"easel": {"max_denoising_steps": 3}},
    "entropy_bound": {"easel": {"entropy_bound": 0.5}},
    "stability": {"easel": {"stability": 2}},
    "confidence": {"easel": {"confidence": 0.5}},
    "canvas_length": {"easel": {"canvas_length": 16}},
    "stop_scope": {"easel": {"stop_scope": "reachable"}},
    "deadline_at": {"easel": {"deadline_ms": 100_000}},
    "progress_hz": {"stream": True, "stream_options": {"include_progress": True}},
}
"""Each parameter of the table that a client can send, as it does."""
INTERNAL = {"grammar", "resume", "pinned", "stop_token_ids"}
"""Fields of the table that no client can set."""


def test_every_parameter_that_a_client_can_send_is_tried() -> None:
    assert set(WISHES) == set(TABLE) - INTERNAL


@on_one_loop
async def test_parameters_are_served_refused_or_reported_as_the_table_says(case: Case) -> None:
    async with client(case) as strict, client(case, unsupported="report") as lenient:
        for field, wish in WISHES.items():
            works = TABLE[field][case.kind.kind].works
            refused = await strict.post("/v1/completions", json=WISH | wish)
            assert refused.status_code == (200 if works else 400), field
            if not works:
                error = refused.json()["error"]
                assert (error["code"], error["param"]) == ("unsupported_parameter", asked_as(field))
                assert f"the {case.kind.kind} engine" in error["message"]
            served = await lenient.post("/v1/completions", json=WISH | wish)
            assert served.status_code == 200
            first = json.loads(served.text.removeprefix("data: ").split("\n\n")[0])
            assert first.get("easel", {}).get("unsupported") == (None if works else [asked_as(field)])

"""Defaults and limits of a call: what it may ask for, and what it gets where it asks for nothing."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from easel.api import routes
from easel.api.schemas import CompletionBody, parse_completion
from tests.unit.api.edge import edge, saying


@pytest.mark.parametrize(
    ("api", "body", "chat", "expected"),
    [
        ({}, {}, False, 16),
        ({}, {"prompt": "x" * 500}, False, 512 - 501),
        ({}, {"max_tokens": 100}, False, 100),
        ({}, {}, True, 512 - 4 - len("user\nHi\nmodel\n")),
        ({}, {"max_completion_tokens": 7}, True, 7),
        ({}, {"max_tokens": 8}, True, 8),
        ({}, {"max_tokens": 9, "max_completion_tokens": 9}, True, 9),
        ({"default_max_tokens": 40}, {}, False, 40),
        ({"default_max_tokens": 40}, {}, True, 40),
        ({"default_max_tokens": 4000}, {}, False, 512 - 3),
    ],
)
async def test_max_tokens(
    checkpoint: Path, api: dict[str, Any], body: dict[str, Any], chat: bool, expected: int
) -> None:
    async with edge(checkpoint, saying("x"), api=api) as e:
        response = await (e.chat(**body) if chat else e.complete(**body))
        assert response.status_code == 200, response.text
        assert e.backend.requests[0].max_tokens == expected


async def test_the_settings_context_counts_where_it_is_smaller(checkpoint: Path) -> None:
    async with edge(checkpoint, saying("x"), context_tokens=64) as e:
        assert (await e.complete(max_tokens=61)).status_code == 200
        response = await e.complete(max_tokens=62)
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["code"] == "context_length_exceeded"
        assert error["param"] == "max_tokens"
        assert error["message"] == (
            "This model's maximum context length is 64 tokens. However, you requested 65 tokens (3 in the prompt, 62 "
            "in the completion). Please reduce the length of the prompt or of the completion."
        )


@pytest.mark.parametrize("wanted", [{}, {"max_tokens": 1}])
async def test_a_prompt_that_leaves_no_room_is_refused_with_the_numbers(
    checkpoint: Path, wanted: dict[str, int]
) -> None:
    async with edge(checkpoint) as e:
        error = (await e.complete(prompt=[5] * 512, **wanted)).json()["error"]
        assert error["code"] == "context_length_exceeded"
        assert error["param"] == "prompt"
        assert "512 tokens" in error["message"]
        chat = (await e.chat(messages=[{"role": "user", "content": "x" * 600}], **wanted)).json()["error"]
        assert chat["code"] == "context_length_exceeded"
        assert chat["param"] == "messages"
        assert not e.backend.requests


async def test_one_of_several_prompts_that_does_not_fit_refuses_the_call(checkpoint: Path) -> None:
    async with edge(checkpoint) as e:
        assert (await e.complete(prompt=["a", "b" * 505], max_tokens=16)).status_code == 400
        assert not e.backend.requests


@pytest.mark.parametrize(
    ("body", "param"),
    [({"n": 5}, "n"), ({"prompt": ["a"] * 5}, "prompt"), ({"prompt": ["a", "b"], "n": 3}, "n")],
)
async def test_a_call_has_so_many_choices_and_no_more(checkpoint: Path, body: dict[str, Any], param: str) -> None:
    async with edge(checkpoint, saying("x"), api={"max_choices": 4}) as e:
        error = (await e.complete(**body)).json()["error"]
        assert error["param"] == param
        assert "more than the 4" in error["message"]
        assert (await e.complete(prompt=["a", "b"], n=2)).status_code == 200


async def test_choices_of_one_prompt_differ_in_their_draws_and_prompts_do_not(checkpoint: Path) -> None:
    async with edge(checkpoint, saying("x")) as e:
        await e.complete(prompt=["a", "b"], n=2)
        assert [request.choice for request in e.backend.requests] == [0, 1, 0, 1]
        assert len({request.sampling.seed for request in e.backend.requests}) == 1


async def test_the_engine_is_told_the_models_key_and_a_deadline(checkpoint: Path) -> None:
    async with edge(checkpoint, saying("x"), api={"request_timeout_s": 100.0}) as e:
        created = (await e.complete()).json()["created"]
        (request,) = e.backend.requests
        assert request.model == "default"
        assert request.denoising.deadline_at is not None
        assert 0 <= request.denoising.deadline_at - created - 100 < 1


async def test_a_token_outside_the_vocabulary_is_named(checkpoint: Path) -> None:
    async with edge(checkpoint) as e:
        error = (await e.complete(prompt=[[1], [2, 384]])).json()["error"]
        assert error["param"] == "prompt.1"
        assert "token 384 at position 1" in error["message"]


async def test_a_missing_model_and_an_unknown_one(checkpoint: Path) -> None:
    async with edge(checkpoint) as e:
        missing = await e.client.post("/v1/completions", json={"prompt": "a"})
        assert missing.status_code == 400
        assert missing.json()["error"]["param"] == "model"
        unknown = await e.complete(model="gpt-4")
        assert unknown.status_code == 404
        assert unknown.json()["error"] == {
            "message": "The model 'gpt-4' does not exist.",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }


async def test_long_bodies_are_read_beside_the_event_loop(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []

    def parse(raw: bytes) -> CompletionBody:
        threads.append(threading.current_thread() is threading.main_thread())
        return parse_completion(raw)

    monkeypatch.setattr(routes, "parse_completion", parse)
    async with edge(checkpoint, saying("x")) as e:
        assert (await e.complete(prompt="x" * 400)).status_code == 200
        assert (await e.complete(prompt="x" * 400, user="u" * 10_000)).status_code == 200
        assert [len(request.prompt) for request in e.backend.requests] == [401, 401]
    assert threads == [True, False]

"""/openapi.json says what is true: every route is in it, and answers are as it documents them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from jsonschema import Draft202012Validator
from starlette.routing import Route

from easel.api import answer_shapes as shapes
from easel.api.openapi import GENERATION, OPERATIONS, document, statuses
from easel.errors import EaselError, tree
from easel.protocol import CanvasStop
from easel.settings import ApiSettings
from tests.contract.test_golden_answers import CASES, FOLDER
from tests.unit.api.edge import edge, saying, write_checkpoint

DOCUMENT = document(ApiSettings())
NEVER_READ = {405}
"""Of another method than the documented ones."""


def check(name: str, value: Any) -> None:
    schema = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    found = [f"{error.json_path}: {error.message}" for error in Draft202012Validator(schema).iter_errors(value)]
    assert not found


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


async def test_every_route_is_in_it_and_it_is_served(checkpoint: Path) -> None:
    async with edge(checkpoint) as e:
        served = (await e.client.get("/openapi.json")).json()
        routes = {
            (route.path.replace(":path}", "}"), method.lower())
            for route in e.app.routes
            if isinstance(route, Route)
            for method in route.methods or ()
        }
    assert served == DOCUMENT
    assert routes == {
        (path, method) for path, item in served["paths"].items() for method in item if method != "parameters"
    }


def test_schemas_are_schemas() -> None:
    for schema in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    text = json.dumps(DOCUMENT)
    for name in DOCUMENT["components"]["schemas"]:
        assert name in {"ChatBody", "CompletionBody"} or f'schemas/{name}"' in text, name


def test_every_error_that_a_call_may_meet_is_in_it() -> None:
    met = {error.status for error in tree() if error.__name__ not in ("EaselError", "ConfigurationError")}
    assert met - NEVER_READ - {401} == set(GENERATION)
    assert all(statuses(status) for operation in OPERATIONS.values() for status in operation.errors)
    assert EaselError not in statuses(500)
    assert set(get_args(shapes.Stop)) == {str(stop) for stop in CanvasStop}


def test_keys_add_what_only_they_bring() -> None:
    guarded = document(ApiSettings(keys_file="keys.json"))
    completions = guarded["paths"]["/v1/completions"]["post"]
    assert completions["security"] == [{"key": []}]
    assert {"401", "403", "429"} <= set(completions["responses"])
    assert "x-ratelimit-limit-tokens" in completions["responses"]["200"]["headers"]
    assert not {"401", "403", "429"} & set(DOCUMENT["paths"]["/v1/completions"]["post"]["responses"])
    assert "security" not in guarded["paths"]["/healthz"]["get"]


@pytest.mark.parametrize("name", CASES)
def test_recorded_answers_are_as_documented(name: str) -> None:
    path = CASES[name][1]
    found = json.loads((FOLDER / f"{name}.json").read_text())
    operation = OPERATIONS[path]
    if isinstance(found, list):
        assert operation.chunk is not None
        for event in found:
            if event != "[DONE]":
                check("ErrorAnswer" if "error" in event else operation.chunk.__name__, event)
    else:
        assert operation.answer is not None
        check(operation.answer.__name__ if found["status"] == 200 else "ErrorAnswer", found["body"])


@pytest.mark.parametrize("stream", [False, True])
async def test_log_probabilities_and_what_was_left_out_are_too(checkpoint: Path, stream: bool) -> None:
    async with edge(checkpoint, saying("Text"), kind="vllm", api={"unsupported": "report"}) as e:
        answers = {
            "/v1/completions": await e.complete(logprobs=2, seed=1, stream=stream),
            "/v1/chat/completions": await e.chat(logprobs=True, top_logprobs=2, logit_bias={"1": 1}, stream=stream),
        }
    for path, answer in answers.items():
        assert answer.status_code == 200
        operation = OPERATIONS[path]
        if stream:
            for event in answer.text.split("\n\n")[:-2]:
                check(operation.chunk.__name__, json.loads(event.removeprefix("data: ")))  # type: ignore[union-attr]
        else:
            check(operation.answer.__name__, answer.json())  # type: ignore[union-attr]

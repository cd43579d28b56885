"""OpenAI's published document against the application: what it asks is understood, and what is answered is its shape.

Requests are made of it by schemathesis, the same few each time. Most of what it makes asks for what is not served here
(tools, images, audio, files), so a 400 that names the field is as good as a 200; anything else is not.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from jsonschema import Draft202012Validator
from schemathesis import GenerationMode

from easel.api import unsupported
from easel.api.schemas import ChatBody, ChatMessage, CompletionBody, StreamOptions
from tests.contract.openai_document import asking, document, properties
from tests.contract.test_golden_answers import FOLDER

EXAMPLES = 60
"""Of each operation."""
ANSWERS = {
    "/completions": ("CreateCompletionResponse", "CreateCompletionResponse"),
    "/chat/completions": ("CreateChatCompletionResponse", "CreateChatCompletionStreamResponse"),
}
"""By path: the schema of a whole answer and of an event."""


def check(schema: str, value: Any) -> None:
    found = Draft202012Validator({"$ref": f"#/components/schemas/{schema}", "components": document()["components"]})
    wrong = [f"{error.json_path}: {error.message}" for error in found.iter_errors(value)]
    assert not [text for text in wrong if not allowed(text)], wrong


def allowed(text: str) -> bool:
    """The document has no null for the end of a completion's chunk, and OpenAI sends one there."""
    return text.startswith("$.choices[0].finish_reason: None is not")


def served(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The request without what is not served here, and with a chat of plain text."""
    if path == "/completions":
        return {name: value for name, value in body.items() if name not in unsupported.COMPLETION}
    known = {name: value for name, value in body.items() if name not in unsupported.CHAT}
    return known | {"messages": [{"role": "user", "content": "Hello"}]}


def events(text: str) -> list[Any]:
    found = [block.removeprefix("data: ") for block in text.split("\n\n")[:-1] if not block.startswith(":")]
    return [json.loads(event) for event in found if event != "[DONE]"]


@pytest.mark.parametrize("served_only", [False, True])
@pytest.mark.parametrize("path", ANSWERS)
def test_requests_made_of_it_are_answered_in_its_shapes_or_refused_by_name(
    url: str, path: str, served_only: bool
) -> None:
    schema = schemathesis.openapi.from_dict(asking())
    schema.config.update(base_url=url + "/v1")
    seen: Counter[int] = Counter()

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=schema[path]["POST"].as_strategy(generation_mode=GenerationMode.POSITIVE))
    def ask(case: Any) -> None:
        case.body = case.body | {"model": "easel"}
        if served_only:
            case.body = served(path, case.body)
        response = case.call()
        seen[response.status_code] += 1
        assert response.status_code in (200, 400), response.text
        if response.status_code == 400:
            check("ErrorResponse", response.json())
            param = response.json()["error"]["param"]
            assert param is None or param.split(".")[0] in case.body, param
            assert "Unknown parameter" not in response.json()["error"]["message"], response.text
        elif case.body.get("stream"):
            for event in events(response.text):
                check(ANSWERS[path][1], event)
        else:
            check(ANSWERS[path][0], response.json())

    ask()
    assert seen[200]
    assert seen[400]


@pytest.mark.parametrize(("method", "path", "schema"), [("GET", "/models", "ListModelsResponse")])
def test_the_list_of_models_is_of_its_shape(url: str, method: str, path: str, schema: str) -> None:
    response = schemathesis.openapi.from_dict(document())[path][method].Case().call(base_url=url + "/v1")
    assert response.status_code == 200
    check(schema, response.json())
    for model in response.json()["data"]:
        check("Model", model)


@pytest.mark.parametrize(
    ("name", "schema"),
    [
        ("completion", "CreateCompletionResponse"),
        ("completion_list", "CreateCompletionResponse"),
        ("completion_stream", "CreateCompletionResponse"),
        ("completion_stream_progress", "CreateCompletionResponse"),
        ("chat", "CreateChatCompletionResponse"),
        ("chat_stream", "CreateChatCompletionStreamResponse"),
        ("models", "ListModelsResponse"),
        ("refusal", "ErrorResponse"),
    ],
)
def test_recorded_answers_are_of_its_shapes(name: str, schema: str) -> None:
    found = json.loads((FOLDER / f"{name}.json").read_text())
    for value in found if isinstance(found, list) else [found["body"]]:
        if value != "[DONE]":
            check(schema, value)


@pytest.mark.parametrize(
    ("schema", "ours", "table"),
    [
        ("CreateCompletionRequest", CompletionBody, unsupported.COMPLETION),
        ("CreateChatCompletionRequest", ChatBody, unsupported.CHAT),
        ("ChatCompletionStreamOptions", StreamOptions, unsupported.STREAM_OPTIONS),
        ("ChatCompletionRequestUserMessage", ChatMessage, unsupported.MESSAGE),
        ("ChatCompletionRequestAssistantMessage", ChatMessage, unsupported.MESSAGE),
    ],
)
def test_every_parameter_of_it_is_served_or_known(schema: str, ours: Any, table: Any) -> None:
    """Whoever sends one that is not served here is told so, and not that it is a typing mistake."""
    known = {*ours.model_fields, *table}
    assert properties(schema) <= known, properties(schema) - known

"""schemathesis against the application behind a real server: no 500, and no answer that the document does not have.

The same few examples each time. Whatever JSON Schema cannot say is a documented 400, so that every documented request
be served is not asked for here.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from jsonschema import Draft202012Validator
from schemathesis import GenerationMode, checks

from easel.api.openapi import OPERATIONS

EXAMPLES = 15
"""Of each operation and mode."""


ASKED = [(path, method, GenerationMode.POSITIVE) for path, o in OPERATIONS.items() for method in o.methods]
ASKED += [(path, "post", GenerationMode.NEGATIVE) for path, o in OPERATIONS.items() if o.body is not None]


@pytest.mark.parametrize(("path", "method", "mode"), ASKED, ids=str)
def test_no_undocumented_answer(url: str, path: str, method: str, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(url + "/openapi.json")
    operation = schema[path][method.upper()]
    seen = []

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        if isinstance(case.body, dict) and mode is GenerationMode.POSITIVE:
            case.body = case.body | {"model": "easel"}  # the document names none
        response = case.call()
        wanted = [
            checks.not_a_server_error,
            checks.status_code_conformance,
            checks.content_type_conformance,
            checks.response_headers_conformance,
            checks.response_schema_conformance,
        ]
        case.validate_response(response, checks=wanted)
        seen.append(response.status_code)
        if mode is GenerationMode.NEGATIVE:
            assert response.status_code == 400
        if "text/event-stream" in response.headers.get("content-type", [""])[0]:
            events(schema.raw_schema, path, response.text)

    ask()
    assert seen
    if OPERATIONS[path].body is not None and mode is GenerationMode.POSITIVE:
        assert 200 in seen


def events(document: Any, path: str, text: str) -> None:
    """Every event of a stream is one that the document has."""
    shape = document["paths"][path]["post"]["responses"]["200"]["content"]["text/event-stream"]["x-easel-event"]
    validator = Draft202012Validator({**shape, "components": document["components"]})
    for block in text.split("\n\n")[:-1]:
        if block != "data: [DONE]" and not block.startswith(":"):
            validator.validate(json.loads(block.removeprefix("data: ")))

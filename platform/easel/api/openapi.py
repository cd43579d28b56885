"""The OpenAPI document of the application: /openapi.json.

Owns: one entry for each route, with what it reads, every answer that it may give and the headers that come along.
Bodies are read by hand, so the framework's own document would be empty; here the schemas that requests are
checked against are shown, and `tests/contract/test_openapi.py` holds routes and real answers against it.
Refuses to know: how anything is answered.

What JSON Schema cannot say (bounds over several fields, what a tokenizer makes of a text) is a documented 400.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from easel import __version__
from easel.api import answer_shapes as shapes
from easel.api import unsupported
from easel.api.callers import LIMIT_HEADERS, is_guarded
from easel.api.schemas import ChatBody, CompletionBody
from easel.api.token_bodies import DetokenizeAnswer, DetokenizeBody, TokenizeAnswer, TokenizeBody
from easel.api.tokenizing import PREFIXES
from easel.errors import EaselError, tree
from easel.settings import ApiSettings

Json = dict[str, Any]
REF = "#/components/schemas/{model}"
NEUTRAL: Mapping[str, Mapping[str, unsupported.Neutral]] = {
    "CompletionBody": unsupported.COMPLETION,
    "ChatBody": unsupported.CHAT,
    "ChatMessage": unsupported.MESSAGE,
    "StreamOptions": unsupported.STREAM_OPTIONS,
    "TokenizeBody": unsupported.TOKENIZE,
}
"""Parameters that are taken at values that change nothing, by the schema that they stand in."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One route, under each of its methods."""

    summary: str
    answer: type[BaseModel] | None
    """Of 200; None: JSON of any shape."""
    errors: Sequence[int]
    """Statuses beside 200. 401 of guarded routes is added."""
    body: type[BaseModel] | None = None
    chunk: type[BaseModel] | None = None
    """Of the events, where the body may ask for a stream."""
    methods: Sequence[str] = ("get", "head")
    limited: bool = False
    """Whether a key's limits are told in headers."""


READING = (400, 403, 404, 413)
GENERATION = (400, 403, 404, 413, 429, 499, 500, 503, 504)
OPERATIONS: Mapping[str, Operation] = {
    "/healthz": Operation("This process is alive. Says nothing of the model.", shapes.Health, ()),
    "/readyz": Operation("Whether requests can be answered now.", shapes.Health, (503,)),
    "/version": Operation("What runs here.", shapes.Version, ()),
    "/openapi.json": Operation("This document.", None, ()),
    "/v1/models": Operation("Every name that `model` may be.", shapes.ModelList, ()),
    "/v1/models/{model_id}": Operation("One of them.", shapes.Model, (404,)),
    "/v1/completions": Operation(
        "Continues prompts.", shapes.Completion, GENERATION, CompletionBody, shapes.CompletionChunk, ("post",), True
    ),
    "/v1/chat/completions": Operation(
        "Answers a chat.", shapes.ChatCompletion, GENERATION, ChatBody, shapes.ChatCompletionChunk, ("post",), True
    ),
    "/v1/requests/{request_id}": Operation(
        "Ends a request that waits or runs, by its `x-request-id` or the id of its answer.",
        shapes.Cancelled,
        (404, 503),
        methods=("delete",),
    ),
    **{
        prefix + path: Operation(summary, answer, READING, body, methods=("post",))
        for prefix in PREFIXES
        for path, summary, answer, body in (
            ("/tokenize", "Token ids of a prompt or a chat.", TokenizeAnswer, TokenizeBody),
            ("/detokenize", "The text of token ids.", DetokenizeAnswer, DetokenizeBody),
        )
    },
}
"""By path. A new route needs an entry here, and a model of its answer."""

TEXT = {"type": "string"}
NUMBER = {"type": "string", "pattern": "^[0-9]+$"}
HEADERS: Mapping[str, tuple[str, Json]] = {
    "x-request-id": ("The request's own where it sent a decent one, otherwise a new one. On every answer.", TEXT),
    "retry-after": ("Seconds to wait before trying again, where that is known.", NUMBER),
    "retry-after-ms": ("The same in milliseconds.", NUMBER),
    "x-should-retry": ("`false` where trying again is in vain.", {"type": "string", "enum": ["false"]}),
    "www-authenticate": ("How to send a key.", {"type": "string", "enum": ["Bearer"]}),
    **dict.fromkeys(LIMIT_HEADERS, ("Where the key stands with one of its limits.", TEXT)),
}
ALWAYS = frozenset({"x-request-id", "www-authenticate"})


def document(settings: ApiSettings) -> Json:
    """The document of an application with these settings. It names no model: those that a caller may use are at
    /v1/models, behind the key that this document does without."""
    keys = settings.keys_file is not None
    found: Json = {
        "openapi": "3.1.0",
        "info": {
            "title": "Easel",
            "version": __version__,
            "description": "OpenAI's API for block text-diffusion language models.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": {path: _path(path, operation, keys) for path, operation in OPERATIONS.items()},
        "components": {"schemas": _schemas(), "headers": {name: _header(name) for name in HEADERS}},
    }
    if keys:
        found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return found


def statuses(code: int) -> list[type[EaselError]]:
    """The errors of a status, as `easel.errors` has them."""
    # Nobody is there to read that the client has left.
    unread = ("EaselError", "ConfigurationError", "ClientGone")
    return [error for error in tree() if error.status == code and error.__name__ not in unread]


def _path(path: str, operation: Operation, keys: bool) -> Json:
    guarded = keys and is_guarded({"path": path})
    found: Json = {}
    if "{" in path:
        name = path.partition("{")[2].rstrip("}")
        found["parameters"] = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}}]
    for method in operation.methods:
        entry: Json = {
            "operationId": method + path.replace("/", "_").replace("{", "").replace("}", "").replace(".", "_"),
            "summary": operation.summary,
            "responses": _responses(operation, guarded, bare=method == "head"),
        }
        if operation.body is not None:
            entry["requestBody"] = {"required": True, "content": _content(operation.body)}
        if guarded:
            entry["security"] = [{"key": []}]
        found[method] = entry
    return found


def _responses(operation: Operation, guarded: bool, bare: bool) -> Json:
    limits = LIMIT_HEADERS if operation.limited and guarded else ()
    content = _content(operation.answer)
    if operation.chunk is not None:
        reference = {"$ref": REF.format(model=operation.chunk.__name__)}
        content["text/event-stream"] = {
            "schema": {
                "type": "string",
                "description": "`data: ` and an event or an error; `data: [DONE]` at the end.",
            },
            "x-easel-event": {"anyOf": [reference, {"$ref": REF.format(model="ErrorAnswer")}]},
        }
    answers: Json = {"200": _response("The answer.", content, limits, bare)}
    wanted = {*operation.errors, *((401,) if guarded else ())} - (set() if guarded else {403, 429})
    for status in sorted(wanted):
        codes = ", ".join(f"`{error.code}`" for error in statuses(status))
        answers[str(status)] = _response(
            f"Error: {codes}.", _content(shapes.ErrorAnswer), _of_error(status, limits), bare
        )
    return answers


def _of_error(status: int, limits: Sequence[str]) -> tuple[str, ...]:
    again = ("retry-after", "retry-after-ms") if status in (429, 500, 503, 504) else ()
    hopeless = ("x-should-retry",) if status >= 500 else ()
    asked = ("www-authenticate",) if status == 401 else ()
    return (*again, *hopeless, *asked, *(() if status in (401, 413) else limits))


def _response(text: str, content: Json, headers: Sequence[str], bare: bool) -> Json:
    named = {name: {"$ref": f"#/components/headers/{name}"} for name in ("x-request-id", *headers)}
    return {"description": text, "headers": named, **({} if bare else {"content": content})}


def _content(shape: type[BaseModel] | None) -> Json:
    schema = {"type": "object"} if shape is None else {"$ref": REF.format(model=shape.__name__)}
    return {"application/json": {"schema": schema}}


def _header(name: str) -> Json:
    text, schema = HEADERS[name]
    return {"description": text, "required": name in ALWAYS, "schema": schema}


def _schemas() -> Json:
    """Of all bodies and answers. Neutral values of parameters that are not served stand beside those that are."""
    wanted: dict[type[BaseModel], None] = {shapes.ErrorAnswer: None}
    for operation in OPERATIONS.values():
        wanted |= dict.fromkeys(shape for shape in (operation.body, operation.answer, operation.chunk) if shape)
    _, definitions = models_json_schema([(shape, "validation") for shape in wanted], ref_template=REF)
    found: Json = definitions["$defs"]
    for name, table in NEUTRAL.items():
        for parameter, values in table.items():
            text = "Not served; taken at values that change nothing."
            found[name]["properties"][parameter] = {"enum": [None, *values], "description": text}
    return dict(sorted(json.loads(json.dumps(found)).items()))

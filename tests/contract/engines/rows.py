"""The rows of the table in docs/engines.md, each with the request that proves it: parameters, and routes.

A row is served if the answer is a 200 that `shows` what the parameter promises, so far as that can be told over HTTP
from any engine. What goes deeper is in `test_protocol.py` (`EFFECTS`) and in tests/contract/test_parameters.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from easel.api import unsupported
from easel.api.openapi import OPERATIONS
from tests.contract.engines.kinds import BYTE, CANVAS

PROMPT = "repeat: a canvas holds sixteen\n"
MESSAGES = [{"role": "user", "content": "repeat: a canvas holds sixteen"}]
LENGTH = 20


@dataclass(frozen=True)
class Seen:
    """The answer to a row's request, and to the same without the parameter."""

    asked: httpx.Response
    plain: httpx.Response
    tells_steps: bool

    @property
    def parts(self) -> list[dict[str, Any]]:
        """The whole answer, or all events of a stream."""
        if not self.asked.headers["content-type"].startswith("text/event-stream"):
            return [self.asked.json()]
        events = [block.removeprefix("data: ") for block in self.asked.text.split("\n\n") if block]
        assert events.pop() == "[DONE]"
        return [json.loads(event) for event in events]

    @property
    def choices(self) -> list[dict[str, Any]]:
        return [choice for part in self.parts for choice in part["choices"]]

    @property
    def text(self) -> str:
        """Of all choices."""
        said = [choice.get("text", choice.get("delta", choice.get("message"))) for choice in self.choices]
        return "".join(one if isinstance(one, str) else one.get("content", "") for one in said)

    @property
    def usage(self) -> dict[str, Any]:
        found: dict[str, Any] = self.parts[-1]["usage"]
        return found

    @property
    def plain_usage(self) -> dict[str, Any]:
        found: dict[str, Any] = self.plain.json()["usage"]
        return found

    @property
    def thinks(self) -> bool:
        """The template said so: the prompt is longer, and reasoning has a place of its own."""
        longer = self.usage["prompt_tokens"] > self.plain_usage["prompt_tokens"]
        return longer and all("reasoning_content" in choice["message"] for choice in self.choices)


@dataclass(frozen=True)
class Row:
    """A parameter, as a client sends it."""

    wish: Mapping[str, Any]
    shows: Callable[[Seen], object] = lambda seen: seen.choices
    chat: bool = False
    field: str | None = None
    """In `easel.capabilities.TABLE`, where engines differ; None: the API does it alone."""
    known: bool = True
    """Whether it is served here at all."""


def easel(**options: Any) -> dict[str, Any]:
    return {"easel": options}


def streamed(**options: Any) -> dict[str, Any]:
    return {"stream": True, "stream_options": options} if options else {"stream": True}


def steps(seen: Seen) -> set[int]:
    return {canvas["denoising_steps"] for choice in seen.choices for canvas in choice["easel"]["canvases"]}


PARAMETERS: dict[str, Row] = {
    "best_of": Row({"best_of": 2, "n": 2}, lambda seen: len(seen.choices) == 2),
    "chat_template_kwargs.enable_thinking": Row(
        {"chat_template_kwargs": {"enable_thinking": True}}, lambda seen: seen.thinks, chat=True
    ),
    "easel.canvas_length": Row(easel(canvas_length=CANVAS), field="canvas_length"),
    "easel.confidence": Row(easel(confidence=0.5), field="confidence"),
    "easel.deadline_ms": Row(easel(deadline_ms=100_000), field="deadline_at"),
    "easel.entropy_bound": Row(easel(entropy_bound=0.5), field="entropy_bound"),
    "easel.max_denoising_steps": Row(
        easel(max_denoising_steps=2), lambda seen: not seen.tells_steps or max(steps(seen)) <= 2, field="max_steps"
    ),
    "easel.priority": Row(easel(priority=3)),
    "easel.queue_timeout_ms": Row(easel(queue_timeout_ms=60_000)),
    "easel.stability": Row(easel(stability=2), field="stability"),
    "easel.stop_scope": Row(easel(stop_scope="reachable"), field="stop_scope"),
    "easel.tier": Row(easel(tier="balanced"), lambda seen: seen.usage["easel"]["tier"] == "balanced"),
    "echo": Row({"echo": True}, lambda seen: seen.text.startswith(PROMPT)),
    "frequency_penalty": Row({"frequency_penalty": 1}, field="frequency_penalty"),
    "ignore_eos": Row(
        {"ignore_eos": True}, lambda seen: seen.usage["completion_tokens"] == LENGTH, field="ignore_eos"
    ),
    "logit_bias": Row(
        {"logit_bias": {str(BYTE + 97): -100}}, lambda seen: "a" not in seen.text, field="logit_bias"
    ),
    "logprobs": Row(
        {"logprobs": 2},
        lambda seen: len(seen.choices[0]["logprobs"]["tokens"]) == seen.usage["completion_tokens"],
        field="logprobs",
    ),
    "max_completion_tokens": Row(
        {"max_completion_tokens": 3, "max_tokens": None},
        lambda seen: seen.usage["completion_tokens"] <= 3 and seen.choices[0]["finish_reason"] == "length",
        chat=True,
    ),
    "max_tokens": Row({"max_tokens": 3}, lambda seen: seen.usage["completion_tokens"] == 3),
    "messages": Row(
        {"messages": [{"role": "system", "content": "Be brief."}, *MESSAGES]},
        lambda seen: seen.usage["prompt_tokens"] > seen.plain_usage["prompt_tokens"],
        chat=True,
    ),
    "messages.N.content": Row(
        {"messages": [{"role": "user", "content": [{"type": "text", "text": MESSAGES[0]["content"]}]}]},
        lambda seen: seen.usage["prompt_tokens"] == seen.plain_usage["prompt_tokens"],
        chat=True,
    ),
    "messages.N.reasoning_content": Row(
        {"messages": [*MESSAGES, {"role": "assistant", "content": "a", "reasoning_content": "b"}, *MESSAGES]},
        chat=True,
    ),
    "messages.N.role": Row(
        {"messages": [{"role": "developer", "content": "Be brief."}, *MESSAGES]},
        lambda seen: seen.usage["prompt_tokens"] > seen.plain_usage["prompt_tokens"],
        chat=True,
    ),
    "metadata": Row({"metadata": {"ticket": "7"}}),
    "min_p": Row({"min_p": 0.2}, field="min_p"),
    "min_tokens": Row({"min_tokens": 5}, lambda seen: seen.usage["completion_tokens"] >= 5, field="min_tokens"),
    "model": Row({"model": "easel"}, lambda seen: seen.parts[0]["model"] == "easel"),
    "n": Row({"n": 3}, lambda seen: [choice["index"] for choice in seen.choices] == [0, 1, 2]),
    "presence_penalty": Row({"presence_penalty": 1}, field="presence_penalty"),
    "prompt": Row({"prompt": [[2, BYTE + 97], [2, BYTE + 98]]}, lambda seen: len(seen.choices) == 2),
    "reasoning_effort": Row({"reasoning_effort": "low"}, lambda seen: seen.thinks, chat=True),
    "safety_identifier": Row({"safety_identifier": "me"}),
    "seed": Row({"seed": 5}, field="seed"),
    "service_tier": Row({"service_tier": "flex"}, lambda seen: seen.parts[0]["service_tier"] == "flex"),
    "stop": Row(
        {"stop": list("aeio")},
        lambda seen: seen.choices[0]["finish_reason"] == "stop" and not set("aeio") & {*seen.text},
    ),
    "stream": Row(streamed(), lambda seen: len(seen.parts) > 1),
    "stream_options.include_progress": Row(
        streamed(include_progress=True), lambda seen: [p for p in seen.parts if "progress" in p.get("easel", {})],
        field="progress_hz",
    ),
    "stream_options.include_usage": Row(
        streamed(include_usage=True), lambda seen: seen.usage["completion_tokens"] > 0
    ),
    "stream_options.progress_hz": Row(streamed(include_progress=True, progress_hz=5), field="progress_hz"),
    "temperature": Row({"temperature": 0.5}, field="temperature"),
    "top_k": Row({"top_k": 3}, field="top_k"),
    "top_logprobs": Row(
        {"logprobs": True, "top_logprobs": 2},
        lambda seen: all(len(one["top_logprobs"]) == 2 for one in seen.choices[0]["logprobs"]["content"]),
        chat=True,
        field="logprobs",
    ),
    "top_p": Row({"top_p": 0.5}, field="top_p"),
    "user": Row({"user": "me"}),
}  # fmt: skip
"""By the name that docs/api.md has."""

SOMETHING: Mapping[str, Any] = {
    "audio": {"voice": "alloy", "format": "wav"},
    "function_call": {"name": "f"},
    "functions": [{"name": "f"}],
    "modalities": ["text", "audio"],
    "moderation": {},
    "parallel_tool_calls": "yes",
    "prediction": {"type": "content", "content": "x"},
    "prompt_cache_key": "x",
    "prompt_cache_retention": "24h",
    "repetition_penalty": 1.1,
    "response_format": {"type": "json_object"},
    "store": True,
    "suffix": "!",
    "tool_choice": "required",
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "verbosity": "low",
    "web_search_options": {},
}
"""A value, for each parameter that is known and not served, that would change something."""
REFUSED = {name: Row({name: value}, chat=name in unsupported.CHAT, known=False) for name, value in SOMETHING.items()}

ROUTES = tuple(
    f"{method.upper()} {path}"
    for path, operation in OPERATIONS.items()
    for method in operation.methods
    if method != "head"
)
"""As the OpenAPI document has them."""

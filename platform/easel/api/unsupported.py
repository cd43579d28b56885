"""Parameters that OpenAI's API knows and this service does not serve, with the values that change nothing.

Owns: two tables and what is done by them. SDKs and frameworks send many parameters at their neutral values, so those
pass; any other value is refused by name. Nothing is silently ignored.
Refuses to know: parameters that are served (`easel.api.schemas`), what they mean.

A parameter that becomes served moves from here to a schema.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from easel.errors import UnsupportedParameter

Neutral = tuple[Any, ...]
"""Values that change nothing, beside null."""

COMMON: Mapping[str, Neutral] = {
    "prompt_cache_key": (),
    "prompt_cache_retention": (),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
}
COMPLETION: Mapping[str, Neutral] = {**COMMON, "suffix": ("",)}
CHAT: Mapping[str, Neutral] = {
    **COMMON,
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}
TOKENIZE: Mapping[str, Neutral] = {
    "chat_template": (),
    "continue_final_message": (False,),
    "mm_processor_kwargs": ({},),
    "tools": ([],),
}
"""What vLLM's clients may send along."""
OF_SCHEMA: Mapping[str, Mapping[str, Neutral]] = {
    "ChatBody": CHAT,
    "CompletionBody": COMPLETION,
    "TokenizeBody": TOKENIZE,
}
"""By the name of the schema that has the rest."""
STREAM_OPTIONS: Mapping[str, Neutral] = {"include_obfuscation": (False,)}
MESSAGE: Mapping[str, Neutral] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "name": (),
    "refusal": ("",),
    "tool_call_id": (),
    "tool_calls": ([],),
}
"""What SDKs send along when an answer becomes part of the next request."""
ROLES = ("tool", "function")
PARTS = ("image_url", "input_audio", "file", "refusal", "video_url", "audio_url", "input_image", "input_file")


def without_neutral(body: Mapping[str, Any], table: Mapping[str, Neutral], at: str = "") -> dict[str, Any]:
    """`body` without what the table lists. Raises `UnsupportedParameter` where such a value is not neutral."""
    for name, neutral in table.items():
        if name in body and body[name] is not None and not any(_same(body[name], value) for value in neutral):
            allowed = ", ".join(json.dumps(value) for value in neutral)
            hint = f"leave it out, or send one of: {allowed}" if allowed else "leave it out"
            raise UnsupportedParameter(f"Unsupported parameter: '{at}{name}' is not supported here; {hint}.", at + name)
    return {name: value for name, value in body.items() if name not in table}


def _same(value: Any, neutral: Any) -> bool:
    """Equal, and alike in kind: true is not 1."""
    return isinstance(value, bool) == isinstance(neutral, bool) and bool(value == neutral)


def refuse_in_messages(messages: Any) -> Any:
    """`messages` without neutral extras. Raises `UnsupportedParameter` for roles, parts and fields not served here.

    Whatever has an unexpected shape is left as it is: the schema says what is wrong with it.
    """
    if not isinstance(messages, list):
        return messages
    return [_message(message, f"messages.{index}") for index, message in enumerate(messages)]


def _message(message: Any, at: str) -> Any:
    if not isinstance(message, dict):
        return message
    if message.get("role") in ROLES:
        raise UnsupportedParameter(
            f"Unsupported value: messages with role '{message['role']}' are not supported here.", f"{at}.role"
        )
    content = message.get("content")
    for index, part in enumerate(content if isinstance(content, list) else ()):
        if isinstance(part, dict) and part.get("type") in PARTS:
            raise UnsupportedParameter(
                f"Unsupported value: content parts of type '{part['type']}' are not supported here; text only.",
                f"{at}.content.{index}",
            )
    return without_neutral(message, MESSAGE, at + ".")

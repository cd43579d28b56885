"""Whatever does not fit is refused with the field's path; whatever is neutral passes; nothing is ignored."""

from __future__ import annotations

import json
from typing import Any

import pytest

from easel.api import unsupported
from easel.api.schemas import ChatBody, CompletionBody, parse_chat, parse_completion
from easel.errors import InvalidRequest, UnsupportedParameter


def completion(**body: Any) -> CompletionBody:
    return parse_completion(json.dumps({"model": "m", "prompt": "p"} | body).encode())


def chat(**body: Any) -> ChatBody:
    return parse_chat(json.dumps({"model": "m", "messages": [{"role": "user", "content": "p"}]} | body).encode())


def message(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"} | fields]}


@pytest.mark.parametrize(
    ("body", "param", "text"),
    [
        ({"prompt": None}, "prompt", "Invalid type for 'prompt': expected a string, but got null instead."),
        ({"prompt": {}}, "prompt", "Invalid type for 'prompt': expected a string, but got an object instead."),
        ({"prompt": []}, "prompt", "Invalid 'prompt': empty array. Expected an array with minimum length 1."),
        ({"prompt": ["a", 1]}, "prompt.1", "Invalid type for 'prompt.1': expected a string, but got an integer"),
        ({"prompt": [1, "a"]}, "prompt.1", "Invalid type for 'prompt.1': expected an integer, but got a string"),
        ({"prompt": [1, -1]}, "prompt.1", "Invalid 'prompt.1': value below the minimum. Expected a value >= 0"),
        ({"prompt": [True]}, "prompt.0", "expected a string, but got a boolean"),
        ({"prompt": [1, True]}, "prompt.1", "expected an integer, but got a boolean"),
        ({"prompt": [[1], []]}, "prompt.1", "empty array"),
        ({"prompt": [[1], [1, "a"]]}, "prompt.1.1", "expected an integer, but got a string"),
        ({"model": 3}, "model", "Invalid type for 'model': expected a string, but got an integer instead."),
        ({"max_tokens": 0}, "max_tokens", "Expected a value >= 1, but got 0 instead."),
        ({"max_tokens": 1.5}, "max_tokens", "expected an integer, but got a number"),
        ({"max_tokens": "5"}, "max_tokens", "expected an integer, but got a string"),
        ({"max_tokens": True}, "max_tokens", "expected an integer, but got a boolean"),
        ({"n": 0}, "n", ">= 1"),
        ({"n": 2**63}, "n", "Expected a value < 9223372036854775808, but got 9223372036854775808 instead."),
        ({"max_tokens": 10**4000}, "max_tokens", "but got a very large number instead."),
        ({"top_k": 2**63}, "top_k", "value above the maximum"),
        ({"easel": {"deadline_ms": 10**400}}, "easel.deadline_ms", "value above the maximum"),
        ({"easel": {"queue_timeout_ms": 10**400}}, "easel.queue_timeout_ms", "value above the maximum"),
        ({"temperature": -0.1}, "temperature", "Expected a value >= 0"),
        ({"temperature": 2.1}, "temperature", "Expected a value <= 2"),
        ({"temperature": "hot"}, "temperature", "expected a number, but got a string"),
        ({"seed": 2**63}, "seed", "value above the maximum"),
        ({"seed": -(2**63) - 1}, "seed", "value below the minimum"),
        ({"stream": 1}, "stream", "expected a boolean, but got an integer"),
        ({"stop": ""}, "stop", "empty string"),
        ({"stop": 5}, "stop", "expected a string, but got an integer"),
        ({"stop": ["a", 5]}, "stop.1", "expected a string, but got an integer"),
        ({"stop": ["a"] * 5}, "stop", "Expected an array with maximum length 4, but got an array with length 5"),
        ({"stop": "x" * 1025}, "stop", "string too long"),
        ({"user": 5}, "user", "expected a string"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "only allowed when 'stream' is enabled"),
        ({"stream": True, "stream_options": 3}, "stream_options", "expected an object, but got an integer"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "Unknown parameter: 'stream_options.x'."),
        ({"best_of": 3, "n": 2}, "best_of", "send the value of 'n'"),
        ({"promt": "a"}, "promt", "Unknown parameter: 'promt'. Did you mean 'prompt'?"),
        ({"temprature": 1}, "temprature", "Did you mean 'temperature'?"),
        ({"max_completion_tokens": 5}, "max_completion_tokens", "Unknown parameter"),
        ({"zzz": 1}, "zzz", "Unknown parameter: 'zzz'."),
        ({"~zzz": 1}, "~zzz", "Unknown parameter: '~zzz'."),
        ({"easel": {"~tier": "fast"}}, "easel.~tier", "Did you mean 'easel.tier'?"),
        ({"metadata": {"~": 1}}, "metadata.~", "Invalid type for 'metadata.~': expected a string"),
        ({"metadata": {"k" * 65: "v"}}, "metadata", f"Invalid key in 'metadata': '{'k' * 64}...' is too long."),
        ({"metadata": {"k": "v" * 513}}, "metadata.k", "string too long. Expected a string with maximum length 512"),
        ({"metadata": dict.fromkeys("abcdefghijklmnopq", "")}, "metadata", "at most 16, but got 17 instead."),
        ({"logit_bias": {str(i): 1 for i in range(301)}}, "logit_bias", "at most 300, but got 301 instead."),
    ],
)
def test_a_completion_that_does_not_fit_is_refused_by_path(body: dict[str, Any], param: str, text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        completion(**body)
    assert caught.value.param == param
    assert text in caught.value.message
    assert not isinstance(caught.value, UnsupportedParameter)


@pytest.mark.parametrize(
    ("body", "param", "text"),
    [
        ({"messages": []}, "messages", "empty array"),
        ({"messages": "hi"}, "messages", "expected an array, but got a string"),
        ({"messages": ["hi"]}, "messages.0", "expected an object, but got a string"),
        (message(role=5), "messages.1.role", "expected a string, but got an integer"),
        (
            message(role="usr"),
            "messages.1.role",
            "Invalid value: 'usr'. Supported values are: 'system', 'developer', 'user' or 'assistant'.",
        ),
        (message(content=None), "messages.1.content", "expected a string, but got null"),
        (message(content=[]), "messages.1.content", "empty array"),
        (message(content=["a"]), "messages.1.content.0", "expected an object, but got a string"),
        (message(content=[{"type": "text"}]), "messages.1.content.0.text", "Missing required parameter"),
        (message(content=[{"type": "blob"}]), "messages.1.content.0.type", "Invalid value: 'blob'."),
        (message(contnet="a"), "messages.1.contnet", "Unknown parameter: 'messages.1.contnet'."),
        ({"prompt": "a"}, "prompt", "Unknown parameter: 'prompt'."),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "two names of the same limit"),
        ({"max_completion_tokens": 10**4000}, "max_completion_tokens", "value above the maximum"),
    ],
)
def test_a_chat_that_does_not_fit_is_refused_by_path(body: dict[str, Any], param: str, text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat(**body)
    assert caught.value.param == param
    assert text in caught.value.message


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ({"role": "tool"}, "messages.1.role"),
        ({"content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}]}, "messages.1.content.1"),
        ({"content": [{"type": "input_audio"}]}, "messages.1.content.0"),
        ({"name": "ann"}, "messages.1.name"),
        ({"tool_calls": [{}]}, "messages.1.tool_calls"),
    ],
)
def test_what_only_openais_messages_may_hold_is_named(field: dict[str, Any], param: str) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        chat(**message(**field))
    assert caught.value.param == param


def test_an_answer_can_be_sent_back_as_sdks_do() -> None:
    fields = {"role": "assistant", "refusal": None, "tool_calls": None, "annotations": [], "audio": None}
    assert chat(**message(**fields)).messages[1].content == "b"


CASES = [
    (parse, name, values)
    for parse, table in ((completion, unsupported.COMPLETION), (chat, unsupported.CHAT))
    for name, values in table.items()
]


@pytest.mark.parametrize(("parse", "name", "values"), CASES)
def test_neutral_values_pass_and_any_other_is_refused_by_name(parse: Any, name: str, values: tuple[Any, ...]) -> None:
    for value in (None, *values):
        assert parse(**{name: value}) == parse()
    for value in ("odd", 17, {"odd": 1}, ["odd"]):
        with pytest.raises(UnsupportedParameter) as caught:
            parse(**{name: value})
        assert caught.value.param == name
        assert name in caught.value.message


def test_true_is_not_the_number_one() -> None:
    with pytest.raises(UnsupportedParameter):
        completion(repetition_penalty=True)
    with pytest.raises(UnsupportedParameter):
        chat(store=0)


def test_no_parameter_is_both_served_and_refused() -> None:
    assert not set(unsupported.COMPLETION) & set(CompletionBody.model_fields)
    assert not set(unsupported.CHAT) & set(ChatBody.model_fields)


def test_null_means_the_default() -> None:
    nulls = dict.fromkeys(["stream", "stream_options", "stop", "n", "seed", "temperature", "max_tokens", "user"])
    assert completion(**nulls) == completion()
    assert completion(best_of=2, n=2).n == 2
    assert completion(best_of=1).n is None

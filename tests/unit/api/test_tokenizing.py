"""Tokens over HTTP: what the other routes would make of a text, and back; who may ask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from easel.api.callers import is_guarded
from easel.api.model_card import read_model_card
from easel.api.prompt import PromptEncoder, read_prompt_encoder
from easel.settings import ModelSettings
from ops.training.tokenizer import BOS, TURN_CLOSE, encode_chat, encode_text
from tests.unit.api.edge import CONTEXT, edge
from tests.unit.api.test_keys import sha256, write

CHAT = [{"role": "user", "content": "Hi <turn|>"}]


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_a_prompt_and_a_chat_become_what_the_model_would_see(checkpoint: Path, prefix: str) -> None:
    async with edge(checkpoint) as e:

        async def ask(**body: Any) -> dict[str, Any]:
            answer = await e.client.post(f"{prefix}/tokenize", json=body)
            assert answer.status_code == 200, answer.text
            found: dict[str, Any] = answer.json()
            assert (found["count"], found["max_model_len"]) == (len(found["tokens"]), CONTEXT)
            return found

        plain = [BOS, *encode_text("Hé <turn|>")]
        assert await ask(model="easel/alias", prompt="Hé <turn|>") == {
            "count": len(plain), "max_model_len": CONTEXT, "tokens": plain, "token_strs": None
        }  # fmt: skip
        assert (await ask(prompt="Hé <turn|>", add_special_tokens=False))["tokens"] == plain[1:]
        assert (await ask(prompt=""))["tokens"] == [BOS]
        assert (await ask(prompt="a b", return_token_strs=True))["token_strs"] == ["<bos>", "a", "Ġ", "b"]
        chat = encode_chat(CHAT)
        assert (await ask(messages=CHAT))["tokens"] == chat
        closed = encode_chat(CHAT, add_generation_prompt=False)
        assert (await ask(messages=CHAT, add_generation_prompt=False, tools=[]))["tokens"] == closed
        await e.client.post("/v1/chat/completions", json={"model": "easel", "messages": CHAT, "max_tokens": 1})
        assert list(e.backend.requests[-1].prompt) == chat


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_tokens_become_their_text_with_control_tokens_by_name(checkpoint: Path, prefix: str) -> None:
    async with edge(checkpoint) as e:
        tokens = [BOS, *encode_text("Hé"), TURN_CLOSE, *encode_text("!")]
        answer = await e.client.post(f"{prefix}/detokenize", json={"tokens": tokens, "model": "easel"})
        assert (answer.status_code, answer.json()) == (200, {"prompt": "<bos>Hé<turn|>!"})
        assert (await e.client.post(f"{prefix}/detokenize", json={"tokens": []})).json() == {"prompt": ""}


@pytest.fixture(scope="module")
def encoder(checkpoint: Path) -> PromptEncoder:
    return read_prompt_encoder(read_model_card("m", ModelSettings(checkpoint=str(checkpoint))), checkpoint)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text())
def test_there_and_back_is_the_same(encoder: PromptEncoder, text: str) -> None:
    assert encoder.spelled(encoder.plain(text, "prompt")) == text


@pytest.mark.parametrize(
    ("route", "body", "param", "says"),
    [
        ("tokenize", {"prompt": "a", "promt": 1}, "promt", "Did you mean 'prompt'?"),
        ("tokenize", {}, "prompt", "Missing"),
        ("tokenize", {"prompt": "a", "messages": CHAT}, "messages", "together"),
        ("tokenize", {"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt", "only allowed"),
        ("tokenize", {"prompt": ["a"]}, "prompt", "a string"),
        ("tokenize", {"prompt": "a", "stream_options": {}}, "stream_options", "Unknown"),
        ("tokenize", {"messages": []}, "messages", "empty array"),
        ("tokenize", {"messages": [{"role": "tool", "content": ""}]}, "messages.0.role", "tool"),
        ("tokenize", {"messages": CHAT, "chat_template": "x"}, "chat_template", "not supported"),
        ("tokenize", {"prompt": "a" * CONTEXT * 4}, "prompt", "maximum context length"),
        ("detokenize", {}, "tokens", "Missing"),
        ("detokenize", {"tokens": [384]}, "tokens", "outside the vocabulary"),
        ("detokenize", {"tokens": [-1]}, "tokens.0", ">= 0"),
        ("detokenize", {"tokens": ["a"]}, "tokens.0", "an integer"),
        ("detokenize", {"tokens": [], "token": []}, "token", "Unknown"),
    ],
)
async def test_what_is_wrong_is_named(
    checkpoint: Path, route: str, body: dict[str, Any], param: str, says: str
) -> None:
    async with edge(checkpoint) as e:
        answer = await e.client.post(f"/{route}", json=body)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, param), error
        assert says in error["message"]
        assert set(error) == {"message", "type", "param", "code"}


async def test_another_model_is_not_found(checkpoint: Path) -> None:
    async with edge(checkpoint) as e:
        for route, body in (("tokenize", {"prompt": "a"}), ("detokenize", {"tokens": [200]})):
            answer = await e.client.post(f"/{route}", json=body | {"model": "other"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize", "/v1/tokenize", "/v1/detokenize"])
@pytest.mark.parametrize("root", ["", "/wide"])
async def test_they_ask_for_a_key_wherever_they_are_mounted(
    checkpoint: Path, tmp_path: Path, path: str, root: str
) -> None:
    file = tmp_path / "keys.yaml"
    write(
        file, {"id": "one", "sha256": sha256("good")}, {"id": "two", "sha256": sha256("other"), "models": ["another"]}
    )
    async with edge(checkpoint, api={"keys_file": str(file)}) as e:
        e.client._transport.root_path = root  # type: ignore[attr-defined]
        body = json.dumps({"prompt": "a"} if path.endswith("/tokenize") else {"tokens": [200]})
        assert (await e.client.post(root + path, content=body)).status_code == 401
        good = await e.client.post(root + path, content=body, headers={"authorization": "Bearer good"})
        assert good.status_code == 200, good.text
        other = await e.client.post(root + path, content=body, headers={"authorization": "Bearer other"})
        assert (other.status_code, other.json()["error"]["code"]) == (403, "model_not_allowed")


@pytest.mark.parametrize(
    ("path", "root", "expected"),
    [
        ("/tokenize", "", True),
        ("/tokenize/", "", True),
        ("//tokenize", "", True),
        ("/wide/tokenize", "/wide", True),
        ("/wide//tokenize", "/wide/", True),
        ("/wide//v1/models", "/wide/", True),
        ("/v1/models", "/wide", True),
        ("/wide/healthz", "/wide", False),
        ("/tokenizer", "", False),
        ("/version", "", False),
    ],
)
def test_no_spelling_of_a_path_goes_round_the_key(path: str, root: str, expected: bool) -> None:
    assert is_guarded({"path": path, "root_path": root}) is expected

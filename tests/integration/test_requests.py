"""Requests through HAProxy, the ingress and a handle to the engine: answers, streams, errors, clients that leave."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest

from easel.rayserve.local import Local
from tests.integration.conftest import APPLICATIONS, PATIENCE_S, let_go, replica_of, wait_until
from tests.integration.script import SLOTS


@pytest.fixture
def client(local: Local) -> Iterator[openai.OpenAI]:
    http = httpx.Client(trust_env=False)
    with openai.OpenAI(
        base_url=local.session.url + "/v1", api_key="-", max_retries=0, timeout=PATIENCE_S, http_client=http
    ) as made:
        yield made


def streamed(client: openai.OpenAI, prompt: str, max_tokens: int, seed: int = 0) -> str:
    chunks = client.completions.create(model="easel", prompt=prompt, max_tokens=max_tokens, seed=seed, stream=True)
    return "".join(choice.text for chunk in chunks for choice in chunk.choices)


def test_answers_the_openai_client_whole_and_streamed_with_the_same_text(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="easel", prompt="Hello", max_tokens=600, seed=7)
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage
    assert whole.usage.completion_tokens == 600
    assert len(whole.choices[0].text) == 600
    assert streamed(client, "Hello", 600, seed=7) == whole.choices[0].text


def test_answers_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="easel", messages=[{"role": "user", "content": "Hello"}], max_completion_tokens=20
    )
    assert len(answer.choices[0].message.content or "") == 20


def test_an_answer_carries_one_request_id_and_the_clients_own_where_it_sent_one(client: openai.OpenAI) -> None:
    headers = client.models.with_raw_response.list().headers
    assert len(headers.get_list("x-request-id")) == 1
    headers = client.models.with_raw_response.list(extra_headers={"x-request-id": "mine-7"}).headers
    assert headers.get_list("x-request-id") == ["mine-7"]


def test_sixteen_streams_at_once_say_what_they_say_alone(client: openai.OpenAI) -> None:
    asked = [(f"number {i}", 64 + 61 * i, i) for i in range(16)]
    alone = [streamed(client, *what) for what in asked]
    assert len(set(alone)) == 16
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda what: streamed(client, *what), asked)) == alone


def test_a_client_that_leaves_frees_its_slot(local: Local, client: openai.OpenAI, tmp_path: Path) -> None:
    """Answers that never end hold every slot, three times over: what came after would not get one."""
    never = tmp_path / "never"
    with (
        httpx.Client(base_url=local.session.url, timeout=PATIENCE_S, trust_env=False) as http,
        ThreadPoolExecutor(SLOTS) as pool,
        let_go(never),
    ):
        body = {"model": "easel", "prompt": f"hold 0 {never}", "max_tokens": 300, "stream": True}
        for _ in range(3):
            asked = [http.build_request("POST", "/v1/completions", json=body) for _ in range(SLOTS)]
            streams = list(pool.map(lambda request: http.send(request, stream=True), asked))
            for stream in streams:
                assert stream.status_code == 200
                stream.close()
        answers = list(pool.map(lambda i: streamed(client, "quick", 8, i), range(SLOTS)))
    assert [len(answer) for answer in answers] == [8] * SLOTS


def test_an_error_before_the_first_byte_is_a_status(client: openai.OpenAI) -> None:
    """With nothing of the answer given it is tried once more, and then not again: not by the client's SDK either."""
    for prompt, stream in (("refuse", True), ("refuse", False), ("fail 0", False)):
        with pytest.raises(openai.InternalServerError) as raised:
            client.completions.create(model="easel", prompt=prompt, max_tokens=600, stream=stream)
        assert raised.value.code == "request_quarantined"
        assert raised.value.response.headers["x-should-retry"] == "false"
    with pytest.raises(openai.InternalServerError, match="told to fail") as raised:
        client.completions.create(model="easel", prompt="whole: fail 1", max_tokens=600)
    assert raised.value.code == "engine_failed"


def test_an_error_after_the_first_byte_is_an_event(local: Local, client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIError, match="told to fail") as raised:
        streamed(client, "sdk: fail 1", 600)
    assert raised.value.code == "engine_failed"
    body = {"model": "easel", "prompt": "raw: fail 1", "max_tokens": 600, "stream": True}
    answer = httpx.post(local.session.url + "/v1/completions", json=body, timeout=PATIENCE_S, trust_env=False)
    assert answer.status_code == 200
    events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert json.loads(events[-1])["error"]["code"] == "engine_failed"
    assert "[DONE]" not in answer.text


def test_a_wrong_field_is_named_by_a_400(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.completions.create(model="easel", prompt="Hello", max_tokens=-1)
    assert raised.value.param == "max_tokens"


def test_live_limits_change_without_a_new_replica(local: Local, client: openai.OpenAI) -> None:
    def steps() -> int:
        usage = client.completions.create(model="easel", prompt="slow", max_tokens=8).usage
        return int(usage.easel["denoising_steps"]) if usage else 0  # type: ignore[attr-defined]

    def told() -> int:
        return int(client.models.retrieve("easel").easel["max_denoising_steps"])  # type: ignore[attr-defined]

    replica = replica_of(local, "engine")
    assert (steps(), told()) == (48, 48)
    config = local.config(APPLICATIONS + "build")
    engine = config["applications"][0]["deployments"][1]
    engine["user_config"]["max_denoising_steps"] = 5
    local.dashboard.deploy(config)
    wait_until(lambda: steps() == 5, "the bound on denoising steps is taken up")
    wait_until(lambda: told() == 5, "clients are told of it")
    engine["user_config"]["max_denoising_steps"] = None
    local.dashboard.deploy(config)
    wait_until(lambda: (steps(), told()) == (48, 48), "the bound is lifted again")
    assert replica.is_running()

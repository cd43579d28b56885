"""The real engine with the embedded checkpoint behind the whole way: what `make run` serves."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from easel.rayserve.config import IMPORT_PATH, arguments, live_limits
from easel.rayserve.local import Local
from easel.settings import load
from tests.integration.conftest import APPLICATIONS, PATIENCE_S, ROOT, replica_of, wait_until


@pytest.fixture(scope="module")
def client(local: Local) -> Iterator[openai.OpenAI]:
    """The application of deployments/local, as a second one of the running session."""
    settings = load(ROOT / "deployments/local/easel.yaml")
    before = local.config(APPLICATIONS + "build")
    native = local.config()["applications"][0] | {
        "name": "native",
        "route_prefix": "/native",
        "import_path": IMPORT_PATH,
        "args": arguments(settings.app),
    }
    for deployment in native["deployments"]:
        deployment["ray_actor_options"] = {"num_cpus": 0}
    engine = native["deployments"][1]
    engine |= {"user_config": live_limits(settings.app.model.engine), "max_ongoing_requests": 18}
    local.dashboard.deploy(before | {"applications": [*before["applications"], native]})
    url = local.session.url + "/native"
    http = httpx.Client(trust_env=False)
    wait_until(lambda: http.get(url + "/readyz").status_code == 200, "the model is loaded")
    with openai.OpenAI(base_url=url + "/v1", api_key="-", max_retries=0, timeout=PATIENCE_S, http_client=http) as made:
        yield made
    local.dashboard.deploy(before)


def streamed(client: openai.OpenAI, prompt: str, max_tokens: int, seed: int) -> str:
    chunks = client.completions.create(model="easel", prompt=prompt, max_tokens=max_tokens, seed=seed, stream=True)
    return "".join(choice.text for chunk in chunks for choice in chunk.choices)


def test_sixteen_streams_at_once_say_what_they_say_alone(client: openai.OpenAI) -> None:
    asked = [("reverse: " + "abcdefghij"[: 1 + i % 10], 8 + 8 * i, i) for i in range(16)]
    alone = [streamed(client, *what) for what in asked]
    assert any(alone)
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda what: streamed(client, *what), asked)) == alone


def test_answers_chat_and_accounts_for_it(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="easel", messages=[{"role": "user", "content": "reverse: abc"}], max_completion_tokens=32, temperature=0
    )
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage
    assert answer.usage.prompt_tokens > 12


def test_comes_back_after_its_process_was_killed(local: Local, client: openai.OpenAI) -> None:
    replica = replica_of(local, "engine", "native")
    replica.kill()
    answer = client.completions.create(model="easel", prompt="reverse: abc", max_tokens=16, seed=1)
    assert answer.choices[0].text == streamed(client, "reverse: abc", 16, 1)
    assert replica_of(local, "engine", "native").pid != replica.pid

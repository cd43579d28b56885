"""Keys at the edge: who gets in, as which tenant, how far, and what is counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from easel.api.callers import duration
from easel.router.limits import Limiter
from easel.telemetry.logs import fields_of
from easel.telemetry.names import KEY_REFUSALS, KEY_REQUESTS, KEY_STEPS, KEY_TOKENS, KEY_WORK
from tests.unit.api.edge import Edge, Stream, edge, until
from tests.unit.api.test_keys import sha256, write

GOOD = {"authorization": "Bearer good"}


@asynccontextmanager
async def guarded(checkpoint: Path, tmp_path: Path, **key: Any) -> AsyncIterator[tuple[Edge, Limiter]]:
    """An edge with one key, `good`, which may do what `key` says."""
    file = tmp_path / "keys.yaml"
    write(file, {"id": "good-id", "sha256": sha256("good"), "tenant": "team"} | key)
    limiter = Limiter(asyncio.get_running_loop().time)
    async with edge(checkpoint, api={"keys_file": str(file)}, limits=limiter) as made:
        yield made, limiter


async def post(made: Edge, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
    data = {"model": "easel", "prompt": "Hi", "max_tokens": 20} | body
    return await made.client.post("/v1/completions", json=data, headers=GOOD if headers is None else headers)


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ({}, "You didn't provide an API key"),
        ({"authorization": "Basic good"}, "You didn't provide an API key"),
        ({"authorization": "Bearer "}, "You didn't provide an API key"),
        ({"authorization": "Bearer bad"}, "Incorrect API key"),
    ],
)
async def test_without_a_right_key_there_is_401(
    checkpoint: Path, tmp_path: Path, headers: dict[str, str], says: str
) -> None:
    async with guarded(checkpoint, tmp_path) as (made, _):
        answer = await post(made, headers)
        error = answer.json()["error"]
        assert answer.status_code == 401
        assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "invalid_api_key", None)
        assert says in error["message"]
        assert "bad" not in answer.text
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["x-request-id"]
        assert made.recorder.total(KEY_REFUSALS) == 1
        assert (await made.client.get("/v1/models", headers=headers)).status_code == 401


@pytest.mark.parametrize("prefix", ["/llm", "/v1"])
async def test_below_a_prefix_keys_are_asked_for_as_well(checkpoint: Path, tmp_path: Path, prefix: str) -> None:
    """As Serve mounts an application: `path` is whole, `root_path` what comes before ours."""
    async with guarded(checkpoint, tmp_path) as (made, _):
        transport = httpx.ASGITransport(made.app, root_path=prefix)
        async with httpx.AsyncClient(transport=transport, base_url="http://easel") as client:
            assert (await client.get(f"{prefix}/v1/models")).status_code == 401
            assert (await client.get(f"{prefix}/v1/models", headers=GOOD)).status_code == 200
            assert (await client.post(f"{prefix}/v1/completions", json={})).status_code == 401
            assert (await client.get("/v1/models")).status_code == 401


async def test_probes_need_no_key(checkpoint: Path, tmp_path: Path) -> None:
    async with guarded(checkpoint, tmp_path) as (made, _):
        for path in ("/healthz", "/readyz", "/version"):
            assert (await made.client.get(path)).status_code == 200


async def test_the_openai_client_raises_its_own_error(checkpoint: Path, tmp_path: Path) -> None:
    async with guarded(checkpoint, tmp_path) as (made, _):
        transport = httpx.ASGITransport(made.app)
        async with httpx.AsyncClient(transport=transport) as http:
            client = openai.AsyncOpenAI(api_key="bad", base_url="http://edge/v1", http_client=http)
            with pytest.raises(openai.AuthenticationError) as error:
                await client.completions.create(model="easel", prompt="Hi")
            assert error.value.code == "invalid_api_key"
            good = openai.AsyncOpenAI(api_key="good", base_url="http://edge/v1", http_client=http)
            answer = await good.completions.with_raw_response.create(model="easel", prompt="Hi")
            assert answer.status_code == 200


async def test_a_call_runs_as_its_keys_tenant_and_is_counted(checkpoint: Path, tmp_path: Path) -> None:
    async with guarded(checkpoint, tmp_path) as (made, limiter):
        answer = await post(made, n=2)
        assert answer.status_code == 200
        assert {request.tenant for request in made.backend.requests} == {"team"}
        usage = answer.json()["usage"]
        labels = {"key": "good-id", "tier": "balanced"}
        assert made.recorder.total(KEY_REQUESTS, **labels) == 1
        assert made.recorder.total(KEY_TOKENS, kind="output", **labels) == usage["completion_tokens"]
        assert made.recorder.total(KEY_STEPS, **labels) == usage["easel"]["denoising_steps"]
        assert made.recorder.total(KEY_WORK, **labels) == pytest.approx(usage["easel"]["work"], abs=1e-3)
        assert limiter.running("good-id") == 0


async def test_limits_come_as_headers_and_as_429(checkpoint: Path, tmp_path: Path) -> None:
    async with guarded(checkpoint, tmp_path, requests_per_minute=2, tokens_per_minute=6000) as (made, _):
        first = await post(made)
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        assert first.headers["x-ratelimit-reset-requests"] == "30s"
        assert int(first.headers["x-ratelimit-remaining-tokens"]) < 6000
        assert (await post(made, stream=True)).status_code == 200
        refused = await post(made)
        assert refused.status_code == 429
        error = refused.json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
        assert "requests per minute: limit 2" in error["message"]
        assert 0 < int(refused.headers["retry-after"]) <= 30
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        assert made.recorder.total(KEY_REFUSALS, reason="limit") == 1


async def test_denoising_steps_are_charged_as_canvases_come(checkpoint: Path, tmp_path: Path) -> None:
    async with guarded(checkpoint, tmp_path, denoising_steps_per_minute=20) as (made, _):
        assert (await post(made, max_tokens=64)).status_code == 200
        refused = await post(made)
        assert refused.status_code == 429
        assert "denoising steps per minute: limit 20" in refused.json()["error"]["message"]


async def test_a_call_counts_as_running_until_its_stream_ends_or_its_client_leaves(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with guarded(checkpoint, tmp_path, max_concurrent=1) as (made, limiter):
        made.backend.engine._step_s = 0.02
        streaming = asyncio.create_task(post(made, stream=True, max_tokens=64))
        await until(lambda: limiter.running("good-id") == 1)
        refused = await post(made)
        assert refused.status_code == 429
        assert "concurrent" in refused.json()["error"]["message"]
        assert Stream.of((await streaming).text).done
        assert limiter.running("good-id") == 0
        leaving = asyncio.create_task(post(made, max_tokens=64))
        await until(lambda: limiter.running("good-id") == 1)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        await until(lambda: limiter.running("good-id") == 0)


async def test_a_call_that_is_refused_for_its_body_costs_nothing(checkpoint: Path, tmp_path: Path) -> None:
    async with guarded(checkpoint, tmp_path, requests_per_minute=1) as (made, limiter):
        assert (await post(made, temperature=9)).status_code == 400
        assert (await post(made)).status_code == 200
        assert limiter.running("good-id") == 0


async def test_a_key_may_be_for_other_models(checkpoint: Path, tmp_path: Path) -> None:
    async with guarded(checkpoint, tmp_path, models=["another"]) as (made, _):
        refused = await post(made)
        assert refused.status_code == 403
        assert refused.json()["error"]["code"] == "model_not_allowed"
        assert (await made.client.get("/v1/models", headers=GOOD)).json()["data"] == []
        assert (await made.client.get("/v1/models/easel", headers=GOOD)).status_code == 404


async def test_a_key_for_an_alias_may_use_the_model_by_any_name(checkpoint: Path, tmp_path: Path) -> None:
    async with guarded(checkpoint, tmp_path, models=["easel/alias"]) as (made, _):
        assert (await post(made)).status_code == 200
        assert len((await made.client.get("/v1/models", headers=GOOD)).json()["data"]) == 2


async def test_priority_goes_as_high_as_the_key_allows(checkpoint: Path, tmp_path: Path) -> None:
    async with guarded(checkpoint, tmp_path, max_priority=2) as (made, _):
        wishes = {"priority": 2, "queue_timeout_ms": 1500, "deadline_ms": 60_000}
        assert (await post(made, easel=wishes)).status_code == 200
        (request,) = made.backend.requests
        assert (request.priority, request.queue_timeout_s) == (2, 1.5)
        refused = await post(made, easel={"priority": 3})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "easel.priority"
        unknown = await post(made, easel={"dead_line": 3})
        assert unknown.json()["error"]["param"] == "easel.dead_line"


async def test_the_log_names_the_key_and_never_shows_it(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "easel.access")
    async with guarded(checkpoint, tmp_path) as (made, _):
        await post(made)
        assert fields_of(caplog.records[-1])["key"] == "good-id"
        assert "Bearer" not in caplog.text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0s"), (0.12, "120ms"), (1.0, "1s"), (61.4, "1m1s"), (360.0, "6m0s"), (3603.0, "1h0m3s")],
)
def test_durations_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text

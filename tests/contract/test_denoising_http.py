"""Tiers, knobs and both kinds of deadline over HTTP, with the native engine behind a router: the trained checkpoint, no
Ray. Nothing here is timed: what is waited for would take many times as long if it did not happen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from easel.api.app import create_app
from easel.engine.native.engine import NativeEngine
from easel.evals.sudoku import solves
from easel.protocol import Event, GenerationRequest
from easel.router.router import Router
from easel.settings import AppSettings
from tests.unit.api.edge import Stream, served

PUZZLE = "500090600090006800003508720070000000400000000005000403000060200000800070960230005"
ENDLESS = {"confidence": 0, "max_denoising_steps": 1000}
"""A canvas that never is sure enough: many seconds."""
REPLICA = "one"


class Routed:
    """A backend: one replica behind a router, as an ingress has it."""

    def __init__(self, engine: NativeEngine, settings: AppSettings) -> None:
        self.engine = engine
        self.router = Router(settings.router, self._send, 96, "easel")
        self.router.replicas([REPLICA])
        self.router.replica_said(REPLICA, engine.stats())

    async def _send(self, request: GenerationRequest) -> AsyncIterator[Event]:
        self.router.destination(request, [REPLICA])
        self.router.went(request, REPLICA)
        async for event in self.engine.generate(request):
            yield event

    def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
        return self.router.generate(request)

    async def ready(self) -> str | None:
        return None

    async def until_running(self, requests: int) -> None:
        async with asyncio.timeout(60):
            while self.engine.stats().sequences < requests:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def service(slots: int = 2) -> AsyncIterator[tuple[httpx.AsyncClient, Routed]]:
    engine = {"slots": slots, "threads": 1, "context_tokens": 512, "max_denoising_steps": 1000}
    router = {"surplus_requests": 0}
    settings = AppSettings.model_validate({"models": {"default": {"engine": engine}}, "router": router})
    native = NativeEngine(settings.model.folder, settings.model.engine)
    await native.start()
    try:
        backend = Routed(native, settings)
        async with (
            served(create_app(settings, backend)) as address,
            httpx.AsyncClient(base_url=address, timeout=120, trust_env=False) as client,
        ):
            yield client, backend
    finally:
        await native.stop()


def solving(seed: int = 3, puzzle: str = PUZZLE, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": puzzle}]
    return {"model": "easel", "messages": messages, "max_tokens": 96, "seed": seed} | more


async def chat(client: httpx.AsyncClient, **more: Any) -> httpx.Response:
    return await client.post("/v1/chat/completions", json=solving(**more))


@pytest.mark.parametrize("stream", [False, True])
async def test_at_the_deadline_the_best_canvas_so_far_is_the_answer(stream: bool) -> None:
    async with service() as (client, _):
        for deadline_ms in (2000, 10_000):  # a busy machine takes longer over the steps that this puzzle needs
            answer = await chat(client, easel={"deadline_ms": deadline_ms, **ENDLESS}, stream=stream)
            assert answer.status_code == 200, answer.text
            if stream:
                told = Stream.of(answer.text)
                assert told.done
                text = told.text()
                choice = next(event for event in reversed(told.events) if event["choices"])["choices"][0]
            else:
                (choice,) = answer.json()["choices"]
                text = choice["message"]["content"]
            assert choice["finish_reason"] == "stop", "the canvas that was committed holds the answer's end"
            (canvas,) = choice["easel"]["canvases"]
            assert canvas["stop"] == "deadline"
            if not stream:
                usage = answer.json()["usage"]["easel"]
                assert (usage["denoising_steps"], usage["stops"]) == (canvas["denoising_steps"], {"deadline": 1})
            if solves(PUZZLE, text):
                break
        assert solves(PUZZLE, text), "so many steps are enough for this one"


async def test_a_deadline_that_no_step_fits_is_refused() -> None:
    async with service() as (client, _):
        await chat(client)  # how long a step takes is known from now on
        refused = await chat(client, easel={"deadline_ms": 1, **ENDLESS})
        assert (refused.status_code, refused.json()["error"]["code"]) == (504, "deadline_exceeded")


async def test_a_queue_timeout_evicts_and_a_deadline_does_not() -> None:
    async with service(slots=1) as (client, backend):
        running = asyncio.create_task(chat(client, easel=ENDLESS))
        await backend.until_running(1)
        for wait_ms in (0, 50):
            evicted = await chat(client, easel={"queue_timeout_ms": wait_ms, "deadline_ms": 60_000})
            assert (evicted.status_code, evicted.json()["error"]["code"]) == (503, "queue_timeout")
            assert "retry-after" in evicted.headers
        assert not running.done(), "whoever runs is not disturbed by those who wait"
        waiting = asyncio.create_task(chat(client, easel={"queue_timeout_ms": 60_000}))
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        answer = await waiting
        assert answer.status_code == 200
        assert solves(PUZZLE, answer.json()["choices"][0]["message"]["content"])
        # Once it runs a queue timeout is no deadline.
        answer = await chat(client, easel={"queue_timeout_ms": 1, "confidence": 0})
        assert (answer.status_code, answer.json()["usage"]["easel"]["stops"]) == (200, {"step_cap": 1})


async def test_tiers_take_their_steps_and_the_same_seed_the_same_text_beside_others() -> None:
    async with service(slots=6) as (client, backend):

        async def ask(tier: str, seed: int) -> tuple[str, int]:
            answer = (await chat(client, seed=seed, service_tier=tier, temperature=1)).json()
            own = answer["usage"]["easel"]
            assert (answer["service_tier"], own["tier"], own["stops"]) == (tier, tier, {"converged": 1})
            return answer["choices"][0]["message"]["content"], own["denoising_steps"]

        asked = [(tier, seed) for seed in (1, 2) for tier in ("fast", "balanced", "quality")]
        alone = [await ask(*one) for one in asked]
        for fast, balanced, quality in (alone[:3], alone[3:]):
            # Stability alone: the same canvases, looked at once more each time, unless the colder bound differs.
            assert fast[1] < balanced[1]
            assert fast[1] < quality[1]
        other = asyncio.create_task(chat(client, easel=ENDLESS))
        await backend.until_running(1)
        together = await asyncio.gather(*(ask(*one) for one in asked))
        assert list(together) == alone
        assert not other.done()
        other.cancel()
        await asyncio.gather(other, return_exceptions=True)

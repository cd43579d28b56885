"""The whole way of a request in one process: API, router, replica, engine, without Ray between them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import httpx

from easel.api.app import create_app
from easel.api.model_card import read_model_card
from easel.engine.factory import make_engine
from easel.protocol import Engine, Event, GenerationRequest
from easel.rayserve import replica as replica_module
from easel.rayserve.replica import EngineReplica
from easel.rayserve.reporting import Reporter
from easel.router.router import Router
from easel.settings import AppSettings
from easel.telemetry.engine_account import EngineAccount
from easel.telemetry.names import LOOP_LAG_SECONDS
from easel.telemetry.setup import Telemetry


@dataclass
class OneProcess:
    """What a test holds."""

    client: httpx.AsyncClient
    engine: Engine
    replica: EngineReplica
    router: Router
    model: str

    async def complete(self, prompt: Any = "Hi", headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
        asked = {"model": self.model, "prompt": prompt, **body}
        return await self.client.post("/v1/completions", json=asked, headers=headers)

    async def exported(self) -> None:
        """Statistics as they are now are out."""
        await asyncio.sleep(3 * replica_module.STATS_PERIOD_S)


class _Backend:
    def __init__(self, router: Router) -> None:
        self.generate = router.generate

    async def ready(self) -> str | None:
        return None


@asynccontextmanager
async def one_process(settings: AppSettings, ingress: Telemetry, engine: Telemetry) -> AsyncIterator[OneProcess]:
    """`ingress` and `engine`: where the two parts' telemetry goes."""
    card = read_model_card(settings.model_key, settings.model)
    account = EngineAccount(card.name, engine.recorder, engine.tracer, "r-1", 1.0, settings.telemetry.gpu_hour_price)
    replica: Any = object.__new__(EngineReplica)
    await cast("Any", replica).__init__(card.name, settings.model, make_engine, account)

    async def send(request: GenerationRequest) -> AsyncIterator[Event]:
        router.destination(request, ["r-1"])
        router.went(request, "r-1")
        async with aclosing(replica.generate(request)) as bundles:
            async for bundle in bundles:
                for event in bundle:
                    yield event

    router = Router(
        settings.router,
        send,
        card.canvas_length,
        card.name,
        recorder=ingress.recorder,
        step_cap=card.most_steps,
        tracer=ingress.tracer,
    )
    router.replicas(["r-1"])
    router.replica_said("r-1", await replica.stats())

    async def put(report: dict[str, Any], targets: dict[str, Any]) -> list[dict[str, Any]]:
        return [report]

    def late(seconds: float) -> None:
        ingress.recorder.observe(LOOP_LAG_SECONDS, seconds, model=card.name)

    actor = SimpleNamespace(put=SimpleNamespace(remote=put))
    reporting = asyncio.create_task(Reporter(router, lambda: actor, late).run())
    app = create_app(
        settings,
        _Backend(router),
        ingress.recorder,
        router.limiter,
        router.tenants,
        ingress.tracer,
        step_bound=lambda: router.step_bound,
    )
    try:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://edge", timeout=60) as client:
            yield OneProcess(client, replica._engine, replica, router, card.name)
    finally:
        while not reporting.done():  # Python 3.11's wait_for, in it, sometimes swallows a cancellation
            reporting.cancel()
            await asyncio.sleep(0.001)
        await replica.close()

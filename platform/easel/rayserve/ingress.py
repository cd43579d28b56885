"""The ingress deployment: a shell that puts the API and the router inside a Serve replica.

Owns: nothing but the wiring: API -> router -> handle to the engine deployment, and back. Refuses to know: routes,
prompts, engines, and every decision of the router's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from ray import serve

from easel.api.app import create_app
from easel.api.cancelling import RunningCalls
from easel.api.model_card import read_model_card
from easel.playground.page import mount
from easel.protocol import Event, GenerationRequest
from easel.rayserve import beginnings, switchboard
from easel.rayserve.backend import EngineHandle
from easel.rayserve.cancellations import CancelLine
from easel.rayserve.config import ENGINE, LOG_LEVEL
from easel.rayserve.ledger import find_or_start
from easel.rayserve.loopback import keep_on_loopback
from easel.rayserve.metrics import Start
from easel.rayserve.reporting import Reporter
from easel.rayserve.request_id import LeaveRequestIdToServe
from easel.rayserve.slow_readers import keep_buffers_small
from easel.rayserve.watch import ReplicaWatch, count_running
from easel.router.router import Router
from easel.settings import AppSettings
from easel.telemetry import logs, setup
from easel.telemetry.names import LOOP_LAG_SECONDS

if TYPE_CHECKING:
    from fastapi import FastAPI


class RoutedBackend:
    """The API's `Backend`: the router, and whether there is anything behind it."""

    def __init__(self, router: Router, watch: ReplicaWatch) -> None:
        self._router = router
        self._watch = watch
        self.scales_to_zero = False
        """No replica is no reason not to be ready: one starts when a request comes."""

    def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
        """See `easel.router.router.Router.generate`."""
        return self._router.generate(request)

    async def ready(self) -> str | None:
        """None where requests can come, otherwise a sentence for a client."""
        if self.scales_to_zero or await self._watch.running():
            return None
        return "No engine runs yet: the model is loading."


class Ingress:
    """`engine` is Serve's handle to the engine deployment; `start` begins the replica's telemetry."""

    def __init__(self, settings: AppSettings, engine: Any, start: Start) -> None:
        keep_on_loopback()
        keep_buffers_small()
        self._settings = settings
        self._engine = engine
        self._backend: RoutedBackend | None = None
        self._reporter: Reporter | None = None
        self._working: list[asyncio.Task[None]] = []
        self._start = start
        self._telemetry = setup.Telemetry()

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """Serve calls this once, in the replica: an application holds tokenizers and clients that do not travel."""
        context, settings = serve.get_replica_context(), self._settings
        replica = context.replica_id.unique_id
        self._telemetry = self._start(settings.telemetry, "ingress", replica)
        recorder, tracer = self._telemetry.recorder, self._telemetry.tracer
        watch = ReplicaWatch(partial(count_running, context.app_name, ENGINE))
        # The handle's router asks ours from its first message on, so ours is there first.
        handle: list[EngineHandle] = []
        card = read_model_card(settings.model_key, settings.model)
        router = Router(
            settings.router,
            lambda request: handle[0].send(request),
            card.canvas_length,
            card.name,
            replica,
            recorder,
            step_cap=card.most_steps,
            tracer=tracer,
        )
        switchboard.connect(context.app_name, router, asyncio.get_running_loop())
        handle.append(EngineHandle(self._engine, watch))
        self._backend = RoutedBackend(router, watch)
        find_actor = partial(find_or_start, context.app_name)
        beginnings.of_ingress(recorder, card.name)
        late = partial(recorder.observe, LOOP_LAG_SECONDS, model=card.name)
        self._reporter = Reporter(router, find_actor, late)
        cancels = CancelLine(context.replica_id.unique_id, find_actor)
        running = RunningCalls(cancels.elsewhere)
        self._working = [asyncio.create_task(work) for work in (self._reporter.run(), cancels.run(running.cancel))]
        app = create_app(
            settings,
            self._backend,
            recorder,
            router.limiter,
            router.tenants,
            tracer=tracer,
            running=running,
            step_bound=lambda: router.step_bound,
        )
        if settings.playground.enabled:
            mount(app)
        app.add_middleware(LeaveRequestIdToServe)
        return app

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Live settings: `autoscaling`, as `easel.rayserve.config.live_targets` makes it, and `log_level`."""
        unknown = sorted(set(user_config) - {"autoscaling", LOG_LEVEL})
        if unknown:
            raise ValueError(
                f"user_config: no such live setting: {', '.join(unknown)}; there are autoscaling and {LOG_LEVEL}"
            )
        if user_config.get(LOG_LEVEL) is not None:
            logs.set_level(user_config[LOG_LEVEL])
        autoscaling = user_config.get("autoscaling")
        if self._backend is not None and self._reporter is not None:
            self._backend.scales_to_zero = bool(autoscaling and autoscaling["scales_to_zero"])
            self._reporter.targets = dict(autoscaling["targets"]) if autoscaling else {}

    async def __del__(self) -> None:
        """Serve awaits this when the replica is drained: what telemetry still holds is sent."""
        await self._telemetry.close()

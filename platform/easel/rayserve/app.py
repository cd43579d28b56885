"""Builds the Serve application: what `import_path: easel.rayserve.app:build` names.

Owns: which classes become which deployments, once, here. Refuses to know: how many replicas there are and what they
may use; that stands in the configuration (`easel.rayserve.config`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping

import ray
from ray import serve
from ray.serve import Application

from easel.engine.factory import make_engine
from easel.protocol import Engine
from easel.rayserve.config import ENGINE, INGRESS
from easel.rayserve.ingress import Ingress
from easel.rayserve.loopback import keep_on_loopback
from easel.rayserve.metrics import Start, start
from easel.rayserve.replica import STUCK_AFTER_S, EngineReplica
from easel.settings import AppSettings, ModelSettings, parse
from easel.settings_telemetry import TelemetrySettings
from easel.telemetry.engine_account import EngineAccount

LEAVE_AFTER_S = 1.0
"""How long a replica that has stopped waits for Serve's controller to end its process, which it does at once."""


class ServedEngine(EngineReplica):
    """`EngineReplica` with what only a Serve replica has: the port to keep in, metrics, and Serve's way to end it."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        name: str,
        model: ModelSettings,
        make_engine: Callable[[ModelSettings], Engine],
        stuck_after_s: float,
        telemetry: TelemetrySettings,
        start: Start,
    ) -> None:
        keep_on_loopback()
        replica = serve.get_replica_context().replica_id.unique_id
        self._telemetry = start(telemetry, "engine", replica)
        account = EngineAccount(
            name,
            self._telemetry.recorder,
            self._telemetry.tracer,
            replica,
            devices=max(1, len(ray.get_gpu_ids())),
            hour_price=telemetry.gpu_hour_price,
        )
        await super().__init__(name, model, make_engine, account, stuck_after_s)

    async def __del__(self) -> None:
        """Serve awaits this when the replica is drained.

        If the controller that had it drained is dead, nobody ends the process, and the next controller takes what it
        finds alive for a replica that serves. So it leaves by itself: a replica that is gone is simply replaced, while
        one that cannot start again counts as a failed start, of which few are the end of a deployment.
        """
        try:
            await self.close()
        finally:
            await self._telemetry.close()
            leave = threading.Timer(LEAVE_AFTER_S, os._exit, (0,))
            leave.daemon = True
            leave.start()


def build(args: Mapping[str, object]) -> Application:
    """The application for these `args`: the mapping that `AppSettings` describes. Raises `ConfigurationError`.

    Serve itself checks `args` only against annotations that it can see at run time, and with postponed annotations it
    sees none: so they are checked here.
    """
    return application(parse({"app": dict(args)}, "args").app)


def application(
    settings: AppSettings,
    make_engine: Callable[[ModelSettings], Engine] = make_engine,
    stuck_after_s: float = STUCK_AFTER_S,
    start: Start = start,
) -> Application:
    """The same from checked settings; tests bring engines, and benches telemetry, of their own."""
    engine = serve.deployment(name=ENGINE)(ServedEngine).bind(
        settings.model.names[0], settings.model, make_engine, stuck_after_s, settings.telemetry, start
    )
    ingress = serve.deployment(name=INGRESS)(serve.ingress()(Ingress))
    return ingress.bind(settings, engine, start)

"""The ingress deployment: a shell that puts the API inside a Serve replica.

Owns: nothing but the wiring of the API to the engine's handle. Refuses to know: routes, prompts, engines.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from ray import serve

from easel.api.app import create_app
from easel.playground.page import mount
from easel.rayserve.backend import HandleBackend
from easel.rayserve.config import ENGINE
from easel.rayserve.loopback import keep_on_loopback
from easel.rayserve.metrics import RayRecorder
from easel.rayserve.request_id import LeaveRequestIdToServe
from easel.rayserve.slow_readers import keep_buffers_small
from easel.rayserve.watch import ReplicaWatch, count_running
from easel.settings import AppSettings

if TYPE_CHECKING:
    from fastapi import FastAPI


class Ingress:
    """`engine` is Serve's handle to the engine deployment."""

    def __init__(self, settings: AppSettings, engine: Any) -> None:
        keep_on_loopback()
        keep_buffers_small()
        self._settings = settings
        self._engine = engine

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Serve calls this once, in the replica: an application holds tokenizers and clients that do not travel."""
        application = serve.get_replica_context().app_name
        watch = ReplicaWatch(partial(count_running, application, ENGINE))
        app = create_app(self._settings, HandleBackend(self._engine, watch), RayRecorder())
        if self._settings.playground.enabled:
            mount(app)
        app.add_middleware(LeaveRequestIdToServe)
        return app

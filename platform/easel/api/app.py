"""Builds the application: what `easel.rayserve` puts behind Serve's ingress and tests put behind a plain server.

Owns: what is put together, and in which order. Refuses to know: what happens inside any of the parts.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from easel import __version__
from easel.api.backend import Backend
from easel.api.callers import LIMIT_HEADERS, Callers, KeyCheck, Limits
from easel.api.cancelling import CancelRoute, RunningCalls
from easel.api.failures import add_handlers
from easel.api.fitting import check_default_tier
from easel.api.keys import Changed, KeyStore
from easel.api.middleware import BodyLimit, RequestLog
from easel.api.model_card import StepBound, no_step_bound, read_model_card
from easel.api.prompt import read_prompt_encoder
from easel.api.routes import Routes
from easel.api.tokenizing import TokenRoutes
from easel.settings import AppSettings
from easel.telemetry.recorder import NullRecorder, Recorder
from easel.telemetry.tracing import NullTracer, Tracer


def create_app(
    settings: AppSettings,
    backend: Backend,
    recorder: Recorder = NullRecorder(),  # noqa: B008
    limits: Limits | None = None,
    keys_changed: Changed = lambda keys: None,
    tracer: Tracer = NullTracer(),  # noqa: B008
    running: RunningCalls | None = None,
    step_bound: StepBound = no_step_bound,
) -> FastAPI:
    """The OpenAI-compatible application for the one model in `settings`.

    `limits` enforces those of keys; without it they are not. `keys_changed` hears of all keys, now and whenever the
    file has changed. `running` holds what can be cancelled, and knows other processes that hold more; without it there
    are none. `step_bound` says what holds for denoising steps now.

    Reads tokenizer and chat template from the model's folder. Raises `ConfigurationError` where they are missing or
    wrong: nothing is served by halves.
    """
    card = read_model_card(settings.model_key, settings.model)
    check_default_tier(card)
    prompts = read_prompt_encoder(card, settings.model.folder)
    # In the order a request passes them: every answer has an id and a log line, refusals have CORS headers too.
    middleware = [Middleware(RequestLog, recorder=recorder, tracer=tracer, model=card.name)]
    if settings.api.cors_origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=settings.api.cors_origins,
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["*"],
                expose_headers=["x-request-id", "retry-after", "retry-after-ms", *LIMIT_HEADERS],
            )
        )
    if settings.api.keys_file is not None:
        store = KeyStore(Path(settings.api.keys_file), recorder, keys_changed)
        middleware.append(Middleware(KeyCheck, store=store, recorder=recorder))
    middleware.append(Middleware(BodyLimit, max_bytes=settings.api.max_body_bytes))
    app = FastAPI(
        title="Easel",
        version=__version__,
        middleware=middleware,
        redirect_slashes=False,
        openapi_url=None,  # the bodies are read by hand, so what would be generated says nothing: easel.api.openapi
        docs_url=None,
        redoc_url=None,
    )
    add_handlers(app)
    callers = Callers(limits, recorder)
    running = running or RunningCalls()
    log_text = settings.telemetry.log_text
    Routes(card, prompts, settings.api, backend, recorder, callers, running, log_text, step_bound).add_to(app)
    CancelRoute(running).add_to(app)
    TokenRoutes(card, prompts, callers).add_to(app)
    return app

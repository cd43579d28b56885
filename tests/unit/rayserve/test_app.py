"""The application as Serve builds it, without a cluster: arguments are checked."""

from __future__ import annotations

from typing import Any

import pytest

from easel.errors import ConfigurationError
from easel.rayserve import app
from easel.rayserve.config import ENGINE, IMPORT_PATH, INGRESS
from easel.settings import AppSettings


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
    settings, engine, _ = deployment.init_args
    assert isinstance(settings, AppSettings)
    assert engine._bound_deployment.name == ENGINE
    assert engine._bound_deployment.init_args[0] == "easel"

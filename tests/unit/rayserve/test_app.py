"""The application as Serve builds it, without a cluster: arguments are checked."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from easel.errors import ConfigurationError
from easel.rayserve import app
from easel.rayserve.config import ENGINE, IMPORT_PATH, INGRESS
from easel.settings import AppSettings
from easel.telemetry.setup import Telemetry


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


@pytest.mark.parametrize("error", [None, RuntimeError("the card is gone")], ids=["stopped", "not-stopped"])
async def test_a_replica_that_was_told_to_stop_leaves(monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> None:
    """Also one whose engine cannot be stopped. What telemetry holds is sent first."""
    left, sent = threading.Event(), threading.Event()

    async def close() -> None:
        if error is not None:
            raise error

    monkeypatch.setattr(app.os, "_exit", lambda code: left.set())
    monkeypatch.setattr(app, "LEAVE_AFTER_S", 0.0)
    replica: Any = SimpleNamespace(close=close, _telemetry=Telemetry(close=(sent.set,)))
    with nullcontext() if error is None else pytest.raises(RuntimeError, match="the card is gone"):
        await app.ServedEngine.__del__(replica)
    assert sent.is_set()
    assert left.wait(60)

"""The application without any telemetry: what `telemetry_overhead.py` compares with. Imported by Serve's replicas."""

from __future__ import annotations

from collections.abc import Mapping

from ray.serve import Application

from easel.rayserve.app import application
from easel.settings import parse
from easel.settings_telemetry import TelemetrySettings
from easel.telemetry.setup import Telemetry


def silent(settings: TelemetrySettings, part: str, instance: str) -> Telemetry:
    """Telemetry that goes nowhere."""
    return Telemetry()


def build(args: Mapping[str, object]) -> Application:
    """See `easel.rayserve.app.build`."""
    return application(parse({"app": dict(args)}, "args").app, start=silent)

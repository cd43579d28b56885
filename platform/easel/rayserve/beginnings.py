"""Counters of what seldom happens, there at 0 from the start.

A counter that appears with its first event shows no rise: Prometheus sees a series that has always been at 1. So an
alert on the first failures, or the first death of an engine, would be silent.

Owns: which series there are before anything happens. Refuses to know: who counts.
"""

from __future__ import annotations

from itertools import product

from easel.errors import ClientGone, ConfigurationError, tree
from easel.protocol import CanvasStop
from easel.router.quarantine import Verdict
from easel.telemetry import names
from easel.telemetry.engine_account import BoundBy
from easel.telemetry.recorder import Recorder

FAILURES = tuple(
    sorted({error.code for error in tree() if error.status >= 500} - {ClientGone.code, ConfigurationError.code})
)
"""Codes of calls that the service failed: what objectives count."""
ROUTES = ("/v1/chat/completions", "/v1/completions")
"""Of generation calls."""
REASONS = ("stop", "length", "deadline", "abort", "error")
"""Why an engine ended a request."""


def of_ingress(recorder: Recorder, model: str) -> None:
    """`model`: its name in metrics."""
    for route in ROUTES:
        for code in ("ok", *FAILURES):
            recorder.add(names.REQUESTS, 0.0, model=model, route=route, code=code)
    for verdict in Verdict:
        recorder.add(names.RETRIES, 0.0, model=model, verdict=str(verdict))


def of_engine(recorder: Recorder, model: str) -> None:
    """`model`: its name in metrics."""
    for stop, bound in product(CanvasStop, BoundBy):
        recorder.add(names.CANVASES, 0.0, model=model, stop=str(stop), bound=str(bound))
    for reason in REASONS:
        recorder.add(names.FINISHED, 0.0, model=model, reason=reason)
    for metric in (names.HEALTH_FAILURES, names.PREEMPTIONS):
        recorder.add(metric, 0.0, model=model)

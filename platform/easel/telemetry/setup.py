"""Telemetry of one process: made from settings when a replica starts, closed when it ends.

Owns: what is put together for which settings, and that nothing of OpenTelemetry is imported without an endpoint.
Refuses to know: who measures, and how Ray exports.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Literal

from easel import __version__
from easel.settings_telemetry import TelemetrySettings
from easel.telemetry import logs
from easel.telemetry.names import BUILD, TELEMETRY_FAILURES
from easel.telemetry.recorder import Capped, NullRecorder, Recorder, Several
from easel.telemetry.tracing import NullTracer, Tracer

logger = logging.getLogger("easel.telemetry")

Part = Literal["ingress", "engine"]


class Telemetry:
    """Where a process's measurements, spans and log lines go. Without arguments: nowhere."""

    def __init__(
        self,
        recorder: Recorder = NullRecorder(),  # noqa: B008
        tracer: Tracer = NullTracer(),  # noqa: B008
        close: tuple[Callable[[], None], ...] = (),
    ) -> None:
        self.recorder = recorder
        self.tracer = tracer
        self._close = close

    async def close(self) -> None:
        """Send what has not been sent yet. Never raises."""
        for close in self._close:
            try:
                await asyncio.to_thread(close)
            except Exception as error:
                logger.warning("telemetry could not be closed: %s", error)


def start(settings: TelemetrySettings, scraped: Recorder, part: Part, instance: str) -> Telemetry:
    """`scraped`: what Prometheus scrapes; `instance`: the replica's id. Never raises: without OTLP the process works
    as well."""
    logs.configure(settings.log_level)
    capped = Capped(scraped, settings.most_tenants)
    telemetry = Telemetry(capped)
    if settings.otlp_endpoint is not None:
        try:
            telemetry = _with_otlp(settings, scraped, part, instance)
        except Exception:  # telemetry that fails must not fail a replica
            logger.exception("nothing is sent over OTLP")
    telemetry.recorder.set(BUILD, 1.0, version=__version__, part=part)
    return telemetry


def _with_otlp(settings: TelemetrySettings, scraped: Recorder, part: Part, instance: str) -> Telemetry:
    from easel.telemetry import otlp

    def failed(signal: str) -> None:
        scraped.add(TELEMETRY_FAILURES, signal=signal)

    quiet_exporters()
    who = otlp.resource(part, instance)
    recorder: Recorder = scraped
    tracer: Tracer = NullTracer()
    closing: list[Callable[[], None]] = []
    if "metrics" in settings.otlp_signals:
        sent = otlp.OtlpRecorder(settings, who, failed)
        recorder = Several((scraped, sent))
        closing.append(sent.close)
    if "traces" in settings.otlp_signals:
        spans = otlp.OtlpTracer(settings, who, failed)
        tracer = spans
        closing.append(spans.close)
    if "logs" in settings.otlp_signals:
        handler = otlp.OtlpLogs(settings, who, failed)
        logging.getLogger(logs.ROOT).addHandler(handler)
        closing.append(lambda: _remove(handler))
    return Telemetry(Capped(recorder, settings.most_tenants), tracer, tuple(closing))


def quiet_exporters() -> None:
    """The SDK logs every try that failed, and with a dead endpoint there are many. They are counted instead."""
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)


def _remove(handler: logging.Handler) -> None:
    logging.getLogger(logs.ROOT).removeHandler(handler)
    handler.close()

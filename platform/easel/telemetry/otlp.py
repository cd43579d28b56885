"""Metrics, traces and logs over OTLP, by OpenTelemetry's SDK. Imported only where an endpoint is set.

Everything is handed to background threads with bounded queues: what cannot be sent is dropped and counted, and nobody
waits. No provider is made global, so neither Ray's telemetry nor that of other libraries is touched.

Owns: providers, exporters, and the translation of our table into instruments, spans and log records. Refuses to know:
who measures what.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, LogRecordExportResult
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExportResult, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from easel import __version__
from easel.settings_telemetry import TelemetrySettings
from easel.telemetry import logs
from easel.telemetry.names import Kind, Metric
from easel.telemetry.spans import REQUEST, SpanName
from easel.telemetry.tracing import TRACEPARENT, NoSpan, OpenSpan, Value, is_sampled

Failed = Callable[[str], None]
"""An export of that signal failed: `metrics`, `traces` or `logs`. Called in a background thread."""

TIMEOUT_S = 5.0
"""For one export, tries included."""
SHUTDOWN_MS = 2000

_SEVERITIES = {logging.DEBUG: 5, logging.INFO: 9, logging.WARNING: 13, logging.ERROR: 17, logging.CRITICAL: 21}
_CONVENTIONAL = {"model": "gen_ai.request.model", "operation": "gen_ai.operation.name"}
"""What OpenTelemetry's conventions call our labels, on metrics that are theirs."""


def resource(part: str, instance: str) -> Resource:
    """Who it is that tells: `part` is `ingress` or `engine`, `instance` the replica's id."""
    return Resource.create(
        {
            "service.name": f"easel-{part}",
            "service.namespace": "easel",
            "service.instance.id": instance,
            "service.version": __version__,
        }
    )


def _url(settings: TelemetrySettings, signal: str) -> str:
    return f"{(settings.otlp_endpoint or '').rstrip('/')}/v1/{signal}"


class OtlpRecorder:
    """A `Recorder`. Histograms carry exemplars of sampled traces."""

    def __init__(self, settings: TelemetrySettings, who: Resource, failed: Failed) -> None:
        exporter = _MetricExporter(failed, endpoint=_url(settings, "metrics"), timeout=TIMEOUT_S)
        reader = PeriodicExportingMetricReader(exporter, 1000 * settings.otlp_period_s, 1000 * TIMEOUT_S)
        self._provider = MeterProvider([reader], who, shutdown_on_exit=False)
        self._meter = self._provider.get_meter("easel", __version__)
        self._made: dict[str, Any] = {}

    def add(self, metric: Metric, value: float = 1.0, **labels: str) -> None:
        """Raise a counter."""
        with suppress(Exception):
            self._instrument(metric).add(value, _attributes(metric, labels))

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """Set a gauge."""
        with suppress(Exception):
            self._instrument(metric).set(value, _attributes(metric, labels))

    def observe(self, metric: Metric, value: float, exemplar: str | None = None, /, **labels: str) -> None:
        """Put one value into a histogram."""
        with suppress(Exception):
            context = context_of(exemplar) if is_sampled(exemplar) else _NOTHING
            self._instrument(metric).record(value, _attributes(metric, labels), context=context)

    def close(self) -> None:
        """Send what there is, within two seconds."""
        self._provider.shutdown(SHUTDOWN_MS)

    def _instrument(self, metric: Metric) -> Any:
        made = self._made.get(metric.name)
        if made is None:
            made = self._made[metric.name] = self._make(metric)
        return made

    def _make(self, metric: Metric) -> Any:
        name, unit = metric.otlp_name, metric.otlp_unit
        if metric.kind is Kind.COUNTER:
            return self._meter.create_counter(name, unit, metric.meaning)
        if metric.kind is Kind.GAUGE:
            return self._meter.create_gauge(name, unit, metric.meaning)
        return self._meter.create_histogram(
            name, unit, metric.meaning, explicit_bucket_boundaries_advisory=list(metric.buckets)
        )


def _attributes(metric: Metric, labels: Mapping[str, str]) -> Mapping[str, str]:
    if not metric.otel:
        return labels
    named = {_CONVENTIONAL.get(label, label): text for label, text in labels.items()}
    return {"gen_ai.provider.name": "easel", **named}


_NOTHING = Context()


def context_of(traceparent: str | None) -> Context:
    """As the SDK has it. Empty where there is no trace."""
    found = TRACEPARENT.fullmatch(traceparent) if traceparent else None
    if found is None:
        return _NOTHING
    known = SpanContext(int(found[1], 16), int(found[2], 16), True, TraceFlags(int(found[3], 16)))
    return set_span_in_context(NonRecordingSpan(known), _NOTHING)


class OtlpTracer:
    """A `Tracer`. Whether a trace is kept is decided where it begins: by the client, or by `trace_ratio`."""

    def __init__(self, settings: TelemetrySettings, who: Resource, failed: Failed) -> None:
        exporter = _SpanExporter(failed, endpoint=_url(settings, "traces"), timeout=TIMEOUT_S)
        sampler = ParentBased(TraceIdRatioBased(settings.trace_ratio))
        self._provider = TracerProvider(sampler, who, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter, export_timeout_millis=1000 * TIMEOUT_S))
        self._tracer = self._provider.get_tracer("easel", __version__)

    def begin(self, span: SpanName, parent: str | None, at: float | None = None, name: str | None = None) -> OpenSpan:
        """See `Tracer`."""
        if span is not REQUEST and not is_sampled(parent):
            return NoSpan(parent)
        try:
            made = self._tracer.start_span(
                name or span.name,
                context_of(parent),
                SpanKind.SERVER if span is REQUEST else SpanKind.INTERNAL,
                start_time=_nanoseconds(at),
            )
            traceparent = _traceparent(made.get_span_context())
        except Exception:  # telemetry that fails must not fail a request
            return NoSpan(parent)
        return _OtlpSpan(made, traceparent) if made.is_recording() else NoSpan(traceparent)

    def close(self) -> None:
        """Send what there is, within a few seconds."""
        self._provider.shutdown()


class _OtlpSpan:
    def __init__(self, span: Span, traceparent: str) -> None:
        self._span = span
        self.traceparent = traceparent

    def set(self, attribute: str, value: Value) -> None:
        with suppress(Exception):
            self._span.set_attribute(attribute, value)

    def end(self, at: float | None = None, error: str | None = None) -> None:
        with suppress(Exception):
            if error:
                self._span.set_status(Status(StatusCode.ERROR, error))
            self._span.end(_nanoseconds(at))


def _traceparent(known: SpanContext) -> str:
    return f"00-{known.trace_id:032x}-{known.span_id:016x}-{int(known.trace_flags):02x}"


def _nanoseconds(at: float | None) -> int | None:
    return None if at is None else int(at * 1e9)


class OtlpLogs(logging.Handler):
    """Sends what Easel logs."""

    def __init__(self, settings: TelemetrySettings, who: Resource, failed: Failed) -> None:
        super().__init__()
        exporter = _LogExporter(failed, endpoint=_url(settings, "logs"), timeout=TIMEOUT_S)
        self._provider = LoggerProvider(who, shutdown_on_exit=False)
        self._provider.add_log_record_processor(
            BatchLogRecordProcessor(exporter, export_timeout_millis=1000 * TIMEOUT_S)
        )
        self._logger = self._provider.get_logger("easel", __version__)

    def emit(self, record: logging.LogRecord) -> None:
        """One record."""
        with suppress(Exception):
            fields = logs.fields_of(record)
            body = fields.pop("event")
            for name in ("ts", "level"):
                del fields[name]
            self._logger.emit(
                timestamp=int(record.created * 1e9),
                context=context_of(logs.current_trace()) or None,
                severity_number=_severity(record.levelno),
                severity_text=record.levelname,
                body=body,
                attributes=fields,
            )

    def close(self) -> None:
        """Send what there is."""
        self._provider.shutdown()
        super().close()


def _severity(level: int) -> Any:
    from opentelemetry._logs import SeverityNumber

    return SeverityNumber(_SEVERITIES.get(level, 9))


class _SpanExporter(OTLPSpanExporter):
    def __init__(self, failed: Failed, **options: Any) -> None:
        super().__init__(**options)
        self._failed = failed

    def export(self, spans: Sequence[Any]) -> SpanExportResult:
        try:
            result = super().export(spans)
        except Exception:
            result = SpanExportResult.FAILURE
        if result is not SpanExportResult.SUCCESS:
            self._failed("traces")
        return result


class _MetricExporter(OTLPMetricExporter):
    def __init__(self, failed: Failed, **options: Any) -> None:
        super().__init__(**options)
        self._failed = failed

    def export(self, metrics_data: Any, timeout_millis: float | None = None, **kwargs: Any) -> MetricExportResult:
        try:
            result = super().export(metrics_data, timeout_millis, **kwargs)
        except Exception:
            result = MetricExportResult.FAILURE
        if result is not MetricExportResult.SUCCESS:
            self._failed("metrics")
        return result


class _LogExporter(OTLPLogExporter):
    def __init__(self, failed: Failed, **options: Any) -> None:
        super().__init__(**options)
        self._failed = failed

    def export(self, batch: Sequence[Any]) -> LogRecordExportResult:
        try:
            result = super().export(batch)
        except Exception:
            result = LogRecordExportResult.FAILURE
        if result is not LogRecordExportResult.SUCCESS:
            self._failed("logs")
        return result

"""OTLP into a real receiver: what arrives, what a dead or broken one does (nothing), and that it costs no import."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from easel.settings_telemetry import TelemetrySettings
from easel.telemetry import logs, names, otlp, setup, spans
from easel.telemetry.recorder import MemoryRecorder
from easel.telemetry.tracing import is_sampled, trace_id
from tests.otlp_receiver import Receiver, attributes, one_tree, receiver

ROOT = Path(__file__).parents[3]
CLIENT = f"00-{'a' * 32}-{'b' * 16}-01"
NOT_WANTED = CLIENT[:-2] + "00"


@pytest.fixture
def collector() -> Iterator[Receiver]:
    with receiver() as made:
        yield made


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent arrives on a busy machine too."""
    monkeypatch.setattr(otlp, "TIMEOUT_S", 60.0)
    monkeypatch.setattr(otlp, "SHUTDOWN_MS", 60_000)


@pytest.fixture(autouse=True)
def _loggers() -> Iterator[None]:
    logger, theirs = logging.getLogger(logs.ROOT), logging.getLogger("opentelemetry")
    before = (logger.handlers[:], logger.level, logger.propagate, theirs.level)
    yield
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])
    theirs.setLevel(before[3])


def settings(url: str, **more: Any) -> TelemetrySettings:
    return TelemetrySettings.model_validate({"otlp_endpoint": url, "otlp_period_s": 60, "trace_ratio": 1.0, **more})


async def sent(url: str, use: Callable[[setup.Telemetry], None], **more: Any) -> MemoryRecorder:
    """What Prometheus would have scraped, once everything is sent."""
    scraped = MemoryRecorder()
    telemetry = setup.start(settings(url, **more), scraped, "engine", "replica-1")
    use(telemetry)
    await telemetry.close()
    return scraped


def measure(telemetry: setup.Telemetry) -> None:
    recorder = telemetry.recorder
    recorder.add(names.WORK, 2.0, model="easel", tenant="acme", tier="fast")
    recorder.add(names.WORK, 3.0, model="easel", tenant="acme", tier="fast")
    recorder.set(names.SLOTS, 4, model="easel")
    recorder.observe(names.FIRST_CANVAS_SECONDS, 1.5, CLIENT, model="easel", operation="chat")
    recorder.observe(names.FIRST_CANVAS_SECONDS, 0.3, NOT_WANTED, model="easel", operation="chat")


async def test_metrics_arrive_by_opentelemetrys_names_and_with_exemplars(collector: Receiver) -> None:
    await sent(collector.url, measure)
    found = {metric.name: metric for metric in collector.metrics}
    assert {"easel.work", "easel.slots", "gen_ai.server.time_to_first_token"} <= set(found)
    [work] = found["easel.work"].sum.data_points
    assert work.as_double == 5.0
    assert attributes(work) == {"model": "easel", "tenant": "acme", "tier": "fast"}
    first = found["gen_ai.server.time_to_first_token"]
    assert first.unit == "s"
    [point] = first.histogram.data_points
    assert list(point.explicit_bounds) == list(names.FIRST_CANVAS_SECONDS.buckets)
    assert point.count == 2
    assert attributes(point)["gen_ai.operation.name"] == "chat"
    [exemplar] = point.exemplars
    assert exemplar.trace_id.hex() == "a" * 32
    assert exemplar.as_double == 1.5


async def test_spans_of_a_client_are_one_trace(collector: Receiver) -> None:
    def use(telemetry: setup.Telemetry) -> None:
        call = telemetry.tracer.begin(spans.REQUEST, CLIENT, 10.0, "chat easel")
        queue = telemetry.tracer.begin(spans.QUEUE, call.traceparent, 10.5)
        queue.set("easel.queue.outcome", "admitted")
        queue.end(11.0)
        call.set("gen_ai.response.finish_reasons", ("stop", "length"))
        call.end(12.0, error="engine_failed")

    await sent(collector.url, use)
    found = [span for service, span in collector.spans if service == "easel-engine"]
    root = one_tree(found)
    assert root.name == "chat easel"
    assert root.trace_id.hex() == "a" * 32
    assert root.parent_span_id.hex() == "b" * 16
    assert root.status.message == "engine_failed"
    assert root.end_time_unix_nano - root.start_time_unix_nano == 2 * 10**9
    assert attributes(root)["gen_ai.response.finish_reasons"] == ["stop", "length"]
    [queue] = [span for span in found if span is not root]
    assert attributes(queue) == {"easel.queue.outcome": "admitted"}


@pytest.mark.parametrize(
    ("ratio", "parent", "kept"),
    [(1.0, NOT_WANTED, False), (0.0, CLIENT, True), (0.0, None, False), (1.0, None, True)],
)
async def test_whoever_begins_a_trace_decides_whether_it_is_kept(
    collector: Receiver, ratio: float, parent: str | None, kept: bool
) -> None:
    contexts: list[str | None] = []

    def use(telemetry: setup.Telemetry) -> None:
        call = telemetry.tracer.begin(spans.REQUEST, parent)
        below = telemetry.tracer.begin(spans.QUEUE, call.traceparent)
        below.end()
        call.end()
        contexts.append(call.traceparent)

    await sent(collector.url, use, trace_ratio=ratio)
    assert len(collector.spans) == (2 if kept else 0)
    assert is_sampled(contexts[0]) == kept
    assert trace_id(contexts[0])
    if parent:
        assert trace_id(contexts[0]) == "a" * 32


async def test_about_the_ratio_is_kept(collector: Receiver) -> None:
    def use(telemetry: setup.Telemetry) -> None:
        for _ in range(400):
            telemetry.tracer.begin(spans.REQUEST, None).end()

    await sent(collector.url, use, trace_ratio=0.25)
    assert 50 < len(collector.spans) < 160


async def test_log_lines_arrive_with_their_trace(collector: Receiver) -> None:
    def use(telemetry: setup.Telemetry) -> None:
        with logs.about(CLIENT, request_id="req_1"):
            logging.getLogger("easel.x").warning("something %s", "happened", extra=logs.said(code="ok"))

    await sent(collector.url, use)
    [record] = collector.records
    assert record.body.string_value == "something happened"
    assert record.severity_text == "WARNING"
    assert record.trace_id.hex() == "a" * 32
    assert attributes(record)["request_id"] == "req_1"
    assert attributes(record)["code"] == "ok"


async def test_only_the_signals_that_are_wanted_are_sent(collector: Receiver) -> None:
    def use(telemetry: setup.Telemetry) -> None:
        measure(telemetry)
        telemetry.tracer.begin(spans.REQUEST, None).end()
        logging.getLogger("easel.x").warning("x")

    await sent(collector.url, use, otlp_signals=["logs"])
    assert collector.records
    assert not collector.spans
    assert not collector.metrics


def everything(telemetry: setup.Telemetry) -> None:
    measure(telemetry)
    telemetry.tracer.begin(spans.REQUEST, CLIENT).end()
    logging.getLogger("easel.x").warning("x")


async def test_a_dead_endpoint_costs_nothing_but_what_was_to_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp, "TIMEOUT_S", 0.2)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        scraped = await sent(f"http://127.0.0.1:{taken.getsockname()[1]}", everything)
    assert scraped.total(names.WORK, tenant="acme") == 5.0
    for signal in ("metrics", "traces", "logs"):
        assert scraped.total(names.TELEMETRY_FAILURES, signal=signal) >= 1


async def test_a_collector_that_refuses_is_counted(collector: Receiver) -> None:
    collector.refuse = 400
    scraped = await sent(collector.url, everything)
    assert collector.asked >= 3
    for signal in ("metrics", "traces", "logs"):
        assert scraped.total(names.TELEMETRY_FAILURES, signal=signal) >= 1
    assert scraped.total(names.WORK) == 5.0


async def test_exporters_and_an_sdk_that_raise_harm_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("a bug in the SDK")

    monkeypatch.setattr(otlp.OTLPSpanExporter, "export", broken)
    monkeypatch.setattr(otlp.OTLPMetricExporter, "export", broken)
    monkeypatch.setattr(otlp.OTLPLogExporter, "export", broken)
    scraped = await sent("http://127.0.0.1:9", everything)
    assert {s for s in ("metrics", "traces", "logs") if scraped.total(names.TELEMETRY_FAILURES, signal=s)} == {
        "metrics",
        "traces",
        "logs",
    }
    monkeypatch.setattr(otlp.TracerProvider, "get_tracer", broken)
    await sent("http://127.0.0.1:9", everything)  # it does not even start


async def test_spans_of_a_broken_tracer_pass_the_clients_context_on(
    collector: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def use(telemetry: setup.Telemetry) -> None:
        monkeypatch.setattr(telemetry.tracer, "_tracer", None)
        span = telemetry.tracer.begin(spans.REQUEST, CLIENT)
        span.set("easel.tier", "fast")
        span.end()
        assert span.traceparent == CLIENT

    await sent(collector.url, use)


def test_without_an_endpoint_nothing_of_opentelemetrys_sdk_is_imported() -> None:
    """FastAPI imports its API, which does nothing by itself."""
    code = (
        "import sys; from easel.telemetry import setup; from easel.telemetry.recorder import NullRecorder;"
        "from easel.settings_telemetry import TelemetrySettings; import easel.api.app, easel.router.router;"
        "setup.start(TelemetrySettings(), NullRecorder(), 'ingress', 'x');"
        "print([n for n in sys.modules if n.startswith(('opentelemetry.sdk', 'opentelemetry.exporter', 'requests'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

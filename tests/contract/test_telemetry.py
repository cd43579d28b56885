"""Every metric of the table comes out of a run, or says what it needs; and a streamed request is one trace."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray.util.metrics
import yaml

from easel.errors import EngineFailed
from easel.protocol import EngineState, EngineStats, GpuStats
from easel.rayserve import replica as replica_module
from easel.rayserve.autoscaling import WorkPolicy
from easel.router.autoscaling import Autoscaler, Demand, Inputs, ScalingTargets
from easel.settings import AppSettings
from easel.settings_telemetry import TelemetrySettings
from easel.telemetry import logs, setup
from easel.telemetry.names import ATTRIBUTES, METRICS, Kind, Metric
from easel.telemetry.recorder import MemoryRecorder
from easel.telemetry.setup import Telemetry
from easel.telemetry.statistics import StatisticsExport
from easel.telemetry.tracing import MemoryTracer
from tests.contract.one_process import OneProcess, one_process
from tests.otlp_receiver import attributes, one_tree, receiver
from tests.unit.api.edge import Stream, write_checkpoint

CLIENT = f"00-{'a' * 32}-{'b' * 16}-01"
TINY = "embedded:tiny"
TEXT = {"vocab_size": 384, "max_position_embeddings": 4096, "bos_token_id": 2}


@pytest.fixture(autouse=True)
def _put_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(replica_module, "STATS_PERIOD_S", 0.02)
    logger = logging.getLogger(logs.ROOT)
    before = (logger.handlers[:], logger.level, logger.propagate)
    yield
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


@pytest.fixture(scope="module")
def fake_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("telemetry"), canvas_length=256, text_config=TEXT)


def settings(checkpoint: Any, engine: dict[str, Any], **more: Any) -> AppSettings:
    model = {"checkpoint": str(checkpoint), "engine": engine}
    return AppSettings.model_validate({"models": {"default": model}, **more})


def fast(checkpoint: Any, **more: Any) -> AppSettings:
    engine = {"kind": "fake", "fake_step_ms": 1, "fake_step_ms_per_canvas": 0, "slots": 2, "context_tokens": 4096}
    return settings(checkpoint, engine, **more)


def emitted(recorder: MemoryRecorder) -> set[str]:
    """A counter that was raised by nothing is not there: Ray refuses 0."""
    counters = {metric.name for metric in METRICS if metric.kind is Kind.COUNTER}
    return {name for (name, _), values in recorder.values.items() if name not in counters or sum(values) > 0}


async def use(service: OneProcess) -> None:
    """What users do: whole and streamed, more than one canvas, and more at once than there are slots."""
    for stream in (False, True):
        answer = await service.complete(max_tokens=600, stream=stream, ignore_eos=True)
        assert answer.status_code == 200, answer.text
    answer = await service.complete(max_tokens=8, n=4)
    assert answer.status_code == 200, answer.text
    await service.exported()


@pytest.mark.parametrize("kind", ["fake", "native"])
async def test_whatever_needs_nothing_comes_out_of_a_plain_run(fake_checkpoint: Path, kind: str) -> None:
    recorder = MemoryRecorder()
    ingress = setup.start(TelemetrySettings(), recorder, "ingress", "i-1")
    engine = setup.start(TelemetrySettings(), recorder, "engine", "r-1")
    app = fast(fake_checkpoint)
    if kind == "native":
        app = settings(TINY, {"kind": "native", "device": "cpu", "slots": 2, "context_tokens": 1024})
    async with one_process(app, ingress, engine) as service:
        await use(service)
    missing = {metric.name for metric in METRICS if not metric.needs} - emitted(recorder)
    if kind == "fake":  # it has no KV cache
        missing -= {"easel_kv_blocks", "easel_kv_blocks_free", "easel_kv_used_ratio"}
    assert not missing


def test_needs_are_few_and_said() -> None:
    assert {metric.needs for metric in METRICS} == {
        "",
        "a GPU",
        "a failed health check",
        "an engine that died",
        "api.keys_file",
        "deployments.engine.autoscaling",
        "fewer KV blocks than slots could fill",
        "prompts of 256 tokens and more",
        "telemetry.gpu_hour_price",
        "telemetry.otlp_endpoint",
    }


def needing(*needs: str) -> set[str]:
    return {metric.name for metric in METRICS if metric.needs in needs}


async def test_keys_and_a_price(fake_checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    secret = {"id": "k", "sha256": hashlib.sha256(b"secret").hexdigest(), "tenant": "acme", "requests_per_minute": 3}
    file.write_text(yaml.safe_dump({"keys": [secret]}))
    recorder = MemoryRecorder()
    telemetry = Telemetry(recorder)
    app = fast(fake_checkpoint, api={"keys_file": str(file)}, telemetry={"gpu_hour_price": 2.5})
    async with one_process(app, telemetry, telemetry) as service:
        assert (await service.complete()).status_code == 401
        service.client.headers["authorization"] = "Bearer secret"
        for _ in range(3):
            assert (await service.complete(max_tokens=8)).status_code == 200
        assert (await service.complete()).status_code == 429
        await service.exported()
        secret["tenant"] = "other"
        file.write_text(yaml.safe_dump({"keys": [secret]}) + "\n# longer than before")
        for _ in range(200):
            await service.complete()
            if recorder.total(_named("easel_key_reloads_total")):
                break
            await service.exported()
    assert needing("api.keys_file", "telemetry.gpu_hour_price") <= emitted(recorder)
    assert recorder.total(_named("easel_tenant_requests_total"), tenant="acme", outcome="ok") == 3
    assert recorder.total(_named("easel_tenant_requests_total"), outcome="refused") >= 1
    assert recorder.total(_named("easel_cost_total"), tenant="acme") > 0


def _named(name: str) -> Metric:
    return next(metric for metric in METRICS if metric.name == name)


async def test_long_prompts_and_too_few_blocks() -> None:
    recorder = MemoryRecorder()
    telemetry = Telemetry(recorder)
    engine = {"kind": "native", "device": "cpu", "slots": 4, "context_tokens": 1024, "kv_tokens": 1056}
    async with one_process(settings(TINY, engine), telemetry, telemetry) as service:
        for _ in range(2):
            assert (await service.complete("a" * 600, max_tokens=8)).status_code == 200
        answer = await service.complete(max_tokens=400, n=4, ignore_eos=True)
        assert answer.status_code == 200, answer.text
        await service.exported()
    wanted = needing("prompts of 256 tokens and more", "fewer KV blocks than slots could fill")
    assert wanted <= emitted(recorder)


async def test_a_failed_health_check(fake_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = MemoryRecorder()
    telemetry = Telemetry(recorder)
    async with one_process(fast(fake_checkpoint), telemetry, telemetry) as service:
        monkeypatch.setattr(service.engine, "stats", lambda: EngineStats(EngineState.FAILED, 0.0, failure="broken"))
        with pytest.raises(EngineFailed):
            await service.replica.check_health()
    assert needing("a failed health check") <= emitted(recorder)


async def test_an_engine_that_died(fake_checkpoint: Path) -> None:
    recorder = MemoryRecorder()
    telemetry = Telemetry(recorder)
    async with one_process(fast(fake_checkpoint), telemetry, telemetry) as service:
        asking = asyncio.create_task(service.complete(max_tokens=600))
        while service.engine.stats().sequences == 0:
            await asyncio.sleep(0.001)
        await service.engine.stop()
        assert (await asking).status_code == 503
    assert needing("an engine that died") <= emitted(recorder)


def test_a_gpu() -> None:
    recorder = MemoryRecorder()
    stats = EngineStats(EngineState.READY, 0.0, gpu=GpuStats("H100", 1, 2, 0.5))
    StatisticsExport("easel", recorder).export(stats, 1.0)
    assert needing("a GPU") <= emitted(recorder)


def test_scaling(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, tuple[float, dict[str, str]]] = {}

    class Told:
        def __init__(self, name: str, meaning: str, labels: tuple[str, ...]) -> None:
            self.name, self.labels = name, labels

        def inc(self, value: float, tags: dict[str, str]) -> None:
            assert set(tags) == set(self.labels)
            told[self.name] = (value, tags)

    Told.set = Told.inc  # type: ignore[attr-defined]
    monkeypatch.setattr(ray.util.metrics, "Gauge", Told)
    monkeypatch.setattr(ray.util.metrics, "Counter", Told)
    targets = ScalingTargets(1, 8)
    decision = Autoscaler().decide(Inputs(0.0, Demand(400.0, 20.0, 40, 2, 5.0, 50.0, 8, 1), 2, 2), targets)
    WorkPolicy()._export("easel", decision, targets)
    assert needing("deployments.engine.autoscaling") == set(told)
    assert told["easel_autoscaling_queued_work"] == (400.0, {"application": "easel"})
    assert told["easel_autoscaling_max_replicas"][0] == 8
    assert told["easel_autoscaling_decisions_total"] == (1, {"application": "easel", "reason": "up_work"})


NAMES = {
    "text_completion easel",
    "easel.queue",
    "easel.placement",
    "easel.replica",
    "easel.engine_wait",
    "easel.prefill",
    "easel.canvas",
    "easel.stream",
}


async def test_one_streamed_request_is_one_connected_trace_in_a_receiver(fake_checkpoint: Path) -> None:
    with receiver() as collector:
        told = TelemetrySettings(otlp_endpoint=collector.url, trace_ratio=0.0)  # the client's word counts
        ingress = setup.start(told, MemoryRecorder(), "ingress", "i-1")
        engine = setup.start(told, MemoryRecorder(), "engine", "r-1")
        async with one_process(fast(fake_checkpoint), ingress, engine) as service:
            answer = await service.complete(max_tokens=600, stream=True, headers={"traceparent": CLIENT})
            untraced = await service.complete(max_tokens=8)
        await ingress.close()
        await engine.close()
    assert Stream.of(answer.text).done
    assert untraced.status_code == 200
    spans = [span for _, span in collector.spans]
    root = one_tree(spans)
    assert {span.name for span in spans} == NAMES
    assert root.parent_span_id.hex() == "b" * 16
    assert root.trace_id.hex() == "a" * 32
    assert {service for service, _ in collector.spans} == {"easel-ingress", "easel-engine"}
    canvases = [attributes(span) for span in spans if span.name == "easel.canvas"]
    assert [one["easel.canvas.index"] for one in canvases] == [0, 1, 2]
    assert all(one["easel.canvas.steps"] >= 10 and one["easel.canvas.stop"] for one in canvases)
    assert all(root.start_time_unix_nano <= span.start_time_unix_nano for span in spans)
    assert all(span.end_time_unix_nano <= root.end_time_unix_nano for span in spans)
    known = {attribute.name for attribute in ATTRIBUTES}
    assert {name for span in spans for name in attributes(span)} <= known
    assert attributes(root)["gen_ai.usage.output_tokens"] == 600
    [first] = [metric for metric in collector.metrics if metric.name == "gen_ai.server.time_to_first_token"]
    [exemplar] = first.histogram.data_points[0].exemplars
    assert exemplar.trace_id.hex() == "a" * 32
    requests = [record for record in collector.records if record.body.string_value == "request"]
    assert requests[0].trace_id.hex() == "a" * 32


async def test_every_choice_has_its_own_way_below_the_one_call(fake_checkpoint: Path) -> None:
    tracer = MemoryTracer()
    telemetry = Telemetry(MemoryRecorder(), tracer)
    async with one_process(fast(fake_checkpoint), telemetry, telemetry) as service:
        await service.complete(max_tokens=8, n=3, headers={"traceparent": CLIENT})
    names = [span.name for span in tracer.spans]
    assert names.count("easel.queue") == names.count("easel.replica") == names.count("easel.canvas") == 3
    [root] = [span for span in tracer.spans if span.parent == CLIENT]
    assert {span.parent for span in tracer.spans if span.name == "easel.queue"} == {root.traceparent}
    assert all(span.ended is not None for span in tracer.spans)


@pytest.mark.parametrize("log_text", [False, True])
async def test_what_users_write_is_logged_only_where_that_is_switched_on(
    fake_checkpoint: Path, caplog: pytest.LogCaptureFixture, log_text: bool
) -> None:
    caplog.set_level("DEBUG", logs.ROOT)
    telemetry = Telemetry(MemoryRecorder())
    app = fast(fake_checkpoint, telemetry={"log_text": log_text})
    async with one_process(app, telemetry, telemetry) as service:
        whole = await service.complete("a secret of a user's", max_tokens=30)
        await service.complete("a secret of a user's", max_tokens=30, stream=True)
    lines = [json.loads(logs.JsonLines().format(record)) for record in caplog.records]
    texts = [line for line in lines if line["event"] == "text"]
    assert ("secret" in json.dumps(lines)) == log_text
    assert len(texts) == (2 if log_text else 0)
    for line in texts:
        assert line["prompt"] == "a secret of a user's"
        assert line["completion"]
    if log_text:
        assert texts[0]["completion"] == whole.json()["choices"][0]["text"]
        assert texts[0]["call"] == whole.json()["id"]

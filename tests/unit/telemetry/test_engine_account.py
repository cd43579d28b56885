"""What requests in a replica count as, and which spans they leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from easel.protocol import (
    CanvasCommitted,
    CanvasStop,
    Denoising,
    Event,
    Failed,
    Finished,
    GenerationRequest,
    Preempted,
    Started,
    Usage,
)
from easel.telemetry import names, spans
from easel.telemetry.engine_account import EngineAccount
from easel.telemetry.logs import fields_of
from easel.telemetry.recorder import MemoryRecorder
from easel.telemetry.tracing import MemoryTracer

PARENT = f"00-{'a' * 32}-{'b' * 16}-01"
REQUEST = GenerationRequest("r", (1, 2, 3), 300, tenant="acme", tier="fast", traceparent=PARENT, choice=1)
CANVASES = (
    CanvasCommitted(0, (7,) * 256, 10, CanvasStop.CONVERGED, 1001.5, 1002.0, mean_entropy=0.004),
    CanvasCommitted(1, (7,) * 44, 48, CanvasStop.STEP_CAP, 1002.0, 1004.0, mean_entropy=0.5),
)
USAGE = Usage(3, 0, 300, 2, 58, 60.0)
WHOLE: tuple[Event, ...] = (Started(1001.0, 0.5, 2), CANVASES[0], Preempted("kv_blocks", 1), CANVASES[1])


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def recorder() -> MemoryRecorder:
    return MemoryRecorder()


@pytest.fixture
def tracer() -> MemoryTracer:
    return MemoryTracer()


@pytest.fixture
def account(recorder: MemoryRecorder, tracer: MemoryTracer, clock: Clock) -> EngineAccount:
    return EngineAccount("easel", recorder, tracer, "r-1", 2.0, 3.6, clock, lambda: 1000.0)


def tell(account: EngineAccount, events: Sequence[Event]) -> None:
    followed = account.follow(REQUEST)
    for event in events:
        followed.saw(event)
    followed.end()
    followed.end("again_says_nothing")


def test_counts_a_request_that_finished(account: EngineAccount, recorder: MemoryRecorder) -> None:
    tell(account, [*WHOLE, Finished("length", USAGE)])
    whose = {"model": "easel", "tenant": "acme", "tier": "fast"}
    assert recorder.total(names.OUTPUT_TOKENS, **whose) == 300
    assert recorder.total(names.DENOISING_STEPS, **whose) == 58
    assert recorder.total(names.PROMPT_TOKENS, **whose) == 3
    assert recorder.total(names.WORK, **whose) == 60.0
    assert recorder.total(names.CANVASES, stop="converged") == recorder.total(names.CANVASES, stop="step_cap") == 1
    assert recorder.total(names.STEPS_PER_CANVAS, stop="step_cap", tier="fast") == 48
    assert recorder.total(names.CANVAS_SECONDS) == pytest.approx(2.5)
    assert recorder.total(names.PREFILL_SECONDS) == pytest.approx(0.5)
    assert recorder.total(names.ENGINE_WAIT_SECONDS) == 0.5
    assert recorder.total(names.TOKENS_PER_FORWARD) == pytest.approx(25.6 + 44 / 48)
    assert recorder.total(names.CANVAS_ENTROPY, stop="converged") == 0.004
    assert recorder.total(names.FINISHED, reason="length") == recorder.total(names.FINISHED) == 1
    assert account.requests == 0


def test_canvases_that_may_take_fewer_steps_are_told_apart(account: EngineAccount, recorder: MemoryRecorder) -> None:
    tell(account, WHOLE)
    followed = account.follow(replace(REQUEST, denoising=Denoising(max_steps=16)))
    followed.saw(CANVASES[1])
    followed.end()
    assert recorder.total(names.CANVASES, stop="step_cap", bound="checkpoint") == 1
    assert recorder.total(names.CANVASES, stop="step_cap", bound="request") == 1
    assert recorder.total(names.CANVASES, bound="request") == 1


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ([], "abort"),
        (WHOLE[:2], "abort"),
        ([*WHOLE, Failed("engine_failed", "x", True)], "error"),
        ([Started(1001.0), Finished("cancelled", USAGE)], "abort"),
    ],
)
def test_every_end_is_counted_once_and_gives_the_device_back(
    account: EngineAccount, recorder: MemoryRecorder, clock: Clock, events: list[Event], reason: str
) -> None:
    tell(account, events)
    assert recorder.total(names.FINISHED, reason=reason) == recorder.total(names.FINISHED) == 1
    assert account.requests == 0
    clock.now = 5.0
    account.settle()
    assert recorder.total(names.GPU_IDLE_SECONDS) == 10.0


def test_tokens_of_one_that_left_count(account: EngineAccount, recorder: MemoryRecorder) -> None:
    tell(account, WHOLE[:2])
    assert recorder.total(names.OUTPUT_TOKENS, tenant="acme") == 256
    assert recorder.total(names.PROMPT_TOKENS) == 0


def test_device_time_and_its_price_are_the_tenants(
    account: EngineAccount, recorder: MemoryRecorder, clock: Clock
) -> None:
    followed = account.follow(REQUEST)
    clock.now = 1.0
    followed.saw(WHOLE[0])
    clock.now = 4.0
    account.settle()
    assert recorder.total(names.GPU_SECONDS, tenant="acme", tier="fast") == 6.0
    assert recorder.total(names.COST, tenant="acme") == pytest.approx(6.0 * 3.6 / 3600)
    assert recorder.total(names.GPU_IDLE_SECONDS) == 2.0
    assert recorder.total(names.REPLICA_REQUESTS) == 1


def test_without_a_price_nothing_costs(recorder: MemoryRecorder, clock: Clock) -> None:
    account = EngineAccount("easel", recorder, clock=clock)
    account.follow(GenerationRequest("r", (1,), 1)).saw(WHOLE[0])
    clock.now = 1.0
    account.settle()
    assert recorder.total(names.GPU_SECONDS, tenant="none", tier="none") == 1.0
    assert names.COST.name not in {name for name, _ in recorder.values}


def test_spans_of_a_request(account: EngineAccount, tracer: MemoryTracer) -> None:
    tell(account, [*WHOLE, Finished("length", USAGE)])
    replica, *below = tracer.spans
    assert replica.span is spans.REPLICA
    assert replica.parent == PARENT
    assert {span.parent for span in below} == {replica.traceparent}
    times = [(span.span, span.began, span.ended) for span in below]
    assert times == [
        (spans.ENGINE_WAIT, 1000.5, 1001.0),
        (spans.PREFILL, 1001.0, 1001.5),
        (spans.CANVAS, 1001.5, 1002.0),
        (spans.CANVAS, 1002.0, 1004.0),
    ]
    assert below[3].attributes["easel.canvas.steps"] == 48
    assert below[3].attributes["easel.canvas.stop"] == "step_cap"
    assert replica.attributes["easel.preemptions"] == 1
    assert replica.attributes["easel.replica"] == "r-1"
    assert replica.ended is not None
    assert replica.error is None


def test_a_failure_is_in_its_span_and_logged(
    account: EngineAccount, tracer: MemoryTracer, caplog: pytest.LogCaptureFixture
) -> None:
    tell(account, [WHOLE[0], Failed("engine_failed", "x", True)])
    [record] = caplog.records
    assert fields_of(record)["code"] == "engine_failed"
    assert fields_of(record)["trace_id"] == "a" * 32
    assert tracer.spans[0].error == tracer.spans[0].attributes["error.type"] == "engine_failed"

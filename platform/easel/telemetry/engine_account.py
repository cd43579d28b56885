"""What an engine replica's requests come to: metrics and spans, from the events that answer them.

Owns: what each event counts as, and whose device time it was. Refuses to know: engines, Ray, how numbers and spans
leave the process.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from enum import StrEnum

from easel.protocol import CanvasCommitted, Event, Failed, Finished, GenerationRequest, Preempted, Started
from easel.telemetry import names, spans
from easel.telemetry.device_time import DeviceTime
from easel.telemetry.logs import said
from easel.telemetry.recorder import NullRecorder, Recorder
from easel.telemetry.tracing import NullTracer, OpenSpan, Tracer, trace_id

logger = logging.getLogger("easel.replica")

HOUR_S = 3600.0

Whose = tuple[str, str]
"""Tenant and tier, as they are called in metrics."""


class EngineAccount:
    """One for each replica. `model`: its name in metrics; `devices`: GPUs of the replica, 1 on a CPU; `hour_price`: of
    one device for an hour."""

    def __init__(
        self,
        model: str,
        recorder: Recorder = NullRecorder(),  # noqa: B008
        tracer: Tracer = NullTracer(),  # noqa: B008
        replica: str = "",
        devices: float = 1.0,
        hour_price: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.model = model
        self.recorder = recorder
        self.tracer = tracer
        self.replica = replica
        self.wall = wall
        self.devices = DeviceTime[Whose](devices, clock)
        self.requests = 0
        """That are being answered."""
        self._hour_price = hour_price

    def follow(self, request: GenerationRequest) -> FollowedRequest:
        """A request came. Tell what this returns of each event, and of the end."""
        return FollowedRequest(self, request)

    def settle(self) -> None:
        """Export device time, and what it cost, since the last call; and how many requests there are."""
        model = self.model
        spent, idle = self.devices.settle()
        for (tenant, tier), seconds in spent.items():
            self.recorder.add(names.GPU_SECONDS, seconds, model=model, tenant=tenant, tier=tier)
            if self._hour_price is not None:
                cost = seconds * self._hour_price / HOUR_S
                self.recorder.add(names.COST, cost, model=model, tenant=tenant, tier=tier)
        self.recorder.add(names.GPU_IDLE_SECONDS, idle, model=model)
        self.recorder.set(names.REPLICA_REQUESTS, self.requests, model=model)


class BoundBy(StrEnum):
    """Whose bound on denoising steps a canvas had."""

    CHECKPOINT = "checkpoint"
    REQUEST = "request"
    """A lower one, of the request or its tier."""


class FollowedRequest:
    """One request in a replica, from its arrival there to its end. Ends once, however often it is told."""

    def __init__(self, account: EngineAccount, request: GenerationRequest) -> None:
        self._account = account
        self._request = request
        self._whose = (request.tenant or "none", request.tier or "none")
        self._began = account.wall()
        self._span = account.tracer.begin(spans.REPLICA, request.traceparent, self._began)
        self._span.set("easel.choice", request.choice)
        self._span.set("easel.replica", account.replica)
        self._started: Started | None = None
        self._denoised = self._ended = False
        self._preemptions = 0
        account.requests += 1

    def saw(self, event: Event) -> None:
        """An event of it is on its way."""
        if isinstance(event, CanvasCommitted):
            self._committed(event)
        elif isinstance(event, Started) and self._started is None:
            self._has_slot(event)
        elif isinstance(event, Preempted):
            self._preemptions += 1
        elif isinstance(event, Finished):
            self._finished(event)
        elif isinstance(event, Failed):
            self.end(event.code)

    def end(self, error: str | None = None) -> None:
        """It is over: failed with that code, or given up by who wanted it (None)."""
        if self._ended:
            return
        if error:
            request, trace = self._request, self._request.traceparent
            logger.warning(
                "request failed", extra=said(call=request.group or None, trace_id=trace_id(trace), code=error)
            )
        self._count("error" if error else "abort")
        self._close(error)

    def _has_slot(self, event: Started) -> None:
        account, self._started = self._account, event
        account.devices.begin(self._whose)
        account.recorder.observe(
            names.ENGINE_WAIT_SECONDS, event.waited_s, self._request.traceparent, model=account.model
        )
        self._child(spans.ENGINE_WAIT, event.at - event.waited_s).end(event.at)
        self._span.set("easel.cached_tokens", event.cached_tokens)

    def _committed(self, event: CanvasCommitted) -> None:
        model, add, observe = self._account.model, self._account.recorder.add, self._account.recorder.observe
        (tenant, tier), stop, trace = self._whose, str(event.stop), self._request.traceparent
        tokens, seconds = len(event.token_ids), event.finished_at - event.started_at
        if not self._denoised:
            self._denoised = True
            self._prefilled(event.started_at)
        bound = BoundBy.CHECKPOINT if self._request.denoising.max_steps is None else BoundBy.REQUEST
        add(names.CANVASES, 1.0, model=model, stop=stop, bound=str(bound))
        add(names.OUTPUT_TOKENS, tokens, model=model, tenant=tenant, tier=tier)
        observe(names.CANVAS_SECONDS, seconds, trace, model=model)
        if event.steps:  # 0: the engine does not say
            add(names.DENOISING_STEPS, event.steps, model=model, tenant=tenant, tier=tier)
            observe(names.STEPS_PER_CANVAS, event.steps, trace, model=model, tier=tier, stop=stop)
            observe(names.TOKENS_PER_FORWARD, tokens / event.steps, model=model)
        if event.mean_entropy > 0.0:  # 0: it does not say
            observe(names.CANVAS_ENTROPY, event.mean_entropy, model=model, stop=stop)
        span = self._child(spans.CANVAS, event.started_at)
        span.set("easel.canvas.index", event.canvas)
        span.set("easel.canvas.steps", event.steps)
        span.set("easel.canvas.stop", stop)
        span.set("easel.canvas.entropy", event.mean_entropy)
        span.set("easel.canvas.tokens", tokens)
        span.end(event.finished_at)

    def _prefilled(self, at: float) -> None:
        if self._started is None:
            return
        seconds = max(0.0, at - self._started.at)
        trace = self._request.traceparent
        self._account.recorder.observe(names.PREFILL_SECONDS, seconds, trace, model=self._account.model)
        span = self._child(spans.PREFILL, self._started.at)
        span.set("easel.cached_tokens", self._started.cached_tokens)
        span.end(self._started.at + seconds)

    def _finished(self, event: Finished) -> None:
        model, add, usage = self._account.model, self._account.recorder.add, event.usage
        tenant, tier = self._whose
        add(names.PROMPT_TOKENS, usage.prompt_tokens, model=model, tenant=tenant, tier=tier)
        add(names.CACHED_TOKENS, usage.cached_tokens, model=model)
        add(names.WORK, usage.work, model=model, tenant=tenant, tier=tier)
        self._count("abort" if event.reason == "cancelled" else event.reason)
        self._span.set("gen_ai.response.finish_reasons", (event.reason,))
        self._span.set("gen_ai.usage.input_tokens", usage.prompt_tokens)
        self._span.set("gen_ai.usage.output_tokens", usage.completion_tokens)
        self._span.set("easel.work.done", usage.work)
        self._close(None)

    def _count(self, reason: str) -> None:
        self._account.recorder.add(names.FINISHED, model=self._account.model, reason=reason)

    def _close(self, error: str | None) -> None:
        self._ended = True
        self._account.requests -= 1
        if self._started is not None:
            self._account.devices.end(self._whose)
        if self._preemptions:
            self._span.set("easel.preemptions", self._preemptions)
        if error:
            self._span.set("error.type", error)
        self._span.end(error=error)

    def _child(self, span: spans.SpanName, at: float) -> OpenSpan:
        return self._account.tracer.begin(span, self._span.traceparent, at)

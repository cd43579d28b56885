"""The reference engine behind `easel.protocol.Engine`: a queue, and one thread in which transformers decodes.

Owns: who is next (priority, then arrival), one mailbox for each request, the engine's state. Refuses to know: what a
step computes (`decoding`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from easel.capabilities import ensure_supported, supports
from easel.engine.limits import ensure_possible
from easel.engine.native.assembly import cores, device_of, dtype_of
from easel.engine.native.config import read_generation_defaults, read_model_config
from easel.engine.native.mailbox import Mailbox
from easel.engine.native.rules import RuleBook
from easel.engine.native.sequence import Sequence
from easel.engine.native.step_time import StepTimer
from easel.engine.reference.checkpoint import load_reference
from easel.engine.reference.decoding import TOO_LATE, Interrupted, decode
from easel.engine.reference.thread import DecodingThread
from easel.engine.unused_settings import refuse_unused
from easel.errors import (
    DeadlineExceeded,
    Draining,
    EaselError,
    EngineFailed,
    EngineStopped,
    InvalidRequest,
    NotReady,
)
from easel.protocol import (
    GROUP_ROWS,
    EngineLimits,
    EngineState,
    EngineStats,
    Event,
    Failed,
    Finished,
    GenerationRequest,
)
from easel.settings import EngineSettings
from easel.telemetry.names import STEPS
from easel.telemetry.step_tally import StepTally

log = logging.getLogger(__name__)

STEPS_A_CANVAS = 20.0
"""Expected before any canvas was decoded: docs of the 26B say 15 to 20."""

HANGS_AFTER_S = 60.0
"""How long stopping waits for a step that does not end: what `step_timeout_s` is by default elsewhere."""
LOOK_PERIOD_S = 0.5
"""How often it looks meanwhile whether the step has gone on."""

UNUSED = {
    "compile_cache": "it compiles no kernels",
    "deterministic": "transformers promises nothing of the kind on GPUs; on CPUs it is so anyway",
    "gpu_memory_fraction": "it takes what its weights and one request need",
    "kv_tokens": "transformers keeps the keys of one request",
    "kv_block_tokens": "transformers keeps the keys of one request",
    "prefill_tokens_per_step": "it encodes prompts whole",
    "step_timeout_s": "nobody watches its steps",
}
"""Settings of ours that mean nothing here."""


@dataclass(eq=False, slots=True)
class _Job:
    """A request that has not ended."""

    sequence: Sequence
    mailbox: Mailbox = field(default_factory=Mailbox)
    interrupted: Interrupted | None = None
    """Set on the event loop, read in the thread between steps."""
    expiry: asyncio.TimerHandle | None = None
    """Ends it at its deadline, should it still wait."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    model: Any
    rules: RuleBook


class ReferenceEngine:
    """See the package. All methods are called on one event loop, the one that awaited `start`."""

    name = "reference"
    supports = supports("reference")

    def __init__(self, folder: Path, settings: EngineSettings) -> None:
        """`folder`: the checkpoint's. Raises `ConfigurationError` for settings that would be ignored."""
        refuse_unused(settings, "reference", UNUSED)
        if settings.slots > 1:  # not refused: trying a checkpoint should take no more than another `kind`
            log.info("slots: %d, of which the reference engine has one", settings.slots)
        self._folder, self._settings = folder, settings
        self._state = EngineState.LOADING
        self._failure = ""
        self._step_cap = settings.max_denoising_steps
        self._loaded: _Loaded | None = None
        self._jobs: dict[str, _Job] = {}
        self._running: _Job | None = None
        self._arrivals = 0
        self._timer = StepTimer()
        self._tally = StepTally()
        self._canvases = 0
        self._last_step_at = 0.0
        self._thread = DecodingThread("easel-reference")
        self._arrived, self._ended = asyncio.Event(), asyncio.Event()
        self._turning: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load the model in the thread that will decode. Raises `ConfigurationError` for what cannot be loaded."""
        try:
            self._loaded = await self._thread.call(self._load)
        except BaseException as error:
            self._state, self._failure = EngineState.FAILED, str(error)
            raise
        if self._state is EngineState.LOADING:  # not stopped meanwhile
            self._state = EngineState.READY
            self._turning = asyncio.create_task(self._turn())

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
        """The events of one request. Raises an `EaselError` before the first of them if it cannot be served."""
        job = self._take(request)
        ended = False
        try:
            while not ended:
                event = await job.mailbox.get()
                ended = isinstance(event, Finished | Failed)
                yield event
        finally:
            if self._jobs.get(request.id) is job:
                self.cancel(request.id)

    def cancel(self, request_id: str) -> bool:
        """See the protocol. What decodes ends after the step it is in."""
        job = self._jobs.get(request_id)
        if job is None:
            return False
        job.interrupted = job.interrupted or Interrupted()
        if job is not self._running:
            self._end(job, Finished("cancelled", job.sequence.usage()))
        return True

    def stats(self) -> EngineStats:
        """See the protocol."""
        now = time.time()
        steps = self._tally.count / self._canvases if self._canvases else STEPS_A_CANVAS
        return EngineStats(
            state=self._state,
            taken_at=now,
            slots=1,
            sequences=int(self._running is not None),
            waiting=len(self._jobs) - int(self._running is not None),
            remaining_work=sum(job.sequence.remaining_work(steps) for job in self._jobs.values()),
            step_time=self._timer.model,
            counters={STEPS.name: float(self._tally.count)},
            steps=self._tally.steps,
            denoised=self._tally.denoised,
            last_step_at=now if self._running is None else self._last_step_at,
            failure=self._failure,
            max_denoising_steps=self._step_cap,
        )

    async def reconfigure(self, limits: EngineLimits) -> None:
        """See the protocol. There is one slot and prompts are encoded whole, so only the bound on steps changes
        anything; the others are checked."""
        ensure_possible(limits)
        if limits.max_denoising_steps is not None:
            self._step_cap = limits.max_denoising_steps

    async def drain(self) -> None:
        """See the protocol."""
        if self._state in (EngineState.READY, EngineState.LOADING):
            self._state = EngineState.DRAINING
        while self._jobs:
            self._ended.clear()
            await self._ended.wait()

    async def stop(self) -> None:
        """See the protocol. Returns when the thread has ended, after the step it is in; if that hangs, without it."""
        if self._state is not EngineState.FAILED:
            self._state = EngineState.STOPPED
        error = EngineStopped("The engine was stopped.")
        for job in list(self._jobs.values()):
            job.interrupted = Interrupted(error=error)
            if job is not self._running:
                self._end(job, _failed(error))
        while self._running is not None and time.time() - self._last_step_at < HANGS_AFTER_S:
            self._ended.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_PERIOD_S):
                    await self._ended.wait()
        if self._turning is not None:
            self._turning.cancel()
            await asyncio.gather(self._turning, return_exceptions=True)
        self._thread.end()
        hung, self._running = self._running, None
        if hung is None:
            await asyncio.to_thread(self._thread.join)
        else:
            log.error("a step has not ended for %.0f s: stopped without it", time.time() - self._last_step_at)
            self._end(hung, _failed(error))
        self._loaded = None

    def _load(self) -> _Loaded:
        settings = self._settings
        torch.set_num_threads(settings.threads or cores())
        device = device_of(settings)
        config = read_model_config(self._folder)
        model = load_reference(self._folder, config, dtype_of(settings, device), device)
        context = min(settings.context_tokens, config.max_positions)
        return _Loaded(model, RuleBook(config, read_generation_defaults(self._folder), context, context))

    def _take(self, request: GenerationRequest) -> _Job:
        """Into the queue. Raises an `EaselError` for what cannot be served."""
        if self._state is EngineState.DRAINING:
            raise Draining("This engine takes no new requests.")
        if self._state is not EngineState.READY or self._loaded is None:
            raise NotReady(f"The engine is {self._state}.")
        if request.id in self._jobs:
            raise InvalidRequest(f"id: {request.id!r} is in flight already", param="id")
        ensure_supported(request, "reference")
        self._arrivals += 1
        sequence = self._loaded.rules.sequence(request, None, self._step_cap, time.time(), self._arrivals)
        if sequence.rules.entropy_bound <= 0.0:
            raise InvalidRequest("entropy_bound: transformers takes none but above 0", param="entropy_bound")
        job = self._jobs[request.id] = _Job(sequence)
        left = sequence.rules.bounded_at - time.time()
        if isfinite(left):
            job.expiry = asyncio.get_running_loop().call_later(left, self._expire, job)
        self._arrived.set()
        return job

    def _expire(self, job: _Job) -> None:
        if job is not self._running:
            self._end(job, _failed(DeadlineExceeded(TOO_LATE)))

    async def _turn(self) -> None:
        """Decode who is next, one after the other."""
        while True:
            if not self._jobs:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            job = min(self._jobs.values(), key=lambda job: (-job.sequence.request.priority, job.sequence.order))
            self._running, self._last_step_at = job, time.time()
            last = await self._thread.call(self._decode, job)
            self._running = None
            self._end(job, last)

    def _decode(self, job: _Job) -> Event:
        """In the thread: the last event of the request, the others having been posted."""
        assert self._loaded is not None, "nothing is taken before the model is loaded"
        loop, sequence, loaded = self._turning_loop(), job.sequence, self._loaded

        def send(event: Event) -> None:
            loop.call_soon_threadsafe(job.mailbox.put, event)

        try:
            reason, stop_token = decode(
                loaded.model,
                loaded.rules.defaults,
                sequence,
                send=send,
                interruption=lambda: job.interrupted,
                stepped=lambda seconds: self._stepped(sequence, seconds),
            )
        except EaselError as error:
            return _failed(error)
        except Exception:
            log.exception("transformers failed on a request")
            return _failed(EngineFailed("The engine failed while it worked on this request."))
        finally:
            self._canvases += sequence.canvases
        return Finished(reason, sequence.usage(), stop_token)

    def _turning_loop(self) -> asyncio.AbstractEventLoop:
        assert self._turning is not None, "decoding is ordered by the turning task"
        return self._turning.get_loop()

    def _stepped(self, sequence: Sequence, seconds: float) -> None:
        groups = sequence.rules.canvas_length / GROUP_ROWS
        self._tally.took(seconds, self._timer.model.seconds(groups), groups, 1, 1)
        if sequence.last is not None:
            self._tally.canvas(sequence.step, sequence.last.entropies, sequence.last.accepted)
        self._last_step_at = time.time()
        self._timer.took(groups, seconds)

    def _end(self, job: _Job, last: Event) -> None:
        if job.expiry is not None:
            job.expiry.cancel()
        job.mailbox.put(last)
        del self._jobs[job.sequence.request.id]
        self._ended.set()


def _failed(error: EaselError) -> Failed:
    return Failed(error.code, error.message, error.retryable, error.param)

"""The thread that decodes: takes orders, plans a step, runs it, sends off what it meant, and begins again.

Owns: the loop and its thread, and everything only that thread may touch: scheduler, runner, tensors. Orders come
through one queue, events leave through one function, and a snapshot of the state lies where anybody may read it.
Refuses to know: who reads the events, and asyncio.

A step that raises ends the loop: its state cannot be trusted any more. Everybody in it is told.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from easel.engine.native.assembly import Parts
from easel.engine.native.gpu_watch import describe
from easel.engine.native.scheduler import Scheduler, Told
from easel.engine.native.sequence import Sequence
from easel.engine.native.step_time import StepTimer
from easel.errors import EngineFailed, EngineStopped
from easel.protocol import GROUP_ROWS, EngineLimits, EngineState, EngineStats, Failed, Finished, KvPool
from easel.telemetry.names import PREEMPTIONS, PREFIX_ASKED, PREFIX_FOUND, STEPS
from easel.telemetry.step_tally import StepTally

log = logging.getLogger(__name__)

FAILED_MESSAGE = "The engine failed while it worked on this request."
STOPPED_MESSAGE = "The engine was stopped."

IDLE_TURN_S = 0.25
"""How long an idle loop waits for orders before it turns, to show that it is alive."""


@dataclass(frozen=True, slots=True)
class Add:
    """Decode this sequence."""

    sequence: Sequence


@dataclass(frozen=True, slots=True)
class Cancel:
    """End the sequence of that request, if it still runs."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Fail what still runs and end the thread."""


Order = Add | Cancel | EngineLimits | Stop


class StepLoop:
    """See the module. `send` is called in the loop's thread with events in order, and must not block."""

    def __init__(
        self,
        assemble: Callable[[], Parts],
        ready: Callable[[Parts | Exception], None],
        send: Callable[[list[Told]], None],
        failed: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._assemble, self._ready, self._send, self._failed = assemble, ready, send, failed
        self._clock = clock
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._timer = StepTimer()
        self._tally = StepTally()
        self._stepping_since: float | None = None
        self._stopping = False
        self._running: dict[str, Sequence] = {}
        self._snapshot = EngineStats(EngineState.LOADING, clock())
        self._thread = threading.Thread(target=self._run, name="easel-step-loop", daemon=True)

    @property
    def snapshot(self) -> EngineStats:
        """As of the last turn. Its `state` is not the loop's to know."""
        return replace(
            self._snapshot,
            waiting=self._snapshot.waiting + self._orders.qsize(),
            steps=self._tally.steps,
            denoised=self._tally.denoised,
        )

    @property
    def stepping_s(self) -> float:
        """For how many seconds the step in progress has run; 0 between steps."""
        since = self._stepping_since
        return 0.0 if since is None else time.monotonic() - since

    def start(self) -> None:
        """Start the thread, which loads the model first and says so through `ready`."""
        self._thread.start()

    def order(self, order: Order) -> None:
        """Have something done before the next step. From any thread."""
        self._orders.put(order)

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the thread to end, for so long at most. Whether it has."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            parts = self._assemble()
        except Exception as error:
            self._ready(error)
            return
        self._publish(parts)
        self._ready(parts)
        try:
            self._drive(parts)
        finally:
            parts.runner.close()

    def _drive(self, parts: Parts) -> None:
        """Turn until told to stop, or until a step fails."""
        try:
            while not self._stopping:
                self._take_orders(parts, wait=not parts.scheduler.sequences)
                self._turn(parts)
                self._publish(parts)
            self._end_all(parts, EngineStopped(STOPPED_MESSAGE))
        except Exception as error:
            log.exception("a step failed; the engine is of no more use")
            self._end_all(parts, EngineFailed(FAILED_MESSAGE))
            self._failed(describe(error))

    def _take_orders(self, parts: Parts, wait: bool) -> None:
        """Do what was ordered. An idle loop waits for an order, a busy one only looks."""
        try:
            order = self._orders.get(block=wait, timeout=IDLE_TURN_S if wait else None)
            while True:
                self._obey(parts, order)
                order = self._orders.get_nowait()
        except queue.Empty:
            return

    def _obey(self, parts: Parts, order: Order) -> None:
        match order:
            case Add(sequence):
                self._running[sequence.request.id] = sequence
                parts.scheduler.add(sequence)
            case Cancel(request_id):
                if request_id in self._running:
                    self._tell(parts, parts.scheduler.finish(self._running[request_id], "cancelled"))
            case EngineLimits(slots, prefill, steps):
                limits = parts.scheduler.limits
                limits.slots = limits.slots if slots is None else slots
                limits.prefill_tokens_per_step = limits.prefill_tokens_per_step if prefill is None else prefill
                limits.max_denoising_steps = limits.max_denoising_steps if steps is None else steps
            case Stop():
                self._stopping = True

    def _turn(self, parts: Parts) -> None:
        """One step, if there is anything to do."""
        scheduler, began = parts.scheduler, self._clock()
        groups = sum(s.rules.canvas_length for s in scheduler.seated) / GROUP_ROWS
        plan, told = scheduler.plan(began, self._timer.model.seconds(groups))
        self._tell(parts, told)
        if not plan:
            return
        expected = self._timer.model.seconds(plan.groups)
        timer = time.perf_counter()
        self._stepping_since = time.monotonic()
        results = parts.runner.run(plan)
        self._stepping_since = None
        seconds = time.perf_counter() - timer
        self._timer.took(plan.groups, seconds)
        self._tally.took(seconds, expected, plan.groups, len(plan.denoises), scheduler.limits.slots)
        for sequence, result in results.items():
            self._tally.canvas(sequence.step + 1, result.entropies, result.accepted)
        ahead = self._timer.model.seconds(plan.groups)
        self._tell(parts, scheduler.advance(plan, results, began, self._clock(), ahead))

    def _tell(self, parts: Parts, told: list[Told]) -> None:
        for sequence, event in told:
            if isinstance(event, Finished | Failed):
                parts.runner.forget(sequence)
                del self._running[sequence.request.id]
        if told:
            self._publish(parts)  # first, so that who has read an event finds it in the statistics
            self._send(told)

    def _end_all(self, parts: Parts, error: EngineFailed) -> None:
        """Fail what runs and what was ordered but not begun."""
        while not self._orders.empty():
            order = self._orders.get()
            if isinstance(order, Add):
                self._running[order.sequence.request.id] = order.sequence
        self._send([(s, Failed(error.code, error.message, error.retryable)) for s in self._running.values()])
        self._running.clear()

    def _publish(self, parts: Parts) -> None:
        scheduler = parts.scheduler
        now = self._clock()
        self._snapshot = EngineStats(
            state=EngineState.READY,
            taken_at=now,
            slots=scheduler.limits.slots,
            sequences=len(scheduler.seated),
            waiting=len(scheduler.waiting),
            remaining_work=scheduler.remaining_work,
            step_time=self._timer.model,
            kv_pools=tuple(
                KvPool(pool.name, pool.blocks, pool.free + pool.spare, scheduler.kv.block_tokens)
                for pool in scheduler.kv.pools
            ),
            prefix_digest=() if scheduler.prefixes is None else scheduler.prefixes.digest,
            counters=self._counters(scheduler),
            last_step_at=now,
            max_denoising_steps=scheduler.limits.max_denoising_steps,
        )

    def _counters(self, scheduler: Scheduler) -> dict[str, float]:
        totals = {STEPS.name: float(self._tally.count), PREEMPTIONS.name: float(scheduler.preemptions)}
        if scheduler.prefixes is not None:
            totals |= {
                PREFIX_ASKED.name: float(scheduler.prefixes.asked),
                PREFIX_FOUND.name: float(scheduler.prefixes.found),
            }
        return totals

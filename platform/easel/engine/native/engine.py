"""The native engine behind `easel.protocol.Engine`: what callers on an event loop see of the thread that decodes.

Owns: the engine's state, one mailbox for each request, the crossing between the event loop and the step loop's thread
(orders go over a queue, events come back by `call_soon_threadsafe`, all of a step's at once), and the watch over that
thread and its GPU: a step that hangs or a card that fails ends the engine, and everybody in it is told. Refuses to
know: steps, seats and tensors.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

from easel.capabilities import ensure_supported, supports
from easel.engine.limits import ensure_possible
from easel.engine.native.assembly import Parts, assemble
from easel.engine.native.gpu_watch import GpuWatch, find_driver
from easel.engine.native.loop import FAILED_MESSAGE, STOPPED_MESSAGE, Add, Cancel, Order, StepLoop, Stop
from easel.engine.native.mailbox import Mailbox
from easel.engine.native.noise import Noise
from easel.engine.native.phases import Phases
from easel.engine.native.scheduler import Told
from easel.errors import Draining, EngineFailed, EngineStopped, InvalidRequest, NotReady
from easel.protocol import EngineLimits, EngineState, EngineStats, Event, Failed, Finished, GenerationRequest, Started
from easel.settings import EngineSettings

log = logging.getLogger(__name__)

WATCH_PERIOD_S = 0.5
"""How often the step in progress is looked at."""


class NativeEngine:
    """See `easel.protocol.Engine`. All methods are called on one event loop, the one that awaited `start`."""

    name = "native"
    supports = supports("native")

    def __init__(
        self,
        folder: Path,
        settings: EngineSettings,
        noise: Noise | None = None,
        exact: bool | None = None,
        phases: Phases | None = None,
    ) -> None:
        """`folder`: the checkpoint's. `noise`, `exact` and `phases`: see `assemble`."""
        self._state = EngineState.LOADING
        self._failure = ""
        self._mailboxes: dict[str, Mailbox] = {}
        """Of every request that has not ended, and those only."""
        self._ended = asyncio.Event()
        self._arrivals = 0
        self._parts: Parts | None = None
        self._events: asyncio.AbstractEventLoop | None = None
        self._loaded: asyncio.Future[Parts] | None = None
        self._step_timeout_s = settings.step_timeout_s
        self._watcher: asyncio.Task[None] | None = None
        self._gpu: GpuWatch | None = None
        self._loop = StepLoop(
            lambda: assemble(folder, settings, noise, exact, phases),
            ready=lambda parts: self._post(self._on_ready, parts),
            send=lambda told: self._post(self._on_events, told),
            failed=lambda why: self._post(self._on_failed, why),
        )

    async def start(self) -> None:
        """Load the model in the step loop's thread. Raises `ConfigurationError` for what cannot be loaded."""
        self._events = asyncio.get_running_loop()
        self._loaded = self._events.create_future()
        self._loop.start()
        try:
            self._parts = await self._loaded
        except BaseException as error:
            self._state, self._failure = EngineState.FAILED, str(error)
            raise
        if self._state is not EngineState.LOADING:  # stopped meanwhile: nobody would end a watch that began now
            return
        self._state = EngineState.READY
        if self._parts.device == "cuda":
            self._gpu = GpuWatch(find_driver(), lambda why: self._post(self._on_failed, why))
            self._gpu.start()
        self._watcher = self._events.create_task(self._watch())

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
        """The events of one request. Raises an `EaselError` before the first of them if it cannot be served."""
        parts = self._accepting()
        if request.id in self._mailboxes:
            raise InvalidRequest(f"id: {request.id!r} is in flight already", param="id")
        ensure_supported(request, "native")
        self._arrivals += 1
        scheduler = parts.scheduler  # read for its limits and sizes alone: the rest is the other thread's
        sequence = parts.rules.sequence(
            request, scheduler.kv, scheduler.limits.max_denoising_steps, time.time(), self._arrivals
        )
        mailbox = self._mailboxes[request.id] = Mailbox()
        self._order(Add(sequence))
        ended = False
        try:
            while not ended:
                event = await mailbox.get()
                ended = isinstance(event, Finished | Failed)
                yield event
        finally:
            if self._mailboxes.get(request.id) is mailbox:
                self.cancel(request.id)

    def cancel(self, request_id: str) -> bool:
        """See the protocol. The slot is free before the next step begins."""
        if request_id not in self._mailboxes:
            return False
        self._order(Cancel(request_id))
        return True

    def stats(self) -> EngineStats:
        """The step loop's last snapshot, with this side's state."""
        gpu = None if self._gpu is None else self._gpu.last
        return replace(self._loop.snapshot, state=self._state, taken_at=time.time(), failure=self._failure, gpu=gpu)

    async def reconfigure(self, limits: EngineLimits) -> None:
        """See the protocol. Taken up before the next step; raised `slots` share the KV blocks there are."""
        ensure_possible(limits)
        most = self._parts.runner.most_slots if self._parts is not None else None
        if most is not None and limits.slots is not None and limits.slots > most:
            raise InvalidRequest(f"slots: {limits.slots} is above {most}, what the engine started with", param="slots")
        self._order(limits)

    async def drain(self) -> None:
        """See the protocol."""
        if self._state in (EngineState.READY, EngineState.LOADING):
            self._state = EngineState.DRAINING
        while self._mailboxes:
            self._ended.clear()
            await self._ended.wait()

    async def stop(self) -> None:
        """See the protocol. Returns when the thread has ended, after the step it is in; if that hangs, without it."""
        if self._state is not EngineState.FAILED:
            self._state = EngineState.STOPPED
        self._order(Stop())
        if self._gpu is not None:
            self._gpu.stop()
        while not await asyncio.to_thread(self._loop.join, WATCH_PERIOD_S) and not self._hangs():
            pass
        if self._watcher is not None:
            self._watcher.cancel()
        await asyncio.sleep(0)  # let what the thread sent last arrive
        self._fail_rest(EngineStopped(STOPPED_MESSAGE))
        self._parts = None

    def _hangs(self) -> bool:
        return self._loop.stepping_s > self._step_timeout_s

    async def _watch(self) -> None:
        """Fail the engine when a step hangs: its thread cannot say so itself."""
        while not self._hangs():  # noqa: ASYNC110 - what hangs sets no event
            await asyncio.sleep(WATCH_PERIOD_S)
        self._on_failed(f"a step has not ended for {self._loop.stepping_s:.0f} s (step_timeout_s)")

    def _accepting(self) -> Parts:
        if self._state is EngineState.DRAINING:
            raise Draining("This engine takes no new requests.")
        if self._state is EngineState.FAILED and self._parts is not None:
            raise EngineFailed("The engine has failed.")
        if self._state is not EngineState.READY or self._parts is None:
            raise NotReady(f"The engine is {self._state}.")
        return self._parts

    def _order(self, order: Order) -> None:
        self._loop.order(order)

    def _post(self, do: Callable[..., None], *arguments: object) -> None:
        """From the step loop's thread: call `do` on the event loop. One that is closed has nobody left to tell."""
        assert self._events is not None, "the thread starts after the event loop is known"
        if not self._events.is_closed():
            self._events.call_soon_threadsafe(do, *arguments)

    def _on_ready(self, parts: Parts | Exception) -> None:
        assert self._loaded is not None, "the thread starts after the future is made"
        if self._loaded.done():  # whoever awaited it has gone
            return
        if isinstance(parts, Exception):
            self._loaded.set_exception(parts)
        else:
            self._loaded.set_result(parts)

    def _on_events(self, told: list[Told]) -> None:
        for sequence, event in told:
            mailbox = self._mailboxes.get(sequence.request.id)
            if mailbox is None:
                continue
            if isinstance(event, Started) and self._parts is not None:
                event = replace(event, runtime=self._parts.runtime)
            mailbox.put(event)
            if isinstance(event, Finished | Failed):
                del self._mailboxes[sequence.request.id]
                self._ended.set()

    def _on_failed(self, why: str) -> None:
        """The first reason is the one to tell: what comes after it often follows from it."""
        if self._state is EngineState.FAILED:
            return
        log.error("the engine has failed: %s", why)
        self._state, self._failure = EngineState.FAILED, why
        self._fail_rest(EngineFailed(FAILED_MESSAGE))

    def _fail_rest(self, error: EngineFailed) -> None:
        """Tell those whose order reached the thread after it had looked for the last time."""
        for mailbox in self._mailboxes.values():
            mailbox.put(Failed(error.code, error.message, error.retryable))
        self._mailboxes.clear()
        self._ended.set()

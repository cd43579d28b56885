"""The vLLM engine behind `easel.protocol.Engine`.

Owns: the order of things: seat, request, outputs, end; deadlines and cancelling, which vLLM knows as leaving its
iterator; what its death means. Refuses to know: how requests and outputs are written (`translation`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from easel.capabilities import ensure_supported, supports
from easel.engine.limits import ensure_possible
from easel.engine.native.config import read_generation_defaults, read_model_config
from easel.engine.native.mailbox import Mailbox
from easel.engine.native.rules import RuleBook
from easel.engine.native.sequence import Rules
from easel.engine.vllm.interface import Interface, load_interface
from easel.engine.vllm.seats import Seats
from easel.engine.vllm.translation import Canvases, engine_args, expected_steps, sampling_fields
from easel.errors import DeadlineExceeded, Draining, EaselError, EngineFailed, EngineStopped, InvalidRequest, NotReady
from easel.protocol import (
    EngineLimits,
    EngineState,
    EngineStats,
    Event,
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    Started,
    canvas_work,
    prefill_work,
)
from easel.settings import EngineSettings

log = logging.getLogger(__name__)

FAILED_MESSAGE = "The engine failed while it worked on this request."


class _Running:
    """A request that has not ended. `ended_by` is set by whoever ends it from outside."""

    def __init__(self, request: GenerationRequest, rules: Rules) -> None:
        self.request, self.rules = request, rules
        self.ended_by: asyncio.Future[FinishReason | EaselError] = asyncio.get_running_loop().create_future()
        self.canvases: Canvases | None = None
        self.mailbox = Mailbox()
        self.pump: asyncio.Task[None] | None = None

    def end(self, by: FinishReason | EaselError) -> None:
        if not self.ended_by.done():
            self.ended_by.set_result(by)

    @property
    def remaining_work(self) -> float:
        length = self.rules.canvas_length
        done = self.canvases.tokens if self.canvases else 0
        left = -(-max(0, self.request.max_tokens - done) // length)
        prefill = 0.0 if done else prefill_work(len(self.request.prompt))
        return prefill + left * canvas_work(length, expected_steps(self.rules))


class VllmEngine:
    """See the package. All methods are called on one event loop."""

    name = "vllm"
    supports = supports("vllm")

    def __init__(
        self, folder: Path, settings: EngineSettings, interface: Callable[[], Interface] = load_interface
    ) -> None:
        """`folder`: the checkpoint's. `interface`: where vLLM's names come from."""
        self._folder, self._settings, self._import = folder, settings, interface
        self._state = EngineState.LOADING
        self._failure = ""
        self._step_cap = settings.max_denoising_steps
        self._seats = Seats(settings.slots)
        self._running: dict[str, _Running] = {}
        self._ended = asyncio.Event()
        self._vllm: Interface | None = None
        self._llm: Any = None
        self._rules: RuleBook | None = None
        self._building: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start vLLM, which loads the model in a process of its own. Raises `ConfigurationError` for what cannot be."""
        self._building = asyncio.create_task(asyncio.to_thread(self._build))
        try:
            await asyncio.shield(self._building)  # a thread cannot be cancelled: `stop` waits for what it makes
        except BaseException as error:
            self._state, self._failure = EngineState.FAILED, str(error)
            raise
        if self._state is EngineState.LOADING:  # neither stopped nor told to drain meanwhile
            self._state = EngineState.READY

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
        """The events of one request. Raises an `EaselError` before the first of them if it cannot be served."""
        running = self._take(request)
        running.pump = asyncio.create_task(self._pump(running))
        ended = False
        try:
            while not ended:
                event = await running.mailbox.get()
                ended = isinstance(event, Finished | Failed)
                yield event
        finally:
            running.end("cancelled")

    def cancel(self, request_id: str) -> bool:
        """See the protocol."""
        running = self._running.get(request_id)
        if running is None:
            return False
        running.end("cancelled")
        return True

    def stats(self) -> EngineStats:
        """See the protocol. vLLM's loop is another process, so `last_step_at` says that this one still sees it."""
        now, state = time.time(), self._state
        if state in (EngineState.READY, EngineState.DRAINING) and self._llm is not None and self._llm.errored:
            state, self._failure = EngineState.FAILED, self._failure or "vLLM's engine process has ended"
        return EngineStats(
            state=state,
            taken_at=now,
            slots=self._seats.slots,
            sequences=self._seats.taken,
            waiting=self._seats.waiting,
            remaining_work=sum(running.remaining_work for running in self._running.values()),
            last_step_at=now,
            failure=self._failure,
            max_denoising_steps=self._step_cap,
        )

    async def reconfigure(self, limits: EngineLimits) -> None:
        """See the protocol. Slots go up to what vLLM started with; its prefill budget cannot be changed, so another
        than the one it started with is refused."""
        ensure_possible(limits)
        most, budget = self._settings.slots, self._settings.prefill_tokens_per_step
        if limits.slots is not None and limits.slots > most:
            raise InvalidRequest(f"slots: {limits.slots} is above {most}, what vLLM started with", param="slots")
        if limits.prefill_tokens_per_step not in (None, budget):
            raise InvalidRequest(
                f"prefill_tokens_per_step: vLLM started with {budget} and keeps it", param="prefill_tokens_per_step"
            )
        if limits.slots is not None:
            self._seats.resize(limits.slots)
        if limits.max_denoising_steps is not None:
            self._step_cap = limits.max_denoising_steps

    async def drain(self) -> None:
        """See the protocol."""
        if self._state in (EngineState.READY, EngineState.LOADING):
            self._state = EngineState.DRAINING
        await self._until_none_runs()

    async def stop(self) -> None:
        """See the protocol. Waits for a start that is under way: its process would be left behind."""
        if self._state is not EngineState.FAILED:
            self._state = EngineState.STOPPED
        for running in self._running.values():
            running.end(EngineStopped("The engine was stopped."))
        await self._until_none_runs()
        if self._building is not None:
            await asyncio.wait({self._building})
        if self._llm is not None:
            await asyncio.to_thread(self._llm.shutdown)

    def _build(self) -> None:
        """In a thread: it imports for seconds and waits minutes for the model, and the event loop is Serve's as well.

        AsyncLLM (0.26 and later) that is made where no event loop runs starts what reads its process's outputs at the
        first request, in the loop of that request; until then a thread of its own sees should the process die.
        """
        config = read_model_config(self._folder)
        context = min(self._settings.context_tokens, config.max_positions)
        self._rules = RuleBook(config, read_generation_defaults(self._folder), context, context)
        wanted = engine_args(self._folder, self._settings, config.canvas_length, context)
        self._vllm = self._import()
        self._llm = self._vllm.AsyncLLM.from_engine_args(self._vllm.AsyncEngineArgs(**wanted))

    def _take(self, request: GenerationRequest) -> _Running:
        """Checked as far as that is possible before vLLM sees it. Raises an `EaselError`."""
        if self._state is EngineState.DRAINING:
            raise Draining("This engine takes no new requests.")
        if self._state is EngineState.FAILED and self._llm is not None:
            raise EngineFailed("The engine has failed.")
        if self._state is not EngineState.READY or self._rules is None:
            raise NotReady(f"The engine is {self._state}.")
        if request.id in self._running:
            raise InvalidRequest(f"id: {request.id!r} is in flight already", param="id")
        ensure_supported(request, "vllm")
        sequence = self._rules.sequence(request, None, self._step_cap, time.time(), 0)
        running = self._running[request.id] = _Running(request, sequence.rules)
        return running

    async def _pump(self, running: _Running) -> None:
        """Everything of one request, into its mailbox, however slowly that is read."""
        last: Event = Failed(EngineFailed.code, FAILED_MESSAGE, EngineFailed.retryable)
        try:
            arrived = time.time()
            if await self._first(self._seats.take(running.request.priority), running):
                try:
                    await self._decode(running, arrived)
                finally:
                    self._seats.give_back()
            last = self._last(running)
        except Exception as error:
            last = self._failed(error)
        finally:
            del self._running[running.request.id]
            self._ended.set()
            running.mailbox.put(last)

    async def _decode(self, running: _Running, arrived: float) -> None:
        """With a seat: vLLM's outputs until it ends the request or somebody does. Leaving its iterator aborts."""
        assert self._vllm is not None, "nothing is taken before vLLM runs"
        request, now = running.request, time.time()
        canvases = running.canvases = Canvases(request, running.rules, began_at=now)
        running.mailbox.put(Started(at=now, waited_s=now - arrived))
        fields = sampling_fields(request, running.rules)
        params = self._vllm.SamplingParams(output_kind=self._vllm.RequestOutputKind.DELTA, **fields)
        prompt = self._vllm.TokensPrompt(prompt_token_ids=list(request.prompt))
        outputs = self._llm.generate(prompt, params, request.id)
        try:
            while canvases.reason is None and not running.ended_by.done():
                reading = asyncio.ensure_future(anext(outputs))
                if await self._first(reading, running):
                    for event in canvases.take(reading.result(), time.time()):
                        running.mailbox.put(event)
        finally:
            await outputs.aclose()

    async def _first(self, step: Awaitable[Any], running: _Running) -> bool:
        """Whether `step` came before the request was ended from outside or by its deadline. Raises what it raised."""
        deadline = running.request.denoising.deadline_at
        left = None if deadline is None else max(0.0, deadline - time.time())
        task = asyncio.ensure_future(step)
        try:
            await asyncio.wait({task, running.ended_by}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
                return True
            running.end("deadline")
            return False
        finally:
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    def _last(self, running: _Running) -> Event:
        """The last event of a request that vLLM ended, or somebody here."""
        canvases = running.canvases or Canvases(running.request, running.rules, began_at=0.0)
        if canvases.reason is not None:
            return Finished(canvases.reason, canvases.usage(), canvases.stop_token)
        by = running.ended_by.result()
        if by == "deadline" and not canvases.canvases:
            by = DeadlineExceeded(
                "The deadline came before the first canvas, and vLLM gives out none that is unfinished."
            )
        if isinstance(by, EaselError):
            return Failed(by.code, by.message, by.retryable, by.param)
        return Finished(by, canvases.usage())

    def _failed(self, error: Exception) -> Failed:
        """What vLLM raised, told without its words unless they are meant for clients."""
        assert self._vllm is not None, "it has run"
        if isinstance(error, self._vllm.ClientError):
            refused = InvalidRequest(f"vLLM refuses this request: {error}")
            return Failed(refused.code, refused.message, refused.retryable)
        log.error("vLLM failed on a request", exc_info=error)
        if isinstance(error, self._vllm.DeadError):
            self._state, self._failure = EngineState.FAILED, f"vLLM's engine process has died: {error}"
        failed = EngineFailed(FAILED_MESSAGE)
        return Failed(failed.code, failed.message, failed.retryable)

    async def _until_none_runs(self) -> None:
        while self._running:
            self._ended.clear()
            await self._ended.wait()

"""An engine that decodes nothing and keeps time like one that does: for tests of API, router, charts and load.

It seats sequences in slots, steps all of them together, takes longer for more canvases, and needs between 10 and 48
denoising steps a canvas, as published for real prompts: a fifth of the canvases runs to the cap. Text, steps and
failures come from a `Script`, and by default depend on the request alone, so the same request gets the same answer
whatever shares the batch. What makes tests of it worth something: it emits every event of the protocol in a legal
order, and refuses what a real engine would refuse.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from hashlib import blake2b

from easel.capabilities import ensure_supported, supports
from easel.engine.limits import ensure_possible
from easel.errors import (
    DeadlineExceeded,
    Draining,
    EaselError,
    EngineStopped,
    InvalidRequest,
    NotReady,
    UnsupportedParameter,
)
from easel.protocol import (
    GROUP_ROWS,
    CanvasCommitted,
    CanvasProgress,
    CanvasStop,
    EngineLimits,
    EngineState,
    EngineStats,
    Event,
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    Started,
    StepTimeModel,
    TokenLogprob,
    Usage,
    canvas_work,
    prefill_work,
)
from easel.telemetry.names import STEPS
from easel.telemetry.step_tally import StepTally

STEP_CAP = 48
FORCES = 100.0
"""A bias that leaves no other token a chance."""
SURE, UNSURE = 0.05, 2.0
"""Nats at a position that was accepted, and at one that was not."""
BYTE_OFFSET = 128
"""Token id of byte 0 in the embedded checkpoints' tokenizer, so that answers read as text there."""
WORDS = b"a canvas clears out of noise step by step until nothing on it moves and then it is committed "


def _draw(request: GenerationRequest, *key: int) -> int:
    """64 bits that depend on the request's seed and choice and on `key`, on nothing else."""
    text = ",".join(map(str, (request.sampling.seed, request.choice, *key)))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def published_steps(request: GenerationRequest, canvas: int) -> int:
    """Denoising steps of a canvas: 48 for a fifth of them, 10 to 40 for the rest."""
    draw = _draw(request, 1, canvas)
    return STEP_CAP if draw % 100 < 21 else 10 + (draw >> 8) % 31


def endless_words(request: GenerationRequest) -> tuple[int, ...]:
    """Words without an end: every answer is as long as its max_tokens."""
    start = _draw(request, 2) % len(WORDS)
    return tuple(BYTE_OFFSET + WORDS[(start + i) % len(WORDS)] for i in range(request.max_tokens))


def spoken(request: GenerationRequest, answer: tuple[int, ...]) -> tuple[tuple[int, ...], int | None]:
    """The scripted answer as the request wants it, and the stop token of its own that ends it, if one does.

    Too short for `min_tokens` or `ignore_eos`, it goes on in words; a bias of 100 forces a token, one of -100 bans it.
    """
    least = request.max_tokens if request.ignore_eos else request.min_tokens
    answer = (*answer, *endless_words(request)[len(answer) : least])
    forced = [token for token, bias in request.sampling.logit_bias if bias >= FORCES]
    banned = {token for token, bias in request.sampling.logit_bias if bias <= -FORCES}
    other = next(token for token in range(BYTE_OFFSET + ord("a"), 2**31) if token not in banned)
    answer = tuple(forced[0] if forced else other if token in banned else token for token in answer)
    for index in range(request.min_tokens, len(answer)):
        if answer[index] in request.stop_token_ids:
            return answer[:index], answer[index]
    return answer, None


def made_up_logprobs(
    request: GenerationRequest, start: int, tokens: tuple[int, ...]
) -> tuple[TokenLogprob, ...] | None:
    """Falling log-probabilities for the answer's tokens from `start` on; None where nobody asked."""
    wanted = request.sampling.logprobs
    if wanted is None:
        return None
    made = []
    for index, token in enumerate(tokens, start):
        best = -(_draw(request, 3, index) % 1000) / 4000
        others = [other for other in range(BYTE_OFFSET, BYTE_OFFSET + wanted + 1) if other != token]
        top = ((token, best), *((other, best - 1.0 - rank) for rank, other in enumerate(others)))
        made.append(TokenLogprob(best, top[:wanted]))
    return tuple(made)


def never(request: GenerationRequest, canvas: int) -> EaselError | None:
    """No failures."""
    return None


@dataclass(frozen=True, slots=True)
class Script:
    """What the fake does. Each function sees the request, so one engine can play many parts."""

    answer: Callable[[GenerationRequest], tuple[int, ...]] = endless_words
    """The whole answer. Shorter than max_tokens: it ends with a stop token after that."""
    steps: Callable[[GenerationRequest, int], int] = published_steps
    """Denoising steps of a canvas."""
    fail: Callable[[GenerationRequest, int], EaselError | None] = never
    """An error to fail with instead of committing that canvas."""


@dataclass(eq=False, slots=True)
class _Sequence:
    request: GenerationRequest
    arrived: float
    answer: tuple[int, ...]
    stop_token: int | None
    output: list[int]
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    prefill_left: int = 0
    canvas: int = 0
    step: int = 0
    steps_needed: int = 0
    canvas_started: float = 0.0
    canvases: int = 0
    denoising_steps: int = 0
    last_progress: float = 0.0
    shown: list[tuple[int, bool]] = field(default_factory=list)
    """What progress has told of the present canvas: token and accepted, by position."""


class FakeEngine:
    """See the module. Times in seconds, `canvas_length` in positions."""

    name = "fake"
    supports = supports("fake")

    def __init__(
        self,
        slots: int = 8,
        step_s: float = 0.01,
        step_s_per_canvas: float = 0.002,
        canvas_length: int = 256,
        load_s: float = 0.0,
        script: Script | None = None,
    ) -> None:
        self._slots = slots
        self._prefill = 512
        self._step_cap = STEP_CAP
        self._step_s = step_s
        self._step_s_per_canvas = step_s_per_canvas
        self._canvas_length = canvas_length
        self._load_s = load_s
        self._script = script or Script()
        self._state = EngineState.LOADING
        self._waiting: list[_Sequence] = []
        self._seated: list[_Sequence] = []
        self._wake = asyncio.Event()
        self._drained = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._tally = StepTally()
        self._last_step_at = 0.0

    async def start(self) -> None:
        await asyncio.sleep(self._load_s)
        self._state = EngineState.READY
        self._last_step_at = time.time()
        self._loop = asyncio.create_task(self._run())

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
        if self._state is not EngineState.READY:
            error = Draining if self._state is EngineState.DRAINING else NotReady
            raise error(f"The engine is {self._state}.")
        if any(sequence.request.id == request.id for sequence in (*self._waiting, *self._seated)):
            raise InvalidRequest(f"id: {request.id!r} is in flight already", param="id")
        ensure_supported(request, "fake")
        if request.denoising.canvas_length not in (None, self._canvas_length):
            raise UnsupportedParameter(f"canvas_length: canvases have {self._canvas_length} positions", "canvas_length")
        answer, stop_token = spoken(request, self._script.answer(request))
        sequence = _Sequence(request, time.time(), answer, stop_token, list(request.resume))
        sequence.prefill_left = len(request.prompt) + len(request.resume)
        sequence.canvas = len(request.resume) // self._canvas_length
        self._waiting.append(sequence)
        self._wake.set()
        try:
            while True:
                event = await sequence.events.get()
                yield event
                if isinstance(event, Finished | Failed):
                    return
        finally:
            self._remove(sequence)

    def cancel(self, request_id: str) -> bool:
        for sequence in [*self._waiting, *self._seated]:
            if sequence.request.id == request_id:
                self._finish(sequence, "cancelled")
                return True
        return False

    def stats(self) -> EngineStats:
        return EngineStats(
            state=self._state,
            taken_at=time.time(),
            slots=self._slots,
            sequences=len(self._seated),
            waiting=len(self._waiting),
            remaining_work=sum(self._remaining(s) for s in [*self._waiting, *self._seated]),
            step_time=StepTimeModel(self._step_s, self._step_s_per_canvas, self._tally.count),
            counters={STEPS.name: self._tally.count},
            steps=self._tally.steps,
            denoised=self._tally.denoised,
            last_step_at=time.time() if self._state is EngineState.READY and not self._seated else self._last_step_at,
            max_denoising_steps=self._step_cap,
        )

    async def reconfigure(self, limits: EngineLimits) -> None:
        ensure_possible(limits)
        if limits.slots is not None:
            self._slots = limits.slots
        if limits.prefill_tokens_per_step is not None:
            self._prefill = limits.prefill_tokens_per_step
        if limits.max_denoising_steps is not None:
            self._step_cap = min(limits.max_denoising_steps, STEP_CAP)  # as a checkpoint's own cap bounds any other

    async def drain(self) -> None:
        self._state = EngineState.DRAINING
        self._drained.clear()
        if self._waiting or self._seated:
            await self._drained.wait()

    async def stop(self) -> None:
        self._state = EngineState.STOPPED
        for sequence in [*self._waiting, *self._seated]:
            self._fail(sequence, EngineStopped("The engine was stopped."))
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)

    async def _run(self) -> None:
        """One pass: seat who waits, let the time of a step go by, advance everyone."""
        while True:
            while self._waiting and len(self._seated) < self._slots:
                sequence = self._waiting.pop(0)
                self._seated.append(sequence)
                now, deadline = time.time(), sequence.request.denoising.deadline_at
                sequence.events.put_nowait(Started(at=now, waited_s=now - sequence.arrived))
                if deadline is not None and now >= deadline:
                    self._fail(sequence, DeadlineExceeded("The deadline came before the first denoising step."))
            if not self._seated:
                self._wake.clear()
                await self._wake.wait()
                continue
            batch, began = list(self._seated), asyncio.get_running_loop().time()
            expected = self._step_s + self._step_s_per_canvas * (len(batch) - 1)
            await asyncio.sleep(expected)
            groups = len(batch) * self._canvas_length / GROUP_ROWS
            seconds = asyncio.get_running_loop().time() - began
            self._tally.took(seconds, expected, groups, len(batch), self._slots)
            self._last_step_at = time.time()
            for sequence in batch:
                if sequence in self._seated:
                    self._advance(sequence)

    def _advance(self, sequence: _Sequence) -> None:
        request = sequence.request
        if sequence.prefill_left > 0:
            sequence.prefill_left -= self._prefill
            return
        if sequence.step == 0:
            sequence.canvas_started = time.time()
            cap = min(self._step_cap, request.denoising.max_steps or self._step_cap)
            steps = cap if request.denoising.confidence == 0 else self._script.steps(request, sequence.canvas)
            sequence.steps_needed = min(max(1, steps), cap)
        sequence.step += 1
        sequence.denoising_steps += 1
        accepted = self._accepted(sequence)
        self._tally.positions(sequence.step, self._canvas_length, accepted, self._nats(accepted))
        late = request.denoising.deadline_at is not None and time.time() >= request.denoising.deadline_at
        if sequence.step < sequence.steps_needed and not late:
            self._show_progress(sequence)
            return
        self._commit(sequence, late)

    def _commit(self, sequence: _Sequence, late: bool) -> None:
        request = sequence.request
        error = self._script.fail(request, sequence.canvas)
        if error is not None:
            self._fail(sequence, error)
            return
        room = request.max_tokens - len(sequence.output)
        tokens = sequence.answer[len(sequence.output) :][: min(self._canvas_length, room)]
        logprobs = made_up_logprobs(request, len(sequence.output), tokens)
        sequence.output.extend(tokens)
        sequence.canvases += 1
        capped = sequence.steps_needed == min(self._step_cap, request.denoising.max_steps or self._step_cap)
        stop = CanvasStop.DEADLINE if late else CanvasStop.STEP_CAP if capped else CanvasStop.CONVERGED
        sequence.events.put_nowait(
            CanvasCommitted(
                sequence.canvas,
                tokens,
                sequence.step,
                stop,
                sequence.canvas_started,
                time.time(),
                logprobs,
                self._nats(self._accepted(sequence)) / self._canvas_length,
            )
        )
        sequence.canvas += 1
        sequence.step = 0
        sequence.shown.clear()
        if len(sequence.output) >= request.max_tokens:
            self._finish(sequence, "length")
        elif len(sequence.output) >= len(sequence.answer):
            self._finish(sequence, "stop")
        elif late:
            self._finish(sequence, "deadline")

    def _show_progress(self, sequence: _Sequence) -> None:
        """What differs from what was told: each position is noise until a step of its own, then what is committed."""
        rate, now = sequence.request.progress_hz, time.time()
        if rate is None or now - sequence.last_progress < 1 / rate:
            return
        sequence.last_progress = now
        told = sequence.shown
        canvas = [self._looks(sequence, position) for position in range(self._canvas_length)]
        changed = [position for position, look in enumerate(canvas) if not told or told[position] != look]
        sequence.shown = canvas
        sequence.events.put_nowait(
            CanvasProgress(
                sequence.canvas,
                sequence.step,
                tuple(changed),
                tuple(canvas[position][0] for position in changed),
                tuple(SURE if canvas[position][1] else UNSURE for position in changed),
                tuple(canvas[position][1] for position in changed),
            )
        )

    def _looks(self, sequence: _Sequence, position: int) -> tuple[int, bool]:
        """Token and accepted, at this step. 0 fills what lies beyond the answer."""
        draw = (sequence.request.sampling.seed + 31 * sequence.canvas + position + 1) * 2654435761 % 2**32
        if sequence.step <= (draw >> 8) % sequence.steps_needed:
            return BYTE_OFFSET + WORDS[(draw + sequence.step // 2) % len(WORDS)], False
        index = len(sequence.output) + position
        return (sequence.answer[index] if index < len(sequence.answer) else 0), True

    def _accepted(self, sequence: _Sequence) -> int:
        """Positions that a step accepts, about: what `_looks` says, without looking at each."""
        return round(self._canvas_length * min(1.0, sequence.step / sequence.steps_needed))

    def _nats(self, accepted: int) -> float:
        return SURE * accepted + UNSURE * (self._canvas_length - accepted)

    def _remaining(self, sequence: _Sequence) -> float:
        canvases = -(-max(0, sequence.request.max_tokens - len(sequence.output)) // self._canvas_length)
        work = prefill_work(max(0, sequence.prefill_left)) + canvases * canvas_work(self._canvas_length, 24)
        return max(0.0, work - sequence.step * self._canvas_length / GROUP_ROWS)

    def _finish(self, sequence: _Sequence, reason: FinishReason) -> None:
        request = sequence.request
        steps = sequence.denoising_steps + sequence.canvases  # a commit is a pass too
        usage = Usage(
            prompt_tokens=len(request.prompt),
            completion_tokens=len(sequence.output),
            canvases=sequence.canvases,
            denoising_steps=sequence.denoising_steps,
            work=prefill_work(len(request.prompt)) + steps * self._canvas_length / GROUP_ROWS,
        )
        sequence.events.put_nowait(Finished(reason, usage, sequence.stop_token if reason == "stop" else None))
        self._remove(sequence)

    def _fail(self, sequence: _Sequence, error: EaselError) -> None:
        sequence.events.put_nowait(Failed(error.code, error.message, error.retryable, error.param))
        self._remove(sequence)

    def _remove(self, sequence: _Sequence) -> None:
        for line in (self._waiting, self._seated):
            if sequence in line:
                line.remove(sequence)
        if not self._waiting and not self._seated:
            self._drained.set()

"""An engine that keeps time and decodes nothing, on the clock of whatever event loop it runs on.

Owns: slots, the duration of a step, prefill, prefixes, events, statistics and dying. Refuses to know: how many steps a
canvas really takes; the load says so.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from easel.errors import Draining, EngineFailed
from easel.prefixes import BLOCK_TOKENS, prefix_hashes
from easel.protocol import (
    GROUP_ROWS,
    CanvasCommitted,
    CanvasStop,
    EngineState,
    EngineStats,
    Event,
    Finished,
    GenerationRequest,
    Started,
    StepTimeModel,
    Usage,
    prefill_work,
)
from easel.router.simulation.virtual_time import now

STEP_CAP = 48
PREFILL_TOKENS = 512

Steps = Callable[[GenerationRequest], Sequence[int]]
"""Denoising steps of each canvas of an answer, which has as many canvases as that."""


@dataclass(eq=False, slots=True)
class _Seated:
    request: GenerationRequest
    steps: Sequence[int]
    prefill: int
    events: asyncio.Queue[Event | EngineFailed] = field(default_factory=asyncio.Queue)
    arrived: float = 0.0
    canvas: int = 0
    step: int = 0
    began: float = 0.0
    commit: bool = False
    done: float = 0.0


class SimulatedReplica:
    """`prefixes`: blocks of prompts that its cache holds; 0: it has none. `mean_steps`: what it takes a canvas to need
    when it says how much work remains."""

    def __init__(
        self,
        name: str,
        steps: Steps,
        step_time: StepTimeModel,
        slots: int = 8,
        prefixes: int = 0,
        mean_steps: float = 26.6,
    ) -> None:
        self.name = name
        self.steps_done = 0
        self.busy_s = 0.0
        """Seconds of stepping."""
        self._steps = steps
        self._step_time = step_time
        self._slots = slots
        self._mean_steps = mean_steps
        self._most_prefixes = prefixes
        self._prefixes: OrderedDict[int, None] = OrderedDict()
        self._seated: list[_Seated] = []
        self._waiting: list[_Seated] = []
        self._stepping = False
        self._state = EngineState.READY

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
        """The events of one request, as an engine gives them."""
        if self._state is EngineState.DRAINING:
            raise Draining("This replica takes no new work.")
        if self._state is not EngineState.READY:
            raise EngineFailed("The replica is gone.")
        cached = self._cached(request)
        one = _Seated(request, self._steps(request), len(request.prompt) - cached, arrived=now())
        one.done = prefill_work(one.prefill)
        self._waiting.append(one)
        self._go()
        try:
            while True:
                event = await one.events.get()
                if isinstance(event, EngineFailed):
                    raise event
                if isinstance(event, Started):
                    event = Started(event.at, event.waited_s, cached)
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            for line in (self._seated, self._waiting):
                if one in line:
                    line.remove(one)

    def stats(self) -> EngineStats:
        """What it says of itself."""
        everyone = [*self._seated, *self._waiting]
        return EngineStats(
            state=self._state,
            taken_at=now(),
            slots=self._slots,
            sequences=len(self._seated),
            waiting=len(self._waiting),
            remaining_work=sum(map(self._remaining, everyone)),
            step_time=self._step_time,
            prefix_digest=tuple(self._prefixes),
        )

    def die(self) -> None:
        """As a process does that is killed."""
        self._state = EngineState.FAILED
        for one in [*self._seated, *self._waiting]:
            one.events.put_nowait(EngineFailed("The engine stopped while it worked on this request."))
        self._seated.clear()
        self._waiting.clear()

    def drain(self) -> None:
        """Take nothing new."""
        self._state = EngineState.DRAINING

    @property
    def idle(self) -> bool:
        """Nothing is here."""
        return not self._seated and not self._waiting

    def _cached(self, request: GenerationRequest) -> int:
        if not self._most_prefixes:
            return 0
        hashes, found = prefix_hashes(request.prompt), 0
        for one in hashes:
            if one not in self._prefixes:
                break
            found += 1
        for one in hashes:
            self._prefixes[one] = None
            self._prefixes.move_to_end(one)
        while len(self._prefixes) > self._most_prefixes:
            self._prefixes.popitem(last=False)
        return found * BLOCK_TOKENS

    def _remaining(self, one: _Seated) -> float:
        canvases = -(-one.request.max_tokens // GROUP_ROWS) - one.canvas
        return prefill_work(one.prefill) + max(1.0, canvases * self._mean_steps - one.step)

    def _go(self) -> None:
        if self._stepping or self.idle:
            return
        while self._waiting and len(self._seated) < self._slots:
            one = self._waiting.pop(0)
            self._seated.append(one)
            one.events.put_nowait(Started(now(), now() - one.arrived))
        self._stepping = True
        groups, budget, prefilling = 0.0, PREFILL_TOKENS, set[_Seated]()
        for one in self._seated:
            if one.prefill > 0:
                tokens = min(one.prefill, budget)
                budget, one.prefill = budget - tokens, one.prefill - tokens
                groups += prefill_work(tokens)
                prefilling.add(one)
                continue
            if one.step == 0:
                one.began = now()
            groups += 2.0 if one.commit else 1.0
            one.commit = False
        batch = [one for one in self._seated if one not in prefilling]
        seconds = self._step_time.seconds(groups)
        self.busy_s += seconds
        asyncio.get_running_loop().call_later(seconds, self._stepped, batch, seconds)

    def _stepped(self, batch: list[_Seated], seconds: float) -> None:
        self._stepping = False
        self.steps_done += 1
        for one in batch:
            if one in self._seated:
                self._advance(one, seconds)
        self._go()

    def _advance(self, one: _Seated, seconds: float) -> None:
        one.step += 1
        one.done += 1.0
        deadline = one.request.denoising.deadline_at
        late = deadline is not None and now() + seconds > deadline
        cap = one.request.denoising.max_steps or STEP_CAP
        if one.step < min(one.steps[one.canvas], cap) and not late:
            return
        stop = CanvasStop.DEADLINE if late else CanvasStop.STEP_CAP if one.step >= cap else CanvasStop.CONVERGED
        tokens = (1,) * min(GROUP_ROWS, one.request.max_tokens - one.canvas * GROUP_ROWS)
        one.events.put_nowait(CanvasCommitted(one.canvas, tokens, one.step, stop, one.began, now()))
        one.canvas += 1
        if one.canvas < len(one.steps) and not late:
            one.step, one.commit = 0, True
            one.done += 1.0
            return
        usage = Usage(len(one.request.prompt), canvases=one.canvas, work=one.done)
        whole = one.canvas * GROUP_ROWS >= one.request.max_tokens
        one.events.put_nowait(Finished("deadline" if late else "length" if whole else "stop", usage))
        self._seated.remove(one)

"""From events to text: one choice, and all choices of a call side by side.

Owns: what a client gets of each event; when a choice ends (its engine says so, a stop string is found or somebody asks
for its end, which both cancel the rest of its work); and that nothing keeps running once nobody waits for it.

The life of a choice: `Delta`s, the first one with the first event (so whoever has it knows that the work was taken on),
the last one with an `Outcome`; or an `EaselError`.

Refuses to know: JSON, HTTP, whole or streamed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace

from easel.api.answer_text import AnswerText
from easel.api.backend import Backend
from easel.api.cancelling import Halt
from easel.api.logprobs import ChosenToken
from easel.errors import EaselError, EngineFailed, from_code
from easel.protocol import (
    CanvasCommitted,
    CanvasProgress,
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    Started,
    canvas_work,
    prefill_work,
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a choice ended and what it took."""

    reason: FinishReason
    canvases: tuple[tuple[int, str], ...]
    """Denoising steps of each canvas, and why its denoising stopped."""
    completion_tokens: int
    """Those in the text; with a stop string, up to the one that completed it."""
    cached_tokens: int
    work: float
    """Units of work."""
    reasoning_tokens: int = 0
    """Of the tokens, those before the answer proper."""


@dataclass(frozen=True, slots=True)
class Delta:
    """More of one choice."""

    index: int
    text: str = ""
    committed: bool = False
    """It comes from a committed canvas."""
    tokens: int = 0
    """Of that canvas, those that count."""
    steps: int = 0
    """Denoising steps of that canvas."""
    progress: CanvasProgress | None = None
    """What moved on the canvas, where that is wanted. Such a delta has nothing else."""
    canvas: CanvasCommitted | None = None
    """The canvas of this text, where progress is wanted, with those of its tokens that count."""
    outcome: Outcome | None = None
    """On the last one."""
    logprobs: tuple[ChosenToken, ...] = ()
    """Of the tokens that this text is made of, where they are wanted."""
    reasoning: str = ""
    """More of what the model thinks before it answers."""
    runtime: str = ""
    """What decodes it, on the first one."""


async def run_choice(
    backend: Backend,
    request: GenerationRequest,
    index: int,
    answer: AnswerText,
    canvas_length: int,
    echo: str = "",
    halt: Halt | None = None,
) -> AsyncGenerator[Delta, None]:
    """The deltas of one choice, whose text begins with `echo`. Closing it closes the backend's iterator, which cancels
    the work; so does `halt`, after which the last delta tells what there is.

    Raises:
        EaselError: the backend did, the engine failed, or `halt` came before anything had begun.
    """
    canvases: list[tuple[int, str]] = []
    cached = 0
    last: Delta | None = None
    begun, shown = False, request.progress_hz is not None
    halt = Halt() if halt is None else halt

    def outcome(reason: FinishReason, work: float | None = None) -> Outcome:
        if work is None:  # the engine was not asked to the end
            work = prefill_work(len(request.prompt) - cached)
            work += sum(canvas_work(canvas_length, steps) for steps, _ in canvases)
        return Outcome(reason, tuple(canvases), answer.tokens, cached, work, answer.reasoning_tokens)

    events = halt.following(backend.generate(request))
    try:
        async for event in events:
            if not begun and not isinstance(event, Failed):  # a failure before anything else has a status of its own
                begun = True
                halt.began()
                yield Delta(index, echo, runtime=event.runtime if isinstance(event, Started) else "")
            if isinstance(event, CanvasCommitted):
                canvases.append((event.steps, str(event.stop)))
                before = answer.tokens
                said = answer.add(event)
                used = answer.tokens - before
                delta = Delta(
                    index, said.text, True, used, event.steps, logprobs=said.logprobs, reasoning=said.reasoning
                )
                if shown:
                    delta = replace(delta, canvas=replace(event, token_ids=event.token_ids[:used]))
                if answer.stopped:
                    last = replace(delta, outcome=outcome("stop"))
                    break
                yield delta
            elif isinstance(event, CanvasProgress):
                if shown:
                    yield Delta(index, progress=event)
            elif isinstance(event, Finished):
                said, cached = answer.end(), event.usage.cached_tokens
                ended = outcome("stop" if answer.stopped else event.reason, event.usage.work)
                last = Delta(index, said.text, outcome=ended, logprobs=said.logprobs, reasoning=said.reasoning)
                break
            elif isinstance(event, Failed):
                raise _error(event)
            elif isinstance(event, Started):
                cached = event.cached_tokens
    finally:
        await events.aclose()
    if last is None:
        halt.check()
        if not halt.asked:
            raise EngineFailed("The engine ended the answer before it was finished.")
        said = answer.end()
        text = said.text if begun else echo
        last = Delta(index, text, outcome=outcome("cancelled"), logprobs=said.logprobs, reasoning=said.reasoning)
    yield last


def _error(event: Failed) -> EaselError:
    # The engine knows more than the class: a request that kills it, say, had better not be tried again.
    return from_code(event.code, event.message, event.param, event.retryable)


class SideBySide:
    """The deltas of several choices as they come. The first failure ends all of them.

    Each choice has at most one event in hand, so a client that reads slowly holds back its own work.
    """

    def __init__(self, choices: Sequence[AsyncGenerator[Delta, None]]) -> None:
        self._choices = list(choices)
        self._next: dict[asyncio.Task[Delta], AsyncGenerator[Delta, None]] = {}
        self._ready: list[Delta] = []
        self._running = len(choices)
        self._begun = False

    @property
    def ended(self) -> bool:
        """Whether every choice has given its last delta."""
        return not self._running and not self._ready

    async def next(self, silence_s: float | None = None) -> Delta | None:
        """The next delta; None when `silence_s` seconds went by without one, which disturbs nothing.

        Not to be called once it has `ended`.

        Raises:
            EaselError: one failed. Close what is left.
        """
        if not self._begun:
            self._begun = True
            for choice in self._choices:
                self._ask(choice)
        while not self._ready:
            done, _ = await asyncio.wait(self._next, timeout=silence_s, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                return None
            for task in [task for task in self._next if task in done]:  # in the order they were asked
                choice = self._next.pop(task)
                delta = task.result()
                self._ready.append(delta)
                if delta.outcome is None:
                    self._ask(choice)
                else:
                    self._running -= 1
        return self._ready.pop(0)

    async def close(self) -> None:
        """Cancels what still runs. Goes on to its end even where the caller is cancelled meanwhile."""
        closing = asyncio.create_task(self._close())
        _CLOSING.add(closing)
        closing.add_done_callback(_CLOSING.discard)
        await asyncio.shield(closing)

    def _ask(self, choice: AsyncGenerator[Delta, None]) -> None:
        self._next[asyncio.create_task(_next(choice))] = choice

    async def _close(self) -> None:
        for task in self._next:
            task.cancel()
        await asyncio.gather(*self._next, return_exceptions=True)
        self._next.clear()
        await asyncio.gather(*(choice.aclose() for choice in self._choices), return_exceptions=True)


_CLOSING: set[asyncio.Task[None]] = set()
"""The event loop keeps no strong reference to a task."""


async def _next(choice: AsyncGenerator[Delta, None]) -> Delta:
    return await anext(choice)

"""What a request still has to do, in units of work, learned from the requests before it.

Owns: two learned curves for each kind of request (tier, tenant, answer length): how likely a canvas is to end at each
of its steps, and how likely an answer is to end with each of its canvases. From both, what remains after so many
canvases and steps. Refuses to know: queues, replicas, and what time it is but for the times that events carry.

A kind that has been seen little borrows from wider ones: its tier and length, then everybody's, then what is published.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

from easel.protocol import (
    GROUP_ROWS,
    CanvasCommitted,
    CanvasProgress,
    CanvasStop,
    Event,
    Failed,
    Finished,
    GenerationRequest,
    Preempted,
    Started,
    prefill_work,
)
from easel.router.capacity import PREFILL_A_STEP
from easel.router.curves import Curve
from easel.telemetry.names import ESTIMATE_RATIO
from easel.telemetry.recorder import NullRecorder, Recorder

MOST_KINDS = 512
"""Kinds whose curves are kept: of more, the one that was used longest ago goes."""
CANVAS_INDICES = 64
"""Longer answers end like those of this many canvases."""
ENDS_AT_FIRST = 0.25
"""Chance that an answer ends with a canvas, before any was seen."""
MEMORY = 0.05
"""Weight of the newest canvas in the time of a step."""

PUBLISHED_CAP = 48
PUBLISHED_CAPPED = 0.21
"""Of canvases of real prompts that run to the cap of 48 steps. The rest, spread evenly from 10 to 32, makes the mean of
26.6 that goes with it."""
PUBLISHED_FIRST, PUBLISHED_LAST = 10, 32


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a request is expected to take."""

    work: float
    """Units of work, prefill included: the mean."""
    canvases: float
    """Canvases: the mean."""
    steps: float
    """Denoising steps of a canvas: the mean."""
    least_steps: float
    """Steps of the engine that prefill and one denoising step for each of those canvases take."""


@dataclass(frozen=True, slots=True)
class _Kind:
    steps: Curve
    canvases: Curve


class WorkEstimator:
    """Learns from every request of one ingress. Not thread-safe: one event loop calls it."""

    def __init__(
        self,
        canvas_length: int,
        step_cap: int = PUBLISHED_CAP,
        recorder: Recorder = NullRecorder(),  # noqa: B008
        model: str = "none",
    ) -> None:
        """`canvas_length` in positions; `step_cap`: most denoising steps of a canvas, if the request sets none."""
        self.step_s = 0.0
        """Seconds of one denoising step, as canvases have lately taken; 0 before the first."""
        self.canvas_length = canvas_length
        self._step_cap = step_cap
        self._recorder = recorder
        self._model = model
        self._all = _Kind(
            Curve(step_cap, prior=published(step_cap)), Curve(CANVAS_INDICES, prior=[ENDS_AT_FIRST] * CANVAS_INDICES)
        )
        self._wide: dict[tuple[str, int], _Kind] = {}
        self._kinds: OrderedDict[tuple[str, str, int], _Kind] = OrderedDict()

    def estimate(self, request: GenerationRequest, cached_tokens: int = 0) -> Estimate:
        """Before anything of it has run. `cached_tokens` of its prompt need no prefill."""
        kind, most, cap = self._kind(request), self._most_canvases(request), self._cap(request)
        gone = len(request.resume) // self.canvas_length
        canvases, steps = kind.canvases.left(gone, most), kind.steps.left(0, cap)
        tokens = max(0, len(request.prompt) + len(request.resume) - cached_tokens)
        work = prefill_work(tokens) + self.work(canvases * steps, max(0.0, canvases - 1.0))
        return Estimate(work, canvases, steps, math.ceil(prefill_work(tokens) / PREFILL_A_STEP) + canvases)

    def track(self, request: GenerationRequest) -> RequestWork:
        """Follows one request from here to its end."""
        return RequestWork(self, request, self.estimate(request).work)

    def left(self, request: GenerationRequest, canvases: int, steps: int) -> float:
        """Units of work, without prefill, after so many canvases and so many steps of the next."""
        kind, most, cap = self._kind(request), self._most_canvases(request), self._cap(request)
        more = kind.canvases.left(canvases, most)
        if more <= 0.0:
            return 0.0
        now = max(kind.steps.left(steps, cap), 1.0)  # it was not committed, so another step is to come
        return self.work(now + (more - 1.0) * kind.steps.left(0, cap), more - 1.0)

    def took(self, event: CanvasCommitted, request: GenerationRequest) -> None:
        """A canvas was committed. Nothing is learned from one whose steps the engine does not tell."""
        if not event.steps:
            return
        self._kind(request).steps.learn(event.steps, event.stop is CanvasStop.CONVERGED)
        seconds = (event.finished_at - event.started_at) / max(1, event.steps)
        if seconds > 0.0:
            self.step_s += (MEMORY if self.step_s else 1.0) * (seconds - self.step_s)

    def ended(self, request: GenerationRequest, canvases: int, by_itself: bool) -> None:
        """An answer ended after so many canvases, by itself or cut off."""
        self._kind(request).canvases.learn(canvases, by_itself)

    def erred(self, expected: float, actual: float) -> None:
        """A finished request took `actual` units of work where `expected` were."""
        if expected > 0.0:
            self._recorder.observe(ESTIMATE_RATIO, actual / expected, model=self._model)

    def work(self, steps: float, commits: float) -> float:
        """Units of work of so many denoising steps and commits."""
        return (steps + commits) * self.canvas_length / GROUP_ROWS

    def _most_canvases(self, request: GenerationRequest) -> int:
        return -(-request.max_tokens // self.canvas_length)

    def _cap(self, request: GenerationRequest) -> int:
        return min(request.denoising.max_steps or self._step_cap, self._step_cap)

    def _kind(self, request: GenerationRequest) -> _Kind:
        size = self._most_canvases(request).bit_length()
        key = (request.tier, request.tenant, size)
        kind = self._kinds.get(key)
        if kind is None:
            wide = self._wide.get((request.tier, size))
            if wide is None:
                wide = self._wide[request.tier, size] = _child(self._all)
            kind = self._kinds[key] = _child(wide)
            if len(self._kinds) > MOST_KINDS:
                self._kinds.popitem(last=False)
        else:
            self._kinds.move_to_end(key)
        return kind


def _child(parent: _Kind) -> _Kind:
    return _Kind(
        Curve(parent.steps.length, parent.steps),
        Curve(parent.canvases.length, parent.canvases),
    )


def published(step_cap: int) -> list[float]:
    """Chance of a canvas to end at each of `step_cap` steps, as published for a cap of 48 and scaled to this one."""
    first = max(1, PUBLISHED_FIRST * step_cap // PUBLISHED_CAP)
    last = max(first, PUBLISHED_LAST * step_cap // PUBLISHED_CAP)
    each = (1.0 - PUBLISHED_CAPPED) / (last - first + 1)
    chances, alive = [], 1.0
    for step in range(1, step_cap + 1):
        ends = each if first <= step <= last else 0.0
        chances.append(ends / alive)
        alive -= ends
    return chances


class RequestWork:
    """The work of one request: tell it every event, ask it what remains. Learning happens by itself."""

    def __init__(self, estimator: WorkEstimator, request: GenerationRequest, expected: float) -> None:
        self.request = request
        self.expected = expected
        """Units of work that were expected at the start."""
        self.done = 0.0
        """Units of work known to be done."""
        self._estimator = estimator
        self._canvas_length = estimator.canvas_length
        self._given = len(request.resume) // self._canvas_length
        self._canvases = self._given
        self._steps = 0
        self._prefill = prefill_work(len(request.prompt) + len(request.resume))
        self._since: float | None = None
        """Unix time since which the present canvas has been denoised, prefill included."""
        self._ended = False

    def saw(self, event: Event) -> None:
        """Take in an event of this request, in order."""
        estimator = self._estimator
        if isinstance(event, CanvasCommitted):
            self._encoded()
            self._canvases = max(self._canvases + 1, event.canvas + 1)
            # A canvas is encoded only when another follows: its commit counts with the next one's steps.
            commits = 1.0 if self._canvases - self._given > 1 else 0.0
            self.done += estimator.work(event.steps, commits)
            self._steps, self._since = 0, event.finished_at
            estimator.took(event, self.request)
        elif isinstance(event, CanvasProgress):
            self._encoded()
            self._steps = event.step
        elif isinstance(event, Started):
            self._since = event.at
            self._prefill = max(0.0, self._prefill - prefill_work(event.cached_tokens))
        elif isinstance(event, Preempted):
            self._since = None
            self._prefill = prefill_work(len(self.request.prompt)) + self._canvases * self._canvas_length / GROUP_ROWS
        elif isinstance(event, Finished):
            self.done = event.usage.work
            estimator.erred(self.expected, event.usage.work)
            self._end(by_itself=event.reason == "stop")
        elif isinstance(event, Failed):
            self._end(by_itself=False)

    def left(self) -> None:
        """Nobody reads on: a stop string was found, or the client is gone. Does nothing after the last event."""
        # To whoever plans work both are ends of an answer, like a stop token.
        self._end(by_itself=True)

    def remaining(self, now: float | None = None) -> float:
        """Units of work still to do. With `now` (Unix seconds) steps are counted that no event told of, by the time
        since the canvas began. 0 once it has finished or failed."""
        if self._ended:
            return 0.0
        steps, step_s = self._steps, self._estimator.step_s
        if now is not None and self._since is not None and step_s > 0.0:
            steps = max(steps, int((now - self._since) / step_s - self._prefill / PREFILL_A_STEP))
        prefill = self._prefill if steps <= 0 else 0.0
        return prefill + self._estimator.left(self.request, self._canvases, max(0, steps))

    def _encoded(self) -> None:
        self.done += self._prefill
        self._prefill = 0.0

    def _end(self, by_itself: bool) -> None:
        if not self._ended:
            self._ended = True
            self._estimator.ended(self.request, self._canvases, by_itself and self._canvases > self._given)

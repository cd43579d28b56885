"""What a request still has to do, in units of work, learned from the requests before it.

Owns: two learned curves for each kind of request (tier, tenant, answer length): how likely a canvas is to end at each
of its steps, and how likely an answer is to end with each of its canvases. From both, what remains after so many
canvases and steps. Refuses to know: queues, replicas, and what time it is but for the times that events carry.

A kind that has been seen little borrows from wider ones: the tier's, then everybody's, then what is published.
"""

from __future__ import annotations

from dataclasses import dataclass

from easel.protocol import Event, GenerationRequest
from easel.telemetry.recorder import NullRecorder, Recorder


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a request is expected to take from here on."""

    work: float
    """Units of work, prefill included: the mean."""
    high: float
    """Units of work that nine of ten requests like it stay under."""
    canvases: float
    """Canvases still to come, the present one included: the mean."""
    steps: float
    """Denoising steps of a canvas from its beginning: the mean."""


class WorkEstimator:
    """Learns from every request of one ingress. Not thread-safe: one event loop calls it."""

    def __init__(
        self,
        canvas_length: int,
        step_cap: int = 48,
        recorder: Recorder = NullRecorder(),  # noqa: B008
        model: str = "none",
    ) -> None:
        """`canvas_length` in positions; `step_cap`: most denoising steps of a canvas, if the request sets none."""

    def estimate(self, request: GenerationRequest, cached_tokens: int = 0) -> Estimate:
        """Before anything of it has run. `cached_tokens` of its prompt need no prefill."""
        raise NotImplementedError

    def track(self, request: GenerationRequest) -> RequestWork:
        """Follows one request from here to its end."""
        raise NotImplementedError

    @property
    def step_s(self) -> float:
        """Seconds of one denoising step, as canvases have lately taken; 0 before the first."""
        raise NotImplementedError


class RequestWork:
    """The work of one request: tell it every event, ask it what remains. Learning happens by itself."""

    request: GenerationRequest
    expected: float
    """Units of work that were expected at the start."""
    done: float
    """Units of work known to be done."""

    def saw(self, event: Event) -> None:
        """Take in an event of this request, in order."""
        raise NotImplementedError

    def remaining(self, now: float | None = None) -> float:
        """Units of work still to do. With `now` (Unix seconds) steps are counted that no event told of, by the time
        since the canvas began. 0 once it has finished or failed."""
        raise NotImplementedError

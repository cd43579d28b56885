"""Requests, statistics and a clock that tests of the router make."""

from __future__ import annotations

from typing import Any

from easel.protocol import Denoising, EngineState, EngineStats, GenerationRequest, StepTimeModel


class FakeClock:
    """Stands still until it is told otherwise, so that a test says when each thing happens."""

    def __init__(self, now: float = 100.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def request(name: str = "r", prompt: int = 10, max_tokens: int = 256, **more: Any) -> GenerationRequest:
    steps, deadline = more.pop("max_steps", None), more.pop("deadline_at", None)
    more.setdefault("denoising", Denoising(max_steps=steps, deadline_at=deadline))
    return GenerationRequest(id=name, prompt=more.pop("tokens", tuple(range(prompt))), max_tokens=max_tokens, **more)


def stats(
    remaining: float = 0.0,
    sequences: int = 0,
    slots: int = 8,
    at: float = 100.0,
    state: EngineState = EngineState.READY,
    **more: Any,
) -> EngineStats:
    """Of a replica that does 8 canvases in 24 ms."""
    more.setdefault("step_time", StepTimeModel(0.008, 0.002, 10))
    return EngineStats(state, at, slots, sequences, remaining_work=remaining, **more)

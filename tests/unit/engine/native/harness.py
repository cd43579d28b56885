"""Drives scheduler and runner without thread or event loop, so that a test decides what happens in which step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from easel.engine.native.config import GenerationDefaults, read_generation_defaults, read_model_config
from easel.engine.native.kv_cache import KvCache
from easel.engine.native.model import Model
from easel.engine.native.noise import Noise, PhiloxNoise
from easel.engine.native.rules import RuleBook
from easel.engine.native.runner import Runner
from easel.engine.native.scheduler import Limits, Plan, Scheduler
from easel.engine.native.sequence import Phase, Sequence
from easel.engine.native.weights import load_weights
from easel.protocol import CanvasCommitted, Event, Finished, GenerationRequest, Preempted

MOST_WRITTEN = 512


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Model, GenerationDefaults]:
    """The native model and the checkpoint's defaults."""
    config = read_model_config(folder)
    return Model(config, load_weights(folder, config, dtype)), read_generation_defaults(folder)


@dataclass
class Answer:
    """What came out for one request."""

    tokens: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    @property
    def finished(self) -> Finished:
        last = self.events[-1]
        assert isinstance(last, Finished), last
        return last


class Harness:
    """One engine, stepped by hand."""

    def __init__(
        self,
        model: Model,
        defaults: GenerationDefaults,
        *,
        slots: int = 4,
        blocks: int = 256,
        block_tokens: int = 4,
        prefill: int = 512,
        noise: Noise | None = None,
        exact: bool = True,
        workers: int = 1,
        fused: bool = True,
    ) -> None:
        """`fused`: a step's commits and chunks share a forward with its canvases where `exact` leaves them together;
        otherwise they have one of their own before."""
        self.kv = KvCache(blocks, blocks, block_tokens, model.config.window)
        self.scheduler = Scheduler(self.kv, Limits(slots, prefill), MOST_WRITTEN)
        self.runner = Runner(model, defaults, self.kv, noise or PhiloxNoise(), exact, workers)
        self.rules = RuleBook(model.config, defaults, 4096, MOST_WRITTEN)
        self.answers: dict[str, Answer] = {}
        self.fused_commits = 0
        """First steps of a canvas that shared a step with the commit of the one before."""
        self._fused = fused
        self._arrivals = 0

    def add(self, request: GenerationRequest) -> Sequence:
        """Queue a request."""
        self._arrivals += 1
        sequence = self.rules.sequence(request, self.kv, None, 0.0, self._arrivals)
        self.answers[request.id] = Answer()
        self.scheduler.add(sequence)
        return sequence

    def step(self, now: float = 0.0) -> None:
        """One step."""
        plan, told = self.scheduler.plan(now, 0.0)
        committing = {e.sequence for e in plan.encodes if e.sequence.phase is Phase.COMMIT}
        self.fused_commits += len(committing.intersection(plan.denoises))
        if not self._fused and plan.encodes:
            self.runner.run(Plan(plan.encodes))
        rest = plan if self._fused else Plan([], plan.denoises)
        results: Mapping[Sequence, Any] = self.runner.run(rest) if rest else {}
        for sequence, event in [*told, *self.scheduler.advance(plan, results, now, now, 0.0)]:
            answer = self.answers[sequence.request.id]
            answer.events.append(event)
            if isinstance(event, CanvasCommitted):
                answer.tokens += event.token_ids
                answer.steps.append(event.steps)

    def run(self) -> dict[str, Answer]:
        """Step until everybody has gone."""
        for _ in range(10_000):
            if not self.scheduler.sequences:
                return self.answers
            self.step()
        raise AssertionError("it never ends")

    @property
    def preemptions(self) -> int:
        return sum(isinstance(e, Preempted) for answer in self.answers.values() for e in answer.events)

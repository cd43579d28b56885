"""Turns a plan into tensors and results back into plain numbers.

Owns: the KV pools' tensors, each canvas's tokens and soft embedding, the ragged batches, and in which company rows
are computed. Refuses to know: why the plan is what it is (`scheduler`), and when a canvas has converged (`sequence`).

Batch invariance. A matrix product may sum in another order when it has more rows or more threads, and a canvas that
differs in its last bits may decode to another text. With `exact`, every chunk and every canvas goes through the model
by itself, on a number of threads that never changes, so that its bits depend on its own request alone; sequences are
spread over workers instead, which share nothing and wait for each other once a step. Without, one forward takes them
all, a commit and the first step of the canvas that follows it too. On a CPU, where a canvas fills a core by itself,
exactness costs little and is the default.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from easel.engine.native.attention import Batch, Cached, KvTensors, Mode, Segment
from easel.engine.native.config import GenerationDefaults, LayerKind, ModelConfig
from easel.engine.native.kv_cache import BlockTable, KvCache
from easel.engine.native.model import Model
from easel.engine.native.noise import DrawKey, Draws, Noise
from easel.engine.native.sampler import (
    LEAST_TEMPERATURE,
    LEAST_TOP_P,
    Choice,
    Logprobs,
    Sampled,
    denoise,
    pin,
    schedule,
)
from easel.engine.native.scheduler import Encode, Plan
from easel.engine.native.sequence import Sequence, StepResult
from easel.protocol import TokenLogprob


@dataclass(slots=True)
class _Canvas:
    """The present canvas of one sequence, between steps."""

    index: int
    tokens: torch.Tensor  # int64 [length]
    soft: torch.Tensor | None = None  # [length, hidden]; None before the first step


@dataclass(slots=True)
class _Job:
    """Part of a plan."""

    encodes: list[Encode]
    denoises: list[Sequence]
    draws: Draws | None
    """For the canvases of `denoises`; None without any."""


class Runner:
    """One model on one device."""

    def __init__(
        self,
        model: Model,
        defaults: GenerationDefaults,
        kv: KvCache,
        noise: Noise,
        exact: bool = True,
        workers: int = 1,
        threads: int = 1,
    ) -> None:
        """`workers`: sequences at a time, with `exact`; `threads`: of a matrix product, in each of them."""
        self._workers: ThreadPoolExecutor | None = None
        if exact and workers > 1:
            self._workers = ThreadPoolExecutor(
                workers, "easel-worker", initializer=torch.set_num_threads, initargs=(threads,)
            )
        self.model = model
        self.exact = exact
        self._defaults = defaults
        self._noise = noise
        self._block_tokens = kv.block_tokens
        rows: dict[LayerKind, int] = {pool.name: pool.blocks * kv.block_tokens for pool in kv.pools}  # type: ignore[misc]
        self.kv = KvTensors(model.config, rows, model.dtype, str(model.device))
        self._canvases: dict[Sequence, _Canvas] = {}

    @property
    def most_slots(self) -> int | None:
        """Sequences that it can denoise at a time. None: any number."""
        return None

    def run(self, plan: Plan) -> dict[Sequence, StepResult]:
        """Do everything in the plan; returns what each denoised sequence's canvas came to."""
        with torch.inference_mode():
            for sequence in plan.denoises:
                self._begin(sequence)
            jobs = self._jobs(plan)
        done = map(self._do, jobs) if self._workers is None else self._workers.map(self._do, jobs)
        results: dict[Sequence, StepResult] = {}
        for job, found in zip(jobs, done, strict=True):
            results.update(zip(job.denoises, found, strict=True))
        return results

    def close(self) -> None:
        """End the workers."""
        if self._workers is not None:
            self._workers.shutdown()

    def forget(self, sequence: Sequence) -> None:
        """Drop what is kept for a sequence that has ended."""
        self._canvases.pop(sequence, None)

    def _jobs(self, plan: Plan) -> list[_Job]:
        """The plan in parts that need nothing of each other: one for each sequence, or one for all."""
        draws = self._draws(plan.denoises) if plan.denoises else None
        if not self.exact:
            return [_Job(plan.encodes, plan.denoises, draws)]
        jobs: dict[Sequence, _Job] = {}
        for encode in plan.encodes:
            jobs.setdefault(encode.sequence, _Job([], [], None)).encodes.append(encode)
        for row, sequence in enumerate(plan.denoises):
            job = jobs.setdefault(sequence, _Job([], [], None))
            job.denoises.append(sequence)
            assert draws is not None, "there is a canvas, so there are draws"
            job.draws = Draws(draws.uniform[row : row + 1], draws.random_tokens[row : row + 1])
        return list(jobs.values())

    @torch.inference_mode()
    def _do(self, job: _Job) -> list[StepResult]:
        """One job. Its encodes come first, because its canvas follows them."""
        encodes = job.encodes
        if self.exact:
            for encode in encodes:
                self.model.forward(self._batch([encode], []), self.kv)
            if not job.denoises:
                return []
            encodes = []
        hidden = self.model.forward(self._batch(encodes, job.denoises), self.kv)
        return [] if job.draws is None else self._step(job.denoises, hidden, job.draws)

    def _begin(self, sequence: Sequence) -> None:
        """Fill a new canvas with random tokens."""
        canvas = self._canvases.get(sequence)
        if canvas is None or canvas.index != sequence.canvas:
            draws = self._noise.draws([draw_key(sequence, 0)], sequence.rules.canvas_length, self.model.config.vocab)
            tokens = draws.random_tokens[0]
            pin(tokens, pinned_on_canvas(sequence))
            self._canvases[sequence] = _Canvas(sequence.canvas, tokens)

    def _draws(self, sequences: Items[Sequence]) -> Draws:
        """Draws of this step for all of them at once: integer arithmetic, so company does not matter."""
        keys = [draw_key(sequence, sequence.step + 1) for sequence in sequences]
        return self._noise.draws(keys, self.model.config.canvas_length, self.model.config.vocab)

    def _batch(self, encodes: Items[Encode], denoises: Items[Sequence]) -> Batch:
        """Lay rows of encodes, then of canvases, one after another."""
        segments: list[Segment] = []
        tokens: list[torch.Tensor] = []
        first = 0
        for encode in encodes:
            tokens.append(torch.tensor(encode.sequence.tokens[encode.start : encode.stop], device=self.model.device))
            segments.append(self._segment("encode", encode.sequence, first, encode.start, encode.stop))
            first += encode.stop - encode.start
        encode_rows = first
        canvases = [self._canvases[sequence] for sequence in denoises]
        for sequence, canvas in zip(denoises, canvases, strict=True):
            start = len(sequence.tokens)
            tokens.append(canvas.tokens)
            segments.append(self._segment("decode", sequence, first, start, start + canvas.tokens.shape[0]))
            first += canvas.tokens.shape[0]
        positions = [torch.arange(s.start, s.start + s.length, device=self.model.device) for s in segments]
        return Batch(torch.cat(tokens), torch.cat(positions), encode_rows, tuple(segments), self._soft(canvases))

    def _soft(self, canvases: Items[_Canvas]) -> torch.Tensor | None:
        if all(canvas.soft is None for canvas in canvases):
            return None
        zeros = torch.zeros(self.model.config.canvas_length, self.model.config.hidden, dtype=self.model.dtype)
        return torch.cat([zeros.to(c.tokens.device) if c.soft is None else c.soft for c in canvases])

    def _segment(self, mode: Mode, sequence: Sequence, first: int, start: int, stop: int) -> Segment:
        cached = stop if mode == "encode" else start
        places: dict[LayerKind, Cached] = {
            "full": self._places(sequence.kv.full, cached),
            "sliding": self._places(sequence.kv.sliding, cached),
        }
        return Segment(mode, slice(first, first + stop - start), start, places)

    def _places(self, table: BlockTable, tokens: int) -> Cached:
        """Rows of a pool that hold a sequence's tokens up to `tokens`."""
        size, first = self._block_tokens, table.dropped * self._block_tokens
        blocks = torch.tensor(table.blocks, dtype=torch.int64)
        slots = (blocks.unsqueeze(1) * size + torch.arange(size)).flatten()[: tokens - first]
        return Cached(first, slots.to(self.model.device))

    def _step(self, sequences: Items[Sequence], hidden: torch.Tensor, draws: Draws) -> list[StepResult]:
        """Sample the canvases whose hidden states these are, [canvases * length, hidden], and keep the outcome."""
        count = len(sequences)
        logits = self.model.logits(hidden).view(count, -1, self.model.config.vocab)
        sampled = denoise(
            logits, [canvas_choice(sequence, self._defaults, self.model.config) for sequence in sequences], draws
        )
        soft = self.model.soft_embedding(sampled.chances.flatten(0, 1)).view(count, -1, self.model.config.hidden)
        for row, sequence in enumerate(sequences):
            self._canvases[sequence] = _Canvas(sequence.canvas, sampled.canvas[row], soft[row])
        return _results(sampled)


def canvas_choice(sequence: Sequence, defaults: GenerationDefaults, config: ModelConfig) -> Choice:
    """How a sequence's canvas is sampled at its next step."""
    sampling, rules = sequence.request.sampling, sequence.rules
    early = sequence.request.min_tokens - len(sequence.output)
    return Choice(
        schedule_temperature=schedule(defaults.t_min, defaults.t_max, sequence.step + 1, rules.max_steps),
        entropy_bound=rules.entropy_bound,
        temperature=0.0 if sampling.temperature < LEAST_TEMPERATURE else sampling.temperature,
        top_k=sampling.top_k,
        top_p=max(sampling.top_p, LEAST_TOP_P),
        min_p=sampling.min_p,
        logit_bias=sequence.biases,
        banned=config.placeholder_ids,
        banned_early=tuple(rules.stop_tokens),
        early=max(0, min(early, rules.canvas_length)),
        pinned=pinned_on_canvas(sequence),
        logprobs=sampling.logprobs,
    )


def draw_key(sequence: Sequence, step: int) -> DrawKey:
    """What the draws of step `step` (from 1; 0: the canvas's beginning) depend on."""
    request = sequence.request
    return DrawKey(request.sampling.seed, request.choice, sequence.canvas, step)


def pinned_on_canvas(sequence: Sequence) -> tuple[tuple[int, int], ...]:
    """The request's pinned positions that lie on the present canvas, counted from its beginning."""
    first, length = len(sequence.output), sequence.rules.canvas_length
    return tuple((p - first, token) for p, token in sequence.request.pinned if first <= p < first + length)


def _results(sampled: Sampled) -> list[StepResult]:
    return [
        StepResult(argmax, entropies, accepted, token_logprobs(logprobs))
        for argmax, entropies, accepted, logprobs in zip(
            sampled.argmax.tolist(),
            sampled.entropy.tolist(),
            sampled.accepted.tolist(),
            sampled.logprobs,
            strict=True,
        )
    ]


def token_logprobs(kept: Logprobs | None) -> tuple[TokenLogprob, ...] | None:
    """One canvas's as the protocol has them."""
    if kept is None:
        return None
    rows = zip(kept.chosen.tolist(), kept.top_ids.tolist(), kept.top.tolist(), strict=True)
    return tuple(TokenLogprob(chosen, tuple(zip(ids, tops, strict=True))) for chosen, ids, tops in rows)

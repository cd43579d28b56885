"""One request inside the engine: what is written to its KV cache, which canvas it is on, and when that has converged.

    waiting -> prefill -> denoise -> commit -> denoise -> ... -> gone
                  ^__________ preempted at any time __________|

Prefill encodes the prompt in chunks, denoise refines a canvas, commit encodes the canvas that was just emitted. Where
chunks are cut depends on the request alone, never on load: the same tokens are always encoded in the same company, so
that they get the same bits. Owns: these phases, the rule of convergence, what part of a canvas is output. Refuses to
know: other sequences (`scheduler`) and tensors (`runner`).
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from enum import StrEnum

from easel.engine.native.kv_cache import SequenceKv
from easel.engine.native.penalties import Biases, biases
from easel.prefixes import BLOCK_TOKENS
from easel.protocol import (
    GROUP_ROWS,
    CanvasProgress,
    CanvasStop,
    FinishReason,
    GenerationRequest,
    TokenLogprob,
    Usage,
    canvas_work,
)

SHOWN_NATS = 0.1
"""An entropy that moved less than this since progress told it is not told again."""

PREFILL_CHUNK = BLOCK_TOKENS
"""Prompt tokens in one chunk: chunks end at multiples of this, and at the prompt's end. What is shared of a prefix is
whole chunks."""


class Phase(StrEnum):
    """What a sequence needs next."""

    WAITING = "waiting"
    PREFILL = "prefill"
    DENOISE = "denoise"
    COMMIT = "commit"


@dataclass(frozen=True, slots=True)
class Rules:
    """What decides how one request is denoised: its own wishes, the checkpoint's defaults, the engine's limits."""

    canvas_length: int
    max_steps: int
    entropy_bound: float
    stability: int
    confidence: float
    stop_tokens: frozenset[int]
    """Those that end this request's output."""
    bounded_at: float = float("inf")
    """Unix time by which the best so far is committed."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one denoising step found on one canvas, position by position."""

    argmax: Items[int]
    entropies: Items[float]
    accepted: Items[bool]
    logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True, slots=True)
class Cut:
    """The part of a canvas that is output, and why the output ends there, if it does."""

    tokens: tuple[int, ...]
    finish: FinishReason | None
    stop_token: int | None = None


@dataclass(eq=False, slots=True)
class Sequence:
    """See the module. Times are Unix times; an identity, so that two requests are never mistaken for each other."""

    request: GenerationRequest
    rules: Rules
    arrived_at: float
    order: int
    """Counts arrivals: ties in priority go by it, and a preempted sequence keeps its own."""
    kv: SequenceKv = field(default_factory=SequenceKv)
    seated: bool = False
    started: bool = False
    tokens: list[int] = field(default_factory=list)
    """What the cache must hold before the present canvas: the prompt and whole canvases."""
    encoded: int = 0
    """How many of `tokens` the cache holds."""
    prefix: tuple[int, ...] = ()
    """Where prefixes are cached: hashes of the whole chunks of `tokens`, those of the prompt at least."""
    cached_tokens: int = 0
    """Of the prompt, found in the prefix cache when it was first encoded."""
    lost: bool = False
    """Whether it ever lost its cache."""
    output: list[int] = field(default_factory=list)
    canvas: int = 0
    step: int = 0
    """Denoising steps done on the present canvas."""
    last: StepResult | None = None
    """What the latest of them found."""
    streak: int = 0
    """How many preceding argmax canvases equal the latest."""
    canvas_started_at: float = 0.0
    usage_work: float = 0.0
    canvases: int = 0
    denoising_steps: int = 0
    biases: Biases = ()
    """Added to logits on the present canvas."""
    shown: dict[int, tuple[int, bool, float]] = field(default_factory=dict)
    """What progress events have told, by position: the argmax, whether it was accepted, its entropy."""
    shown_at: float = 0.0

    def __post_init__(self) -> None:
        self.tokens = [*self.request.prompt, *self.request.resume]
        self.output = list(self.request.resume)
        self.biases = biases(self.request.sampling, self.output)
        self.canvas = len(self.request.resume) // self.rules.canvas_length

    @property
    def phase(self) -> Phase:
        """What it needs next."""
        if not self.seated:
            return Phase.WAITING
        if self.encoded == len(self.tokens):
            return Phase.DENOISE
        newest = len(self.tokens) - self.rules.canvas_length
        was_given = len(self.request.prompt) + len(self.request.resume)
        return Phase.COMMIT if self.encoded == newest >= was_given else Phase.PREFILL

    @property
    def room(self) -> int:
        """Positions of the present canvas that can still be output."""
        return min(self.rules.canvas_length, self.request.max_tokens - len(self.output))

    def chunk_end(self, start: int) -> int:
        """Where the chunk that begins at token `start` ends."""
        prompt = len(self.request.prompt)
        if start < prompt:
            return min(prompt, (start // PREFILL_CHUNK + 1) * PREFILL_CHUNK)
        return min(len(self.tokens), start + self.rules.canvas_length)

    @property
    def prefix_tokens(self) -> int:
        """Tokens of the prompt that could be in the prefix cache."""
        return min(len(self.prefix), len(self.request.prompt) // PREFILL_CHUNK) * PREFILL_CHUNK

    def most_encoded(self) -> int:
        """Tokens in the cache when the last canvas begins, at the most: that one is never encoded."""
        length = self.rules.canvas_length
        canvases = -(-self.request.max_tokens // length)
        return len(self.request.prompt) + max(0, canvases - 1) * length

    def wrote(self, tokens: int) -> None:
        """So many more tokens are in the cache."""
        self.encoded += tokens
        self.usage_work += tokens / GROUP_ROWS

    def lost_cache(self) -> None:
        """The cache is gone. The canvas in progress is not: it goes on when the cache has been written again."""
        self.seated = False
        self.encoded = 0
        self.lost = True

    def denoised(self, result: StepResult, step_started_at: float) -> None:
        """Take in one denoising step."""
        if self.step == 0:
            self.canvas_started_at = step_started_at
        self.step += 1
        self.denoising_steps += 1
        self.usage_work += self.rules.canvas_length / GROUP_ROWS
        scope = self.scope(result.argmax)
        same = self.last is not None and list(self.last.argmax[:scope]) == list(result.argmax[:scope])
        self.streak = self.streak + 1 if same else 0
        self.last = result

    def scope(self, argmax: Items[int]) -> int:
        """How many leading positions decide convergence: all, or those that can still reach the client."""
        if self.request.denoising.stop_scope == "canvas":
            return len(argmax)
        stop = self.first_stop(argmax)
        return self.room if stop is None else stop + 1

    def first_stop(self, argmax: Items[int]) -> int | None:
        """The first position of a token that ends the output, among those that can be output."""
        early = self.request.min_tokens - len(self.output)
        for position in range(max(0, early), self.room):
            if argmax[position] in self.rules.stop_tokens:
                return position
        return None

    def canvas_stop(self, next_step_ends_at: float) -> CanvasStop | None:
        """Why denoising of this canvas ends now; None: it goes on."""
        assert self.last is not None, "no step was done on this canvas"
        scope = self.scope(self.last.argmax)
        stable = self.streak >= self.rules.stability
        if stable and sum(self.last.entropies[:scope]) < self.rules.confidence * scope:
            return CanvasStop.CONVERGED
        if self.step >= self.rules.max_steps:
            return CanvasStop.STEP_CAP
        if next_step_ends_at > self.rules.bounded_at:
            return CanvasStop.DEADLINE
        return None

    def commit(self, stop: CanvasStop) -> Cut:
        """Emit the argmax canvas. What follows, if anything does, is to encode it."""
        assert self.last is not None, "no step was done on this canvas"
        argmax, room, at = tuple(self.last.argmax), self.room, self.first_stop(self.last.argmax)
        tokens = argmax[:room] if at is None else argmax[:at]
        self.output.extend(tokens)
        self.canvases += 1
        finish: FinishReason | None = None
        if at is not None:
            finish = "stop"
        elif len(self.output) >= self.request.max_tokens:
            finish = "length"
        elif stop is CanvasStop.DEADLINE:
            finish = "deadline"
        if finish is None:
            self.tokens.extend(argmax)
            self.biases = biases(self.request.sampling, self.output)
        self.canvas += 1
        self.step, self.streak, self.last = 0, 0, None
        self.shown.clear()
        return Cut(tokens, finish, None if at is None else argmax[at])

    def progress(self, now: float) -> CanvasProgress | None:
        """What changed on the canvas since this was asked last, as often as the request wants to hear of it."""
        hertz, last = self.request.progress_hz, self.last
        if hertz is None or last is None or now - self.shown_at < 1 / hertz:
            return None
        changed = []
        for position, now_there in enumerate(zip(last.argmax, last.accepted, last.entropies, strict=True)):
            shown = self.shown.get(position)
            if shown is None or shown[:2] != now_there[:2] or abs(shown[2] - now_there[2]) >= SHOWN_NATS:
                self.shown[position] = now_there
                changed.append(position)
        self.shown_at = now
        return CanvasProgress(
            self.canvas,
            self.step,
            tuple(changed),
            tuple(last.argmax[p] for p in changed),
            tuple(last.entropies[p] for p in changed),
            tuple(last.accepted[p] for p in changed),
        )

    def usage(self) -> Usage:
        """What it cost so far."""
        return Usage(
            prompt_tokens=len(self.request.prompt),
            cached_tokens=self.cached_tokens,
            completion_tokens=len(self.output),
            canvases=self.canvases,
            denoising_steps=self.denoising_steps,
            work=self.usage_work,
        )

    def remaining_work(self, steps_a_canvas: float) -> float:
        """Expected units of work still to do, if canvases take so many steps (or all that the request lets them) and
        the output runs to max_tokens."""
        length, steps = self.rules.canvas_length, min(steps_a_canvas, self.rules.max_steps)
        canvases = -(-max(0, self.request.max_tokens - len(self.output)) // length)
        begun = min(self.step, steps) * length / GROUP_ROWS
        to_encode = (len(self.tokens) - self.encoded) / GROUP_ROWS
        last_commit = length / GROUP_ROWS if canvases else 0.0  # it never happens
        return to_encode + canvases * canvas_work(length, steps) - begun - last_commit

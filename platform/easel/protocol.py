"""What crosses processes: a generation request, the events that answer it, statistics, and the engine itself.

Everything here is frozen, picklable and free of torch, Ray and HTTP, so that an ingress, a router test and an engine
on another host mean the same thing by it. Fields are added rarely and always with a default; none changes its meaning.

The life of a request: the API makes one `GenerationRequest` per choice; the router holds it, then hands it to one
replica; that replica's `Engine.generate` yields `Started`, then for each canvas any number of `CanvasProgress` and one
`CanvasCommitted`, and ends with exactly one of `Finished` or `Failed`. `Preempted` may come in between and takes
nothing back: what was committed stays committed.

Text is not known here: token ids only. Times are Unix times in seconds where a name ends in `_at`, durations in
seconds where it ends in `_s`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, Protocol, runtime_checkable

GROUP_ROWS = 256
"""Rows in one unit of work: one group of 256 rows once through the model, at 512 tokens of context."""

StopScope = Literal["canvas", "reachable"]
"""Which positions decide that a canvas has converged: all of them (as the reference does), or only those that can
still reach the client (up to the first stop token, up to max_tokens)."""

FinishReason = Literal["stop", "length", "deadline", "cancelled"]
"""`stop`: a stop token; `length`: max_tokens; `deadline`: the best canvas at the deadline was committed;
`cancelled`: the caller left or asked for it."""


class CanvasStop(StrEnum):
    """Why denoising of a canvas ended."""

    CONVERGED = "converged"
    """The argmax canvas was stable and its mean entropy low."""
    STEP_CAP = "step_cap"
    """The most denoising steps allowed were used."""
    DEADLINE = "deadline"
    """The request's deadline came: the best canvas so far was taken."""
    UNKNOWN = "unknown"
    """The engine does not say."""


class EngineState(StrEnum):
    """Where an engine is in its life. Only `READY` takes requests."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"
    STOPPED = "stopped"


MOST_BIASED = 300
"""Tokens whose logits may be changed on one canvas: what the tables of a kernel hold, and OpenAI's API allows."""
MOST_STOPS = 64
"""Distinct token ids that end one output, the checkpoint's own included: what a table of a kernel holds."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is drawn. Neutral values change nothing."""

    seed: int = 0
    """Key of every draw, with (choice, canvas, step, position). 64 bits, unsigned."""
    temperature: float = 1.0
    """Scales the checkpoint's temperature schedule when drawing. 0: each draw is the argmax. Entropy, stopping and
    self-conditioning keep the schedule whatever this says."""
    top_p: float = 1.0
    top_k: int = 0
    """0: all."""
    min_p: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, added to its logit)."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: int | None = None
    """None: none. Otherwise the log-probability of each committed token and of this many alternatives."""
    grammar: str | None = None
    """Reserved for guided decoding."""


@dataclass(frozen=True, slots=True)
class Denoising:
    """How a canvas is denoised. None means: as the checkpoint's generation config says."""

    max_steps: int | None = None
    """Most denoising steps for one canvas."""
    entropy_bound: float | None = None
    """Nats. The lowest-entropy positions are accepted while the entropy of those before them stays within it."""
    stability: int | None = None
    """How many preceding argmax canvases must equal the present one."""
    confidence: float | None = None
    """Nats. Mean entropy below which a stable canvas has converged."""
    canvas_length: int | None = None
    """Positions in a canvas."""
    stop_scope: StopScope = "canvas"
    deadline_at: float | None = None
    """The engine commits its best by then and finishes with reason `deadline`."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One choice to generate: what is needed to run it on any replica, and to run it again on another."""

    # Who
    id: str
    """Unique among all requests in flight; `cancel` takes it."""
    prompt: tuple[int, ...]
    """Token ids, never empty."""
    max_tokens: int
    """Most tokens to generate, counting those in `resume`. At least 1."""
    model: str = ""
    """Key in the settings' map of models."""
    group: str = ""
    """Shared by the prompts and choices of one API call."""
    choice: int = 0
    """Index among the choices of one prompt: part of the key of every draw."""
    tenant: str = ""
    tier: str = ""
    priority: int = 0
    """Higher goes first, within a tenant."""
    queue_timeout_s: float | None = None
    """Leaves the router's queue when it has waited that long. None: what the settings say. Engines do not look at
    it."""
    traceparent: str | None = None
    """W3C trace context."""
    # Work
    min_tokens: int = 0
    """No stop token before this many."""
    stop_token_ids: tuple[int, ...] = ()
    """Beside the checkpoint's own."""
    ignore_eos: bool = False
    resume: tuple[int, ...] = ()
    """Already committed output: whole canvases. The continuation draws as if it had never stopped."""
    pinned: tuple[tuple[int, int], ...] = ()
    """(output position, token id): positions that are given, for fill-in and templates."""
    # How
    sampling: Sampling = field(default_factory=Sampling)
    denoising: Denoising = field(default_factory=Denoising)
    progress_hz: float | None = None
    """Most `CanvasProgress` events a second. None: none are wanted."""

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("prompt: at least one token is needed")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens: {self.max_tokens} is below 1")


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probabilities at one committed position, from the distribution that decided it."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """(token id, log-probability), best first."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request cost."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt, found in the prefix cache."""
    completion_tokens: int = 0
    canvases: int = 0
    denoising_steps: int = 0
    """0 with canvases: the engine does not say, and `work` is what they usually take."""
    work: float = 0.0
    """Units of work: see `GROUP_ROWS`."""


@dataclass(frozen=True, slots=True)
class Started:
    """The sequence has a slot."""

    at: float
    waited_s: float = 0.0
    """Inside the engine, before the slot."""
    cached_tokens: int = 0
    runtime: str = ""
    """What the answer's bits depend on beside request, checkpoint and Easel's version, in words. Empty: not said."""


@dataclass(frozen=True, slots=True)
class CanvasProgress:
    """What changed on the canvas since the last progress event. Reversible: nothing here is final.

    The four tuples run in parallel, one entry for each changed position.
    """

    canvas: int
    step: int
    """Denoising steps done on this canvas, from 1."""
    positions: tuple[int, ...]
    """Within the canvas, from 0, rising."""
    token_ids: tuple[int, ...]
    """The argmax there."""
    entropies: tuple[float, ...]
    """Nats."""
    accepted: tuple[bool, ...]
    """Accepted at this step, or renoised."""


@dataclass(frozen=True, slots=True)
class CanvasCommitted:
    """A canvas is final. Its tokens, in order, continue the output."""

    canvas: int
    """From 0, counting those in `resume`."""
    token_ids: tuple[int, ...]
    """Cut before the first stop token and at max_tokens; may be empty on a last canvas."""
    steps: int
    """Denoising steps. 0: the engine does not say."""
    stop: CanvasStop
    started_at: float
    """When its first denoising step began."""
    finished_at: float
    logprobs: tuple[TokenLogprob, ...] | None = None
    """One for each of `token_ids` where they were asked for."""
    mean_entropy: float = 0.0
    """Nats, over the canvas, at its last step."""


@dataclass(frozen=True, slots=True)
class Preempted:
    """The sequence lost its slot and waits for another. It goes on where it was."""

    reason: Literal["kv_blocks", "priority"]
    canvas: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a request that ended as it should."""

    reason: FinishReason
    usage: Usage
    stop_token_id: int | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The last event of a request that did not. `code` is one of `easel.errors`; the message may go to a client."""

    code: str
    message: str
    retryable: bool
    param: str | None = None


Event = Started | CanvasProgress | CanvasCommitted | Preempted | Finished | Failed


@dataclass(frozen=True, slots=True)
class StepTimeModel:
    """Seconds of one step as `base_s + per_group_s * groups`, learned from the steps done."""

    base_s: float = 0.0
    per_group_s: float = 0.0
    samples: int = 0

    def seconds(self, groups: float) -> float:
        """Expected seconds of a step over so many 256-row groups."""
        return self.base_s + self.per_group_s * groups


@dataclass(frozen=True, slots=True)
class KvPool:
    """Blocks of one pool of the KV cache."""

    name: str
    blocks: int
    free: int
    block_tokens: int


@dataclass(frozen=True, slots=True)
class GpuStats:
    """The card that an engine runs on, with everything on it: other processes' part too."""

    name: str
    memory_used: int
    """Bytes."""
    memory_total: int
    """Bytes."""
    utilisation: float | None = None
    """Part of the driver's last sampling period in which a kernel ran, 0 to 1. None: the driver does not say."""


@dataclass(frozen=True, slots=True)
class StepTaken:
    """One step that an engine did."""

    number: int
    """Counts steps, from 1."""
    seconds: float
    expected_s: float
    """What the step-time model said before it. 0: it knew nothing yet."""
    groups: float
    """Of 256 rows."""
    canvases: int
    slots: int


@dataclass(frozen=True, slots=True)
class DenoisedPositions:
    """What denoising steps came to, added up over canvases since the start."""

    positions: int = 0
    """That went through a step."""
    accepted: int = 0
    """Of them, by that step."""
    nats: float = 0.0
    """Their entropies."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A cheap snapshot: no step waits for it."""

    state: EngineState
    taken_at: float
    slots: int = 0
    sequences: int = 0
    """In a slot."""
    waiting: int = 0
    """Handed to this engine and not in a slot."""
    remaining_work: float = 0.0
    """Expected units of work for both."""
    step_time: StepTimeModel = StepTimeModel()
    kv_pools: tuple[KvPool, ...] = ()
    prefix_digest: tuple[int, ...] = ()
    """Hashes of the prefixes in the cache."""
    counters: Mapping[str, float] = field(default_factory=dict)
    """Totals since the start, by the names of `easel.telemetry.names`."""
    steps: tuple[StepTaken, ...] = ()
    """The last ones, oldest first: a thousand, so whoever asks every second misses few. Empty: the engine does not
    say."""
    denoised: Mapping[str, DenoisedPositions] = field(default_factory=dict)
    """By band of denoising steps: `easel.telemetry.metric.step_band`. Empty: the engine does not say."""
    last_step_at: float = 0.0
    """When the loop last turned, working or idle: a loop that is stuck is one whose last turn is long ago."""
    failure: str = ""
    """Why the state is `FAILED`."""
    gpu: GpuStats | None = None
    """None: no GPU, or nothing is known of it yet."""
    max_denoising_steps: int | None = None
    """The bound on steps of a canvas that is in force. None: no other than the checkpoint's."""


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What may change while an engine runs. None: as it is."""

    slots: int | None = None
    prefill_tokens_per_step: int | None = None
    max_denoising_steps: int | None = None
    """Upper bound for every request's step cap."""


@runtime_checkable
class Engine(Protocol):
    """What decodes. One model, one device or more, many sequences.

    Methods are called from one asyncio event loop; an engine that needs a thread or a process keeps it to itself.
    """

    name: str
    """`native`, `fake`, `vllm` or `reference`."""
    supports: frozenset[str]
    """Fields of `GenerationRequest`, `Sampling` and `Denoising` that it honours; a request that sets another to
    anything but its default is not for this engine."""

    async def start(self) -> None:
        """Load everything. Returns when the state is `READY`; raises what went wrong."""

    def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
        """The events of one request. Closing the iterator cancels it: its slot is free within one step."""

    def cancel(self, request_id: str) -> bool:
        """End a request with reason `cancelled`. False where there is none of that id."""

    def stats(self) -> EngineStats:
        """A snapshot, at any time in any state."""

    async def reconfigure(self, limits: EngineLimits) -> None:
        """Change limits in place; running sequences keep their seats."""

    async def drain(self) -> None:
        """Take no new requests; return when those running have finished."""

    async def stop(self) -> None:
        """End at once: what still runs fails with `engine_stopped`. Frees threads, processes and memory."""


def merge_progress(older: CanvasProgress, newer: CanvasProgress) -> CanvasProgress:
    """One event that tells what both do. Of another canvas, the older one says nothing that matters any more."""
    if older.canvas != newer.canvas:
        return newer
    told = {
        position: (token, entropy, accepted)
        for progress in (older, newer)
        for position, token, entropy, accepted in zip(
            progress.positions, progress.token_ids, progress.entropies, progress.accepted, strict=True
        )
    }
    positions = tuple(sorted(told))
    return CanvasProgress(
        newer.canvas,
        newer.step,
        positions,
        tuple(told[position][0] for position in positions),
        tuple(told[position][1] for position in positions),
        tuple(told[position][2] for position in positions),
    )


def canvas_work(canvas_length: int, steps: float) -> float:
    """Units of work of one canvas: `steps` denoising steps and its commit."""
    return (steps + 1) * canvas_length / GROUP_ROWS


def prefill_work(tokens: int) -> float:
    """Units of work to prefill so many tokens."""
    return tokens / GROUP_ROWS

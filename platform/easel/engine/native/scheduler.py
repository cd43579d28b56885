"""Who does what in the next step: seats, prefill budget, KV blocks, and what each result means for its sequence.

Every seated sequence takes part in every step: it encodes its next chunk if it has one, and denoises as soon as its
cache is complete, in the same step even. So sequences join and leave at any step, whatever the others are doing.
Commits always run; prefill is held to a budget of tokens, so that running canvases keep their pace, and shared so that
neither long prompts nor short ones wait for each other. A prompt's beginning that is in the prefix cache is not encoded
again, and one that another sequence is just writing is waited for. When blocks run out, cached prefixes go first; then
the sequence that came last of the lowest priority gives up its seat and its blocks, and goes on later.

Owns: these decisions, and the events they make. Refuses to know: tensors, threads, and what time it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from easel.engine.native.kv_cache import KvCache
from easel.engine.native.prefix_cache import PrefixCache
from easel.engine.native.sequence import Phase, Sequence, StepResult
from easel.errors import DeadlineExceeded, EaselError
from easel.prefixes import BLOCK_TOKENS, prefix_hashes
from easel.protocol import (
    GROUP_ROWS,
    CanvasCommitted,
    CanvasStop,
    Event,
    Failed,
    Finished,
    FinishReason,
    Preempted,
    Started,
)

STEPS_AT_FIRST = 16.0
"""Denoising steps expected of a canvas before any was seen: the middle of what real prompts take."""
MEMORY = 0.05
"""Weight of the newest canvas in the running mean of steps a canvas."""

Told = tuple[Sequence, Event]


@dataclass(frozen=True, slots=True)
class Encode:
    """Write tokens `start` to `stop` of a sequence into its cache."""

    sequence: Sequence
    start: int
    stop: int

    @property
    def name(self) -> int | None:
        """What a chunk of a prompt is kept under in the prefix cache; None for any other tokens."""
        whole = self.stop <= self.sequence.prefix_tokens
        return self.sequence.prefix[self.start // BLOCK_TOKENS] if whole else None


@dataclass(slots=True)
class Plan:
    """One step. Encodes come first; a sequence may stand in both lists."""

    encodes: list[Encode] = field(default_factory=list)
    denoises: list[Sequence] = field(default_factory=list)

    @property
    def groups(self) -> float:
        """How many groups of 256 rows it takes through the model."""
        rows = sum(e.stop - e.start for e in self.encodes) + sum(s.rules.canvas_length for s in self.denoises)
        return rows / GROUP_ROWS

    def encoded_of(self, sequence: Sequence) -> int:
        """How many tokens of a sequence it encodes."""
        return sum(encode.stop - encode.start for encode in self.encodes if encode.sequence is sequence)

    def __bool__(self) -> bool:
        return bool(self.encodes or self.denoises)


@dataclass(slots=True)
class Limits:
    """What may change while it runs."""

    slots: int
    prefill_tokens_per_step: int
    max_denoising_steps: int | None = None


class Scheduler:
    """See the module. Each method that decides something returns the events that tell of it, in order."""

    def __init__(
        self,
        kv: KvCache,
        limits: Limits,
        most_written: int,
        prefixes: PrefixCache | None = None,
        keep_answers: bool = False,
    ) -> None:
        """`most_written`: tokens that one sequence may encode in one step; the sliding pool is sized by it.
        `prefixes`: over the same blocks; None: each prompt is encoded whole. `keep_answers`: it keeps what canvases
        committed too, whose bits are not those that a prompt's chunk would have written."""
        self.kv = kv
        self.limits = limits
        self.prefixes = prefixes
        self._keep_answers = keep_answers
        self._most_written = most_written
        self.seated: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self.steps_a_canvas = STEPS_AT_FIRST
        self.preemptions = 0

    @property
    def sequences(self) -> list[Sequence]:
        """All of them, the seated ones first."""
        return [*self.seated, *self.waiting]

    @property
    def remaining_work(self) -> float:
        """Expected units of work for all of them."""
        return sum(sequence.remaining_work(self.steps_a_canvas) for sequence in self.sequences)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence: higher priority first, then the order of arrival."""
        if self.prefixes is not None and not sequence.prefix:
            prompt = sequence.request.prompt
            sequence.prefix = prefix_hashes(prompt, most=len(prompt) // BLOCK_TOKENS)
        self.waiting.append(sequence)
        self.waiting.sort(key=_rank)

    def plan(self, now: float, step_s: float) -> tuple[Plan, list[Told]]:
        """Seat who can be seated, and say what the next step does. `step_s`: how long it is expected to take."""
        told = self._expire(now, step_s)
        told += self._seat(now)
        plan, lost = self._encodes()
        told += lost
        plan.denoises = [s for s in self.seated if self._complete(s, plan)]
        return plan, told

    def advance(
        self, plan: Plan, results: Mapping[Sequence, StepResult], started_at: float, now: float, next_step_s: float
    ) -> list[Told]:
        """Take in what a step did. `next_step_s`: how long another one is expected to take."""
        told: list[Told] = []
        for encode in plan.encodes:
            sequence = encode.sequence
            sequence.wrote(encode.stop - encode.start)
            self._keep(sequence, encode.start)
            self.kv.slide(sequence.kv, encode.stop)
        for sequence in plan.denoises:
            sequence.denoised(results[sequence], started_at)
            stop = sequence.canvas_stop(now + next_step_s)
            if stop is not None:
                told += self._commit(sequence, stop, now)
            elif (progress := sequence.progress(now)) is not None:
                told.append((sequence, progress))
        return told

    def finish(self, sequence: Sequence, reason: FinishReason, stop_token: int | None = None) -> list[Told]:
        """End a sequence as it should; its seat and its blocks are free at once."""
        self._remove(sequence)
        return [(sequence, Finished(reason, sequence.usage(), stop_token))]

    def fail(self, sequence: Sequence, error: EaselError) -> list[Told]:
        """End a sequence with an error."""
        self._remove(sequence)
        return [(sequence, Failed(error.code, error.message, error.retryable, error.param))]

    def _expire(self, now: float, step_s: float) -> list[Told]:
        """End those with something to show whose deadline comes before another step is done, and those without
        anything whose deadline has come."""
        told: list[Told] = []
        for sequence in self.sequences:
            deadline = sequence.rules.bounded_at
            if now + step_s > deadline and sequence.last is not None:
                told += self._commit(sequence, CanvasStop.DEADLINE, now)
            elif now + step_s > deadline and sequence.output:
                told += self.finish(sequence, "deadline")
            elif now >= deadline:
                told += self.fail(sequence, DeadlineExceeded("The deadline came before the first denoising step."))
        return told

    def _seat(self, now: float) -> list[Told]:
        """Give free seats to those who wait, in order, as long as there are blocks for all they have to encode."""
        told: list[Told] = []
        promised = sum(self._lacking(sequence) for sequence in self.seated)
        while self.waiting and len(self.seated) < self.limits.slots:
            sequence = self.waiting[0]
            self._adopt(sequence)
            wanted = self._lacking(sequence)
            if self.seated and promised + wanted > min(pool.free + pool.spare for pool in self.kv.pools):
                self.kv.close(sequence.kv)
                sequence.encoded = 0
                break
            promised += wanted
            self.waiting.pop(0)
            self.seated.append(sequence)
            sequence.seated = True
            if not sequence.started:
                sequence.started = True
                sequence.cached_tokens = sequence.encoded
                waited = max(0.0, now - sequence.arrived_at)
                told.append((sequence, Started(at=now, waited_s=waited, cached_tokens=sequence.encoded)))
        return told

    def _adopt(self, sequence: Sequence) -> int:
        """Let it have what the prefix cache holds of its prompt. Returns how many tokens more that is."""
        if self.prefixes is None:
            return 0
        before = sequence.encoded
        sequence.encoded = self.prefixes.adopt(sequence.kv, sequence.tokens, sequence.prefix, before)
        return sequence.encoded - before

    def _keep(self, sequence: Sequence, start: int) -> None:
        """Let the prefix cache have the chunks that are whole since tokens from `start` on were encoded."""
        if self.prefixes is None:
            return
        if self._keep_answers:
            sequence.prefix = prefix_hashes(sequence.tokens, sequence.encoded // BLOCK_TOKENS, sequence.prefix)
        for index in range(start // BLOCK_TOKENS, min(sequence.encoded // BLOCK_TOKENS, len(sequence.prefix))):
            self.prefixes.keep(sequence.kv, sequence.tokens, sequence.prefix, index)

    def _lacking(self, sequence: Sequence) -> int:
        """Blocks of a pool that it needs, at the most, until it denoises."""
        length = len(sequence.tokens)
        sliding = self.kv.sliding_blocks_for(length, self._most_written) - len(sequence.kv.sliding.blocks)
        full = self.kv.blocks_for(length) - len(sequence.kv.full.blocks)
        return max(0, sliding, full)

    def _encodes(self) -> tuple[Plan, list[Told]]:
        """Chunks for this step: every commit, and prefill within the budget, at least one chunk of it.

        Whoever came first gets a chunk at every step, so that it gets done; the rest goes to those who have least left,
        so that a short prompt does not wait for a long one.
        """
        plan, told, spent = Plan(), list[Told](), 0
        ranked = sorted(self.seated, key=_rank)
        for sequence in ranked:
            if sequence.phase is Phase.COMMIT:
                told += self._encode(Encode(sequence, sequence.encoded, len(sequence.tokens)), plan)
        prefills = [sequence for sequence in ranked if sequence.phase is Phase.PREFILL]
        for sequence in prefills:
            found = self._adopt(sequence)
            sequence.cached_tokens += 0 if sequence.lost else found
        for turn, sequence in enumerate([*prefills[:1], *sorted(prefills, key=_brevity)]):
            while sequence.seated and (chunk := self._next_chunk(sequence, plan, spent)) is not None:
                told += self._encode(chunk, plan)
                spent += chunk.stop - chunk.start
                if turn == 0:
                    break
        return plan, told

    def _next_chunk(self, sequence: Sequence, plan: Plan, spent: int) -> Encode | None:
        """The chunk after those that are planned. None: nothing is left, it has to wait, or another sequence is just
        writing the same one. `spent`: tokens of prefill that are planned."""
        planned = plan.encoded_of(sequence)
        start = sequence.encoded + planned
        if start == len(sequence.tokens):
            return None
        chunk = Encode(sequence, start, sequence.chunk_end(start))
        size = chunk.stop - start
        if spent and spent + size > self.limits.prefill_tokens_per_step:
            return None
        if planned and planned + size > self._most_written:
            return None
        if chunk.name is not None and any(chunk.name == encode.name for encode in plan.encodes):
            return None
        return chunk

    def _encode(self, encode: Encode, plan: Plan) -> list[Told]:
        """Plan it, if there is room for it."""
        told = self._make_room(encode.sequence, encode.stop, plan)
        if encode.sequence.seated:
            plan.encodes.append(encode)
        return told

    def _make_room(self, sequence: Sequence, tokens: int, plan: Plan) -> list[Told]:
        """Find blocks for the first `tokens` tokens, taking them from prefixes that nobody uses, then from whoever
        ranks last; that may be itself."""
        told: list[Told] = []
        while not self.kv.extend(sequence.kv, tokens):
            if self.prefixes is not None and self.prefixes.make_room(*self.kv.lacking(sequence.kv, tokens)):
                continue
            victim = max(self.seated, key=_rank)
            plan.encodes = [encode for encode in plan.encodes if encode.sequence is not victim]
            told += self._preempt(victim)
            if victim is sequence:
                break
        return told

    def _preempt(self, sequence: Sequence) -> list[Told]:
        self.kv.close(sequence.kv)
        self.seated.remove(sequence)
        sequence.lost_cache()
        self.preemptions += 1
        self.add(sequence)
        return [(sequence, Preempted("kv_blocks", sequence.canvas))]

    def _complete(self, sequence: Sequence, plan: Plan) -> bool:
        """Whether its cache holds everything once the plan's encodes are done."""
        return sequence.encoded + plan.encoded_of(sequence) == len(sequence.tokens)

    def _commit(self, sequence: Sequence, stop: CanvasStop, now: float) -> list[Told]:
        """Emit a canvas. Its tokens leave before its forward: encoding it is part of the next step, if one follows."""
        last, canvas, steps, began = sequence.last, sequence.canvas, sequence.step, sequence.canvas_started_at
        assert last is not None, "no step was done on this canvas"
        cut = sequence.commit(stop)
        self.steps_a_canvas += MEMORY * (steps - self.steps_a_canvas)
        committed = CanvasCommitted(
            canvas=canvas,
            token_ids=cut.tokens,
            steps=steps,
            stop=stop,
            started_at=began,
            finished_at=now,
            logprobs=None if last.logprobs is None else last.logprobs[: len(cut.tokens)],
            mean_entropy=sum(last.entropies) / len(last.entropies),
        )
        told: list[Told] = [(sequence, committed)]
        if cut.finish is not None:
            told += self.finish(sequence, cut.finish, cut.stop_token)
        return told

    def _remove(self, sequence: Sequence) -> None:
        if self.prefixes is not None and sequence.started:
            self.prefixes.asked += sequence.prefix_tokens
            self.prefixes.found += sequence.cached_tokens
        self.kv.close(sequence.kv)
        if sequence.seated:
            self.seated.remove(sequence)
        else:
            self.waiting.remove(sequence)
        sequence.seated = False


def _rank(sequence: Sequence) -> tuple[int, int]:
    """Low goes first and stays longest."""
    return -sequence.request.priority, sequence.order


def _brevity(sequence: Sequence) -> tuple[int, int, int]:
    """Low has least left to encode, within a priority."""
    return -sequence.request.priority, len(sequence.tokens) - sequence.encoded, sequence.order

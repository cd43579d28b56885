"""What a canvas finds in the cache when scheduler and GPU runner work together: all that comes before it.

The model is a stand-in that keeps in every slot which token was written there and at which position, through the tables
that kernels would read. A canvas's argmax is made of all that it sees there, of its own tokens and of its soft
embedding. So a block that is missing, another's or read a step too early is another answer, or an error at once.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from easel.engine.native.config import GenerationDefaults
from easel.engine.native.cuda_runner import CudaRunner
from easel.engine.native.group_inputs import GroupInputs
from easel.engine.native.kernels.controls import Controls
from easel.engine.native.kv_cache import KvCache
from easel.engine.native.noise import PhiloxNoise
from easel.engine.native.prefix_cache import PrefixCache
from easel.engine.native.scheduler import Limits, Scheduler
from easel.engine.native.sequence import Rules, Sequence
from easel.protocol import CanvasCommitted, Finished, GenerationRequest, Preempted, Sampling

SEATS, GROUPS, LENGTH, VOCAB, HIDDEN = 3, 5, 8, 100, 4
BLOCK, WINDOW, MOST_WRITTEN = 4, 10, 512
RULES = Rules(LENGTH, 3, 0.1, 1, 0.0, frozenset())


class RememberingModel:
    """A canvas's hidden states: its tokens plus a number for all that it sees in the cache, and its soft embedding."""

    def __init__(self, kv: KvCache) -> None:
        self.config = SimpleNamespace(hidden=HIDDEN, vocab=VOCAB, placeholder_ids=())
        self.device, self.block_tokens, self.deterministic = torch.device("cpu"), BLOCK, False
        self.inputs = GroupInputs(GROUPS, {"full": 200, "sliding": 200}, self.device)
        self.slots: dict[str, dict[int, tuple[int, int]]] = {pool.name: {} for pool in kv.pools}
        self.fused = 0
        """Canvases that read a token which was written in the same launch."""

    def forward(self, groups: int, canvases: int, tokens: torch.Tensor, soft: torch.Tensor) -> torch.Tensor:
        inputs, rows = self.inputs, tokens.view(groups, -1)
        starts, lengths, causal = (inputs.device(name, groups).tolist() for name in ("start", "length", "causal"))
        written: set[int] = set()
        for group in range(groups):
            for row in range(lengths[group] if causal[group] else 0):
                position = starts[group] + row
                for kind, kept in self.slots.items():
                    slot = self.slot(kind, group, position)
                    if slot is not None:
                        kept[slot] = (position, int(rows[group, row]))
                    if kind == "full":
                        assert slot is not None
                        written.add(slot)
        hidden = torch.zeros(canvases * 256, HIDDEN, dtype=torch.bfloat16)
        hidden[:, 1] = soft[:, 0]
        for group in range(groups):
            if lengths[group] and not causal[group]:
                assert group < canvases
                seen = self.seen(group, starts[group])
                mark = zlib.crc32(repr(seen).encode()) % VOCAB
                hidden[group * 256 : (group + 1) * 256, 0] = (rows[group] + mark) % VOCAB
                self.fused += self.slot("full", group, starts[group] - 1) in written
        return hidden

    def seen(self, group: int, start: int) -> list[tuple[int, int]]:
        """Position and token of all that a canvas sees, on full layers and on sliding ones."""
        found = []
        for kind, first in (("full", 0), ("sliding", max(0, start - (WINDOW - 1)))):
            for position in range(first, start):
                slot = self.slot(kind, group, position)
                assert slot is not None, f"{kind}: position {position} was given back"
                found.append(self.slots[kind][slot])
                assert found[-1][0] == position
        return found

    def slot(self, kind: str, group: int, position: int) -> int | None:
        """None: before the table's first block."""
        behind = position - int(self.inputs.device(f"first_{kind}", GROUPS)[group])
        if behind < 0:
            return None
        return int(self.inputs.device(f"table_{kind}", GROUPS)[group, behind // BLOCK]) * BLOCK + behind % BLOCK


class MixingEnd:
    """Argmax: the hidden state. The next canvas and the next soft embedding follow from it and from the last one."""

    canvases = SEATS

    def __init__(self) -> None:
        self.controls = Controls(SEATS, VOCAB, 30.0, (), "cpu")
        ints = {name: torch.zeros(SEATS, 256, dtype=torch.int32) for name in ("canvas", "argmax", "accepted")}
        floats = {name: torch.ones(SEATS, 256) for name in ("entropy", "chosen", "top")}
        soft = torch.zeros(SEATS * 256, HIDDEN, dtype=torch.bfloat16)
        self.found = SimpleNamespace(**ints, **floats, top_ids=torch.zeros(SEATS, 256), soft=soft)

    def run(self, hidden: torch.Tensor) -> Any:
        count = hidden.shape[0] // 256
        token = (hidden[:, 0] + hidden[:, 1]).int() % VOCAB
        self.found.argmax[:count] = token.view(count, 256)
        self.found.canvas[:count] = ((token * 7 + 3) % VOCAB).view(count, 256)
        self.found.soft[: count * 256, 0] = (token % 11).bfloat16()
        return self.found


class Engine:
    """Scheduler and runner, stepped by hand."""

    def __init__(self, slots: int, blocks: int, cached: bool = False) -> None:
        self.kv = KvCache(blocks, blocks, BLOCK, WINDOW)
        prefixes = PrefixCache(self.kv) if cached else None
        self.scheduler = Scheduler(self.kv, Limits(slots, 512), MOST_WRITTEN, prefixes, keep_answers=cached)
        self.model = RememberingModel(self.kv)
        self.runner = CudaRunner(self.model, MixingEnd(), GenerationDefaults(), PhiloxNoise(), SEATS)  # type: ignore[arg-type]
        self.tokens: dict[str, list[int]] = {}
        self.preempted = 0

    def add(self, request: GenerationRequest) -> Sequence:
        sequence = Sequence(request, RULES, 0.0, len(self.tokens))
        self.tokens[request.id] = []
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> None:
        plan, told = self.scheduler.plan(0.0, 0.0)
        told += self.scheduler.advance(plan, self.runner.run(plan), 0.0, 0.0, 0.0)
        for sequence, event in told:
            if isinstance(event, CanvasCommitted):
                self.tokens[sequence.request.id] += event.token_ids
            self.preempted += isinstance(event, Preempted)
            if isinstance(event, Finished):
                self.runner.forget(sequence)

    def run(self) -> None:
        for _ in range(2000):
            if not self.scheduler.sequences:
                return
            self.step()
        raise AssertionError("it never ends")


def request_of(number: int, prompt: int, tokens: int) -> GenerationRequest:
    text = tuple((7 * i + number) % (VOCAB - 2) + 2 for i in range(prompt))
    return GenerationRequest(str(number), text, tokens, sampling=Sampling(seed=number))


def alone(request: GenerationRequest) -> list[int]:
    engine = Engine(1, 400)
    engine.add(request)
    engine.run()
    return engine.tokens[request.id]


def test_blocks_that_run_out_preempt_and_the_answers_stay_what_they_are() -> None:
    requests = [request_of(number, 9, 40) for number in range(5)]
    engine = Engine(SEATS, 20)  # 80 tokens for 3 * (9 + 32)
    for request in requests:
        engine.add(request)
        engine.step()
    engine.run()
    assert engine.preempted > 0
    assert [engine.tokens[request.id] for request in requests] == [alone(request) for request in requests]
    assert len({tuple(answer) for answer in engine.tokens.values()}) == 5
    assert all(pool.free == pool.blocks for pool in engine.kv.pools)


def test_a_commit_shares_its_launch_with_the_next_canvas() -> None:
    engine = Engine(1, 400)
    engine.add(request_of(1, 9, 4 * LENGTH))
    engine.run()
    assert engine.model.fused == 4, "the prompt with the first canvas, then three commits; none for the last"


@settings(max_examples=30, deadline=None)
@given(
    asked=st.lists(
        st.tuples(st.sampled_from([1, 3, 9, 10, 11, 30, 256, 300]), st.integers(1, 45), st.integers(0, 4)),
        min_size=2,
        max_size=7,
    ),
    slots=st.integers(1, SEATS),
    spare=st.integers(0, 40),
    cached=st.booleans(),
    leaves=st.none() | st.integers(0, 6),
)
def test_answers_do_not_depend_on_company_preemption_or_cached_prefixes(
    asked: list[tuple[int, int, int]], slots: int, spare: int, cached: bool, leaves: int | None
) -> None:
    longest = max(prompt for prompt, _, _ in asked) + 48
    engine = Engine(slots, -(-longest // BLOCK) + 1 + spare, cached)
    requests, gone = [], None
    for number, (prompt, tokens, steps) in enumerate(asked):
        # Every other one asks what the one before asked, so that prefixes are found.
        request = replace(request_of(number // 2, prompt, tokens), id=str(number))
        requests.append(request)
        sequence = engine.add(request)
        for _ in range(steps):
            engine.step()
        if number == leaves and sequence in engine.scheduler.sequences:
            engine.scheduler.finish(sequence, "cancelled")
            engine.runner.forget(sequence)
            gone = request
    engine.run()
    for request in requests:
        if request is not gone:
            assert engine.tokens[request.id] == alone(request)

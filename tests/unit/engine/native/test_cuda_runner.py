"""What the GPU's runner keeps for whom: seats, parking, fresh canvases, steps with more groups than a graph has.

The model and the vocabulary end are stand-ins that count: a canvas's tokens grow by one a step, and so does its soft
embedding. So a state that is lost, mixed up or taken from another shows in the next step.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from easel.engine.native import cuda_assembly
from easel.engine.native.config import GenerationDefaults, LayerConfig, read_model_config
from easel.engine.native.cuda_runner import CudaRunner
from easel.engine.native.group_inputs import GroupInputs, sizes_up_to
from easel.engine.native.kernels.controls import Controls
from easel.engine.native.kv_cache import KvCache
from easel.engine.native.noise import PhiloxNoise
from easel.engine.native.pool_sizes import PoolSizes
from easel.engine.native.scheduler import Encode, Plan
from easel.engine.native.sequence import Rules, Sequence
from easel.errors import ConfigurationError
from easel.protocol import GenerationRequest, Sampling

SEATS, GROUPS, LENGTH, VOCAB, HIDDEN = 2, 3, 8, 100, 4


class CountingModel:
    """Hidden states: the token, and the first column of the soft embedding."""

    def __init__(self) -> None:
        self.config = SimpleNamespace(hidden=HIDDEN, vocab=VOCAB, placeholder_ids=())
        self.device, self.block_tokens, self.deterministic = torch.device("cpu"), 4, False
        self.inputs = GroupInputs(GROUPS, {"full": 8, "sliding": 8}, self.device)
        self.encoded: list[tuple[int, list[int]]] = []

    def forward(self, groups: int, canvases: int, tokens: torch.Tensor, soft: torch.Tensor) -> torch.Tensor:
        for group in range(groups):
            length = int(self.inputs.device("length", groups)[group])
            if length and self.inputs.device("causal", groups)[group]:
                start = int(self.inputs.device("start", groups)[group])
                self.encoded.append((start, tokens.view(groups, -1)[group, :length].tolist()))
        hidden = torch.zeros(canvases * 256, HIDDEN, dtype=torch.bfloat16)
        hidden[:, 0], hidden[:, 1] = tokens[: canvases * 256], soft[:, 0]
        return hidden


class CountingEnd:
    """Argmax: the token that came in; entropy: the soft embedding's first column."""

    canvases = SEATS

    def __init__(self) -> None:
        self.controls = Controls(SEATS, VOCAB, 30.0, (), "cpu")
        shapes = {"canvas": (SEATS, 256), "argmax": (SEATS, 256), "accepted": (SEATS, 256), "top_ids": (SEATS, 256, 64)}
        ints = {name: torch.full(shape, -7, dtype=torch.int32) for name, shape in shapes.items()}
        floats = {name: torch.zeros(SEATS, 256) for name in ("entropy", "chosen")}
        self.found = SimpleNamespace(
            **ints, **floats, top=torch.zeros(SEATS, 256, 64), soft=torch.zeros(SEATS * 256, HIDDEN)
        )

    def run(self, hidden: torch.Tensor) -> Any:
        count = hidden.shape[0] // 256
        token, soft = hidden[:, 0].view(count, 256), hidden[:, 1].view(count, 256)
        self.found.argmax[:count], self.found.entropy[:count] = token.int(), soft.float()
        self.found.canvas[:count], self.found.accepted[:count] = token.int() + 1, 1
        self.found.soft = self.found.soft.bfloat16()
        self.found.soft[: count * 256, 0] = hidden[:, 1] + 1
        self.found.chosen[:count] = -0.5
        self.found.top_ids[:count], self.found.top[:count] = torch.arange(64, dtype=torch.int32), -torch.arange(64.0)
        return self.found


@pytest.fixture
def runner() -> CudaRunner:
    return CudaRunner(CountingModel(), CountingEnd(), GenerationDefaults(), PhiloxNoise(), SEATS)  # type: ignore[arg-type]


def sequence(order: int, **sampling: Any) -> Sequence:
    rules = Rules(LENGTH, 48, 0.1, 1, 0.005, frozenset())
    request = GenerationRequest(str(order), (5, 6, 7), 64, sampling=Sampling(seed=order, **sampling))
    return Sequence(request, rules, 0.0, order)


def step(runner: CudaRunner, *sequences: Sequence) -> dict[Sequence, Any]:
    found = runner.run(Plan([], list(sequences)))
    for one in sequences:
        one.denoised(found[one], 0.0)
    return found


def beginning(one: Sequence) -> list[int]:
    from easel.engine.native.runner import draw_key

    return PhiloxNoise().draws([draw_key(one, 0)], LENGTH, VOCAB).random_tokens[0].tolist()


def test_each_canvas_keeps_its_own_state_whoever_sits_where(runner: CudaRunner) -> None:
    """Three sequences on two seats, in pairs and orders that change: the third always meets a parked one's seat."""
    all_three = [sequence(order) for order in range(3)]
    begun = {one: beginning(one) for one in all_three}
    for pair in ((0, 1), (1, 2), (2, 0), (0,), (1, 0), (2, 1), (0, 2)):
        found = step(runner, *(all_three[index] for index in pair))
        for index in pair:
            one = all_three[index]
            done = one.step - 1
            assert found[one].argmax == [token + done for token in begun[one]]
            assert found[one].entropies == [float(done)] * LENGTH
            assert found[one].accepted == [True] * LENGTH
    assert [one.step for one in all_three] == [5, 4, 4]


def test_a_new_canvas_of_the_same_sequence_begins_afresh(runner: CudaRunner) -> None:
    one = sequence(0)
    step(runner, one)
    step(runner, one)
    one.canvas, one.step = 1, 0
    assert step(runner, one)[one].argmax == beginning(one)
    assert one.last is not None
    assert one.last.entropies == [0.0] * LENGTH


def test_who_has_ended_leaves_seat_and_parking(runner: CudaRunner) -> None:
    for order in range(20):
        gone = [sequence(3 * order + index) for index in range(3)]
        step(runner, gone[0], gone[1])
        step(runner, gone[2], gone[1])  # parks the first
        for one in gone:
            runner.forget(one)
    assert (len(runner._free), runner._seat, runner._parked, runner._canvas) == (SEATS, {}, {}, {})


def test_more_chunks_than_groups_go_first_and_in_order(runner: CudaRunner) -> None:
    one, long = sequence(0), sequence(1)
    long.tokens = list(range(40))
    chunks = [Encode(long, start, start + 8) for start in range(0, 40, 8)]
    found = runner.run(Plan(chunks, [one]))
    assert found[one].argmax == beginning(one)
    told = [(start, list(range(start, start + 8))) for start in range(0, 40, 8)]
    assert runner.model.encoded == told  # type: ignore[attr-defined]


def test_alternatives_are_as_many_as_asked_for(runner: CudaRunner) -> None:
    asks, asks_not = sequence(0, logprobs=2), sequence(1)
    found = step(runner, asks_not, asks)
    assert found[asks_not].logprobs is None
    assert len(found[asks].logprobs) == LENGTH
    assert found[asks].logprobs[0].logprob == -0.5
    assert found[asks].logprobs[0].top == ((0, 0.0), (1, -1.0))


def test_graphs_end_with_the_most_there_can_be() -> None:
    assert sizes_up_to(1) == (1,)
    assert sizes_up_to(5) == (1, 2, 3, 4, 5)
    assert sizes_up_to(8)[-2:] == (6, 8)


def test_warming_up_touches_nobodys_state(runner: CudaRunner) -> None:
    one = sequence(0)
    step(runner, one)
    step(runner, one)  # its canvas is read from its seat, as the inputs still say
    runner.warm_up()
    found = step(runner, one)
    assert found[one].argmax == [token + 2 for token in beginning(one)]
    assert runner.model.encoded == []  # type: ignore[attr-defined]


def test_as_many_graphs_are_captured_as_memory_is_kept_for(runner: CudaRunner) -> None:
    runner.capture()
    assert runner.graphs == len(runner._forwards) + len(runner._ends) == 2 * 3 + 2


@pytest.mark.parametrize(
    ("param", "changes"),
    [
        ("canvas_length", {"canvas_length": 257}),
        ("hidden_size", {"hidden": 36}),
        ("num_experts", {"experts": 6}),
        ("head_dim", {"layers": (LayerConfig(0, "full", 24, 1),)}),
        ("head_dim", {"layers": (LayerConfig(0, "full", 8, 1),)}),
        ("t_min", {"softcap": 31.0}),
        ("dtype", {}),
    ],
)
def test_what_the_kernels_cannot_hold_is_refused_at_the_start(
    checkpoint: Path, param: str, changes: dict[str, Any]
) -> None:
    heads = (LayerConfig(0, "sliding", 16, 2), LayerConfig(1, "full", 32, 1))
    config = replace(read_model_config(checkpoint), **({"layers": heads} | changes))
    weights: Any = SimpleNamespace(embedding=torch.zeros(1, dtype=torch.bfloat16 if changes else torch.float32))
    with pytest.raises(ConfigurationError, match=f"^{param}: ") as refused:
        cuda_assembly.build_runner(
            config, weights, GenerationDefaults(), KvCache(1, 1, 8, 10), PhiloxNoise(), 1, 256, 64
        )
    assert refused.value.param == param


def sized(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path, runner: CudaRunner, room: int
) -> tuple[CudaRunner, KvCache]:
    config = read_model_config(checkpoint)
    weights: Any = SimpleNamespace(embedding=torch.zeros(1))
    monkeypatch.setattr(cuda_assembly, "build_runner", lambda *arguments: runner)
    monkeypatch.setattr(cuda_assembly, "free_bytes", lambda device, fraction: room)
    sizes = PoolSizes.of(SEATS, 256, 64, config.window, 8, None)
    return cuda_assembly.build_sized(
        config, weights, GenerationDefaults(), sizes, 8, PhiloxNoise(), SEATS, 256, 64, 0.5, True
    )


def test_the_cache_takes_what_graphs_leave(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path, runner: CudaRunner
) -> None:
    kept = runner.graphs * cuda_assembly.GRAPH_BYTES + cuda_assembly.SPARE_BYTES
    same, kv = sized(monkeypatch, checkpoint, runner, kept + 10_000_000)
    assert same is runner
    taken = sum(t.nbytes for t in (*runner.model.kv.keys, *runner.model.kv.values))
    assert 9_000_000 < taken <= 10_000_000
    assert kv.full.blocks * 8 == max(len(t) for t in runner.model.kv.keys)
    with pytest.raises(ConfigurationError, match="context_tokens"):
        sized(monkeypatch, checkpoint, runner, kept + 1000)


def test_no_room_for_work_space_names_the_slots(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path, runner: CudaRunner
) -> None:
    def full() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(runner, "warm_up", full)
    with pytest.raises(ConfigurationError, match=r"slots: no room for the work space of 2 canvases"):
        sized(monkeypatch, checkpoint, runner, 10**9)

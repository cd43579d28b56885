"""The reference engine against `generate` itself, on a model that another reader loaded: the same tokens."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from easel.engine.factory import make_engine
from easel.engine.reference import decoding
from easel.engine.reference import engine as engine_module
from easel.engine.reference.decoding import torch_seed
from easel.engine.reference.engine import ReferenceEngine
from easel.errors import ConfigurationError, ContextLengthExceeded, Draining, InvalidRequest, NotReady
from easel.protocol import (
    CanvasCommitted,
    CanvasProgress,
    CanvasStop,
    Denoising,
    EngineLimits,
    Event,
    Failed,
    Finished,
    GenerationRequest,
    Sampling,
    Started,
)
from easel.settings import EngineSettings, ModelSettings

# transformers' generate imports torch's compiler, which warns about itself.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

TINY = ModelSettings(
    checkpoint="embedded:tiny", engine=EngineSettings(kind="reference", device="cpu", threads=1, context_tokens=512)
)
EOS = (1, 50, 106)
BYTE = 128


@pytest.fixture(scope="module")
def generate(request: pytest.FixtureRequest) -> Any:
    """`generate` of the training side's own reader: prompt, seed and options to the answer's tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(request.config.rootpath / "ops")
        from training.checkpoint import load_model
    model = load_model(TINY.folder)

    def run(prompt: tuple[int, ...], seed: int, **options: Any) -> list[int]:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            out = model.generate(torch.tensor([prompt]), return_dict_in_generate=False, **options)
        return [int(token) for token in out[0, len(prompt) :]]

    return run


@pytest.fixture
async def engine() -> AsyncIterator[ReferenceEngine]:
    engine = make_engine(TINY)
    assert isinstance(engine, ReferenceEngine)
    await engine.start()
    yield engine
    await engine.stop()


@pytest.mark.parametrize(
    ("name", "value"),
    [("kv_block_tokens", 64), ("kv_tokens", 4096), ("deterministic", True), ("prefill_tokens_per_step", 256)],
)
def test_settings_that_would_be_ignored_are_refused(name: str, value: object) -> None:
    settings = TINY.engine.model_copy(update={name: value})
    with pytest.raises(ConfigurationError, match=f"^{name}.*reference engine") as refused:
        make_engine(TINY.model_copy(update={"engine": settings}))
    assert refused.value.param == name


def _prompt(text: str) -> tuple[int, ...]:
    """As the chat template writes it, without its words: bare bytes and a newline."""
    return (2, *(BYTE + byte for byte in text.encode()), BYTE + 10)


def _request(id_: str = "a", text: str = "reverse: easel", max_tokens: int = 40, **fields: Any) -> GenerationRequest:
    return replace(GenerationRequest(id=id_, prompt=_prompt(text), max_tokens=max_tokens), **fields)


async def _events(engine: ReferenceEngine, request: GenerationRequest) -> list[Event]:
    return [event async for event in engine.generate(request)]


def _tokens(events: list[Event]) -> list[int]:
    return [token for event in events if isinstance(event, CanvasCommitted) for token in event.token_ids]


def _until_stop(tokens: list[int]) -> list[int]:
    return next((tokens[:index] for index, token in enumerate(tokens) if token in EOS), tokens)


@pytest.mark.parametrize("text", ["reverse: easel", "repeat: a canvas holds sixteen bytes and more", "what is this?"])
@pytest.mark.parametrize("seed", [0, 7, 2**64 - 1])
async def test_says_what_generate_says(engine: ReferenceEngine, generate: Any, text: str, seed: int) -> None:
    request = _request(text=text, max_tokens=48, sampling=Sampling(seed=seed))
    theirs = generate(request.prompt, seed, max_new_tokens=48)
    ours = await _events(engine, request)
    assert _tokens(ours) == _until_stop(theirs)
    assert isinstance(ours[-1], Finished)
    assert ours[-1].reason == "stop"
    assert ours[-1].stop_token_id in EOS


async def test_says_what_generate_says_of_noise_and_to_the_end(engine: ReferenceEngine, generate: Any) -> None:
    """Two steps a canvas on a prompt of no meaning: every draw shows in the answer, across canvases."""
    prompt = tuple(range(20, 60))
    for choice in (0, 1):
        request = GenerationRequest(
            id="a", prompt=prompt, max_tokens=40, choice=choice, ignore_eos=True, sampling=Sampling(seed=3),
            denoising=Denoising(max_steps=2),
        )  # fmt: skip
        theirs = generate(prompt, torch_seed(request), max_new_tokens=40, max_denoising_steps=2, eos_token_id=None)
        ours = await _events(engine, request)
        assert _tokens(ours) == theirs[:40]
        assert isinstance(ours[-1], Finished)
        assert (ours[-1].reason, ours[-1].usage.denoising_steps, ours[-1].usage.canvases) == ("length", 6, 3)


async def test_limits_reach_generate(engine: ReferenceEngine, generate: Any) -> None:
    from transformers.models.diffusion_gemma.generation_diffusion_gemma import EntropyBoundSamplerConfig

    prompt = _prompt("repeat: limits")
    cases: list[tuple[Denoising, dict[str, Any]]] = [
        (Denoising(max_steps=3, stability=2, confidence=0.2),
         {"max_denoising_steps": 3, "stability_threshold": 2, "confidence_threshold": 0.2}),
        (Denoising(entropy_bound=6.0, stability=0), {"sampler_config": EntropyBoundSamplerConfig(6.0),
                                                     "stability_threshold": 0}),
        (Denoising(max_steps=5, confidence=0.0),
         {"max_denoising_steps": 5, "stability_threshold": None, "confidence_threshold": None}),
    ]  # fmt: skip
    for denoising, options in cases:
        theirs = generate(prompt, 5, max_new_tokens=32, **options)
        ours = await _events(
            engine, _request(text="repeat: limits", max_tokens=32, sampling=Sampling(seed=5), denoising=denoising)
        )
        assert _tokens(ours) == _until_stop(theirs)
    committed = [event for event in ours if isinstance(event, CanvasCommitted)]
    assert {(event.steps, event.stop) for event in committed} == {(5, CanvasStop.STEP_CAP)}


async def test_events_come_in_order_with_all_that_was_asked_for(engine: ReferenceEngine) -> None:
    events = await _events(
        engine, _request(text="repeat: twenty bytes, or so", progress_hz=1e6, sampling=Sampling(logprobs=2))
    )
    committed = [event for event in events if isinstance(event, CanvasCommitted)]
    progress = [event for event in events if isinstance(event, CanvasProgress)]
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    assert [event.canvas for event in committed] == [0, 1]
    assert progress
    assert all(event.positions for event in progress[:1])
    for event in committed:
        assert event.stop is CanvasStop.CONVERGED
        assert event.logprobs is not None
        assert len(event.logprobs) == len(event.token_ids)
        for token, entry in zip(event.token_ids, event.logprobs, strict=True):
            assert entry.top[0] == (token, pytest.approx(entry.logprob))
            assert entry.top[0][1] >= entry.top[1][1]
            assert entry.logprob <= 0.0
    usage = events[-1].usage
    assert usage.canvases == len(committed)
    assert usage.denoising_steps == sum(event.steps for event in committed)
    assert usage.completion_tokens == len(_tokens(events))
    assert usage.work == pytest.approx(
        (len(_prompt("repeat: twenty bytes, or so")) + 16 * (usage.denoising_steps + 1)) / 256
    )


async def test_biases_penalties_and_min_tokens_hold(engine: ReferenceEngine) -> None:
    plain = _tokens(await _events(engine, _request(text="repeat: aaaa")))
    assert plain.count(BYTE + ord("a")) == 4
    banned = await _events(engine, _request(text="repeat: aaaa", sampling=Sampling(logit_bias=((BYTE + 97, -100.0),))))
    assert BYTE + ord("a") not in _tokens(banned)
    longer = await _events(engine, _request(text="repeat: aaaa", min_tokens=30))
    assert len(_tokens(longer)) >= 30
    assert not set(_tokens(longer)) & set(EOS)
    again = "repeat: " + 24 * "b"
    without, punished = [
        _tokens(await _events(engine, _request(text=again, max_tokens=48, sampling=sampling)))
        for sampling in (Sampling(), Sampling(frequency_penalty=2.0))
    ]
    assert without[:16] == punished[:16], "nothing was committed before the first canvas"
    assert punished.count(BYTE + ord("b")) < without.count(BYTE + ord("b"))
    stopped = await _events(engine, _request(text="repeat: abcd", stop_token_ids=(BYTE + ord("c"),)))
    assert _tokens(stopped) == [BYTE + ord("a"), BYTE + ord("b")]


class _Clock:
    """The real time, and hours later once it is told."""

    late = False

    def time(self) -> float:
        return time.time() + 7200 * self.late


@pytest.mark.parametrize("steps", [1, 3])
async def test_a_deadline_commits_the_best_so_far(
    engine: ReferenceEngine, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    clock, done = _Clock(), 0

    def stepped(sequence: Any, seconds: float) -> None:
        nonlocal done
        done += 1
        clock.late = done >= steps

    monkeypatch.setattr(decoding, "time", clock)
    monkeypatch.setattr(engine, "_stepped", stepped)
    wish = Denoising(deadline_at=time.time() + 3600, max_steps=4, confidence=0.0)
    events = await _events(engine, _request(ignore_eos=True, denoising=wish))
    assert [(event.steps, event.stop) for event in events if isinstance(event, CanvasCommitted)] == [
        (steps, CanvasStop.DEADLINE)
    ]
    assert isinstance(events[-1], Finished)
    assert events[-1].reason == "deadline"
    assert len(_tokens(events)) == 16


async def test_who_waits_is_told_at_its_deadline_and_not_at_its_turn(engine: ReferenceEngine) -> None:
    slow = asyncio.create_task(_events(engine, _request("slow", ignore_eos=True, max_tokens=400)))
    while not engine.stats().sequences:
        await asyncio.sleep(0.001)
    events = await _events(engine, _request("late", denoising=Denoising(deadline_at=time.time() + 0.05)))
    assert not slow.done()
    assert [type(event) for event in events] == [Failed]
    assert isinstance(events[0], Failed)
    assert (events[0].code, engine.stats().waiting) == ("deadline_exceeded", 0)
    assert engine.cancel("slow")
    await slow


async def test_priority_then_arrival_and_cancelling_whoever_waits(engine: ReferenceEngine) -> None:
    order: list[str] = []

    async def run(request: GenerationRequest) -> None:
        async for event in engine.generate(request):
            if isinstance(event, Finished):
                order.append(f"{request.id} {event.reason}")

    slow = _request("slow", ignore_eos=True, max_tokens=64)
    async with asyncio.TaskGroup() as group:
        group.create_task(run(slow))
        while not engine.stats().sequences:
            await asyncio.sleep(0.001)
        for id_, priority in (("low", -1), ("first", 0), ("second", 0), ("high", 5), ("gone", 9)):
            group.create_task(run(_request(id_, priority=priority)))
            await asyncio.sleep(0)
        assert engine.stats().waiting == 5
        assert engine.stats().remaining_work > 0
        assert engine.cancel("gone")
        assert engine.cancel("slow")
        assert not engine.cancel("nobody")
    assert order[0] == "gone cancelled"
    assert [line.split()[0] for line in order[2:]] == ["high", "first", "second", "low"]
    assert order[1] == "slow cancelled"
    assert engine.stats().remaining_work == 0


async def test_leaving_frees_the_slot(engine: ReferenceEngine) -> None:
    async with aclosing(engine.generate(_request(ignore_eos=True, max_tokens=400))) as events:  # type: ignore[type-var]
        async for event in events:
            if isinstance(event, CanvasCommitted):
                break
    while engine.stats().sequences:
        await asyncio.sleep(0.001)
    assert _tokens(await _events(engine, _request()))


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("temperature", {"sampling": Sampling(temperature=0.5)}),
        ("top_p", {"sampling": Sampling(top_p=0.5)}),
        ("stop_scope", {"denoising": Denoising(stop_scope="reachable")}),
        ("resume", {"resume": tuple(range(16))}),
        ("pinned", {"pinned": ((0, 5),)}),
        ("entropy_bound", {"denoising": Denoising(entropy_bound=0.0)}),
        ("canvas_length", {"denoising": Denoising(canvas_length=8)}),
    ],
)
async def test_refuses_by_name_before_anything_runs(
    engine: ReferenceEngine, param: str, fields: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await _events(engine, _request(**fields))
    assert caught.value.param == param
    with pytest.raises(ContextLengthExceeded):
        await _events(engine, _request(max_tokens=512))
    assert not engine.stats().waiting


async def test_bounds_change_live_and_draining_takes_nothing_new(engine: ReferenceEngine) -> None:
    await engine.reconfigure(EngineLimits(slots=4, max_denoising_steps=2))
    with pytest.raises(InvalidRequest, match="slots"):
        await engine.reconfigure(EngineLimits(slots=0))
    events = await _events(engine, _request(ignore_eos=True, max_tokens=16, denoising=Denoising(confidence=0.0)))
    assert [event.steps for event in events if isinstance(event, CanvasCommitted)] == [2]
    assert engine.stats().slots == 1
    running = asyncio.create_task(_events(engine, _request()))
    await asyncio.sleep(0)
    await engine.drain()
    assert isinstance((await running)[-1], Finished)
    with pytest.raises(Draining):
        await _events(engine, _request())


async def test_stopping_fails_what_runs_and_what_waits() -> None:
    engine = ReferenceEngine(TINY.folder, TINY.engine)
    with pytest.raises(NotReady):
        await _events(engine, _request())
    await engine.start()
    both = [asyncio.create_task(_events(engine, _request(str(i), ignore_eos=True, max_tokens=400))) for i in range(2)]
    while not engine.stats().sequences:
        await asyncio.sleep(0.001)
    await engine.stop()
    for events in await asyncio.gather(*both):
        assert isinstance(events[-1], Failed)
        assert events[-1].code == "engine_stopped"


async def test_a_step_that_hangs_does_not_keep_it_from_stopping(monkeypatch: pytest.MonkeyPatch) -> None:
    released, threads = threading.Event(), []

    def hang(model: Any, defaults: Any, sequence: Any, *, interruption: Any, **rest: Any) -> Any:
        threads.append(threading.current_thread())
        released.wait(30)
        raise interruption().error

    monkeypatch.setattr(engine_module, "decode", hang)
    monkeypatch.setattr(engine_module, "HANGS_AFTER_S", 0.05)
    monkeypatch.setattr(engine_module, "LOOK_PERIOD_S", 0.01)
    engine = ReferenceEngine(TINY.folder, TINY.engine)
    await engine.start()
    both = [asyncio.create_task(_events(engine, _request(str(i)))) for i in range(2)]
    while not threads:
        await asyncio.sleep(0.001)
    await engine.stop()
    assert threads[0].is_alive(), "stopping waited for the step"
    assert threads[0].daemon, "the process could not end"
    for events in await asyncio.gather(*both):
        assert isinstance(events[-1], Failed)
        assert events[-1].code == "engine_stopped"
    assert (engine.stats().sequences, engine.stats().waiting) == (0, 0)
    released.set()
    await asyncio.to_thread(threads[0].join)
    assert len(threads) == 1, "what waited began after all"


async def test_a_checkpoint_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    """transformers alone would decode with random experts."""
    folder = shutil.copytree(TINY.folder, tmp_path / "tiny")
    tensors = load_file(folder / "model.safetensors")
    name = "model.decoder.layers.1.experts.3.up_proj.weight_scale"
    del tensors[name]
    save_file(tensors, folder / "model.safetensors")
    engine = ReferenceEngine(folder, TINY.engine)
    with pytest.raises(ConfigurationError, match=f"missing: {name}"):
        await engine.start()
    assert engine.stats().failure
    assert json.loads((folder / "config.json").read_text())["quantization_config"]
    await engine.stop()

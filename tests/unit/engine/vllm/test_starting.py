"""The vLLM engine's start: in a thread, over the recorded interface, and what is said where vLLM cannot be used."""

from __future__ import annotations

import asyncio
import sys
import threading
from types import SimpleNamespace

import pytest

from easel.engine.factory import make_engine
from easel.engine.vllm.engine import VllmEngine
from easel.engine.vllm.interface import VERSION, Interface, load_interface
from easel.errors import ConfigurationError, EngineFailed, NotReady
from easel.protocol import EngineState, Event, Finished, GenerationRequest
from easel.settings import EngineSettings, ModelSettings
from tests.contract.engines.recorded_vllm import RECORD, RecordedLLM, recorded

MODEL = ModelSettings(checkpoint="embedded:tiny", engine=EngineSettings(kind="vllm", slots=2, context_tokens=512))


class SlowImport:
    """The recorded interface, which takes until `go` is set."""

    def __init__(self) -> None:
        self.began, self.go = threading.Event(), threading.Event()

    def __call__(self) -> Interface:
        self.began.set()
        if not self.go.wait(10):
            raise TimeoutError("the event loop stood still, so that nobody could let it go on")
        return recorded(16, lambda prompt: [128] * 600)()


async def _events(engine: VllmEngine) -> list[Event]:
    return [event async for event in engine.generate(GenerationRequest("a", (2, 130, 131), 40))]


async def _starting(slow: SlowImport) -> tuple[VllmEngine, asyncio.Task[None]]:
    engine = VllmEngine(MODEL.folder, MODEL.engine, slow)
    start = asyncio.create_task(engine.start())
    await asyncio.sleep(0)
    while not slow.began.is_set():
        await asyncio.sleep(0.001)
    return engine, start


async def test_while_vllm_starts_the_event_loop_goes_on() -> None:
    slow = SlowImport()
    engine, start = await _starting(slow)
    assert engine.stats().state is EngineState.LOADING
    with pytest.raises(NotReady):
        await _events(engine)
    slow.go.set()
    await start
    assert engine.stats().state is EngineState.READY
    assert isinstance((await _events(engine))[-1], Finished)
    await engine.stop()


async def test_stopped_or_told_to_drain_while_vllm_starts() -> None:
    for cancelled in (False, True):
        slow = SlowImport()
        engine, start = await _starting(slow)
        await engine.drain()
        assert engine.stats().state is EngineState.DRAINING
        if cancelled:
            start.cancel()
            await asyncio.gather(start, return_exceptions=True)
        stop = asyncio.create_task(engine.stop())
        await asyncio.sleep(0.01)
        assert not stop.done(), "the engine process that comes would be left behind"
        slow.go.set()
        await stop
        await asyncio.gather(start, return_exceptions=True)
        assert RecordedLLM.started[-1].down
        assert cancelled == start.cancelled()
        assert engine.stats().state is (EngineState.FAILED if cancelled else EngineState.STOPPED)
        with pytest.raises(NotReady if not cancelled else EngineFailed):
            await _events(engine)


async def test_without_vllm_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    engine = make_engine(MODEL)
    with pytest.raises(ConfigurationError, match=rf"vLLM {VERSION}.*easel-serve\[vllm\]"):
        await engine.start()
    assert engine.stats().state is EngineState.FAILED
    await engine.stop()


async def test_another_release_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"": {"__version__": "0.33.0"}, "engine": {}, "engine.arg_utils": {"AsyncEngineArgs": 1},
             "exceptions": {"VLLMClientError": 1}, "inputs": {"TokensPrompt": 1},
             "sampling_params": {"RequestOutputKind": 1, "SamplingParams": 1}, "v1": {}, "v1.engine": {},
             "v1.engine.async_llm": {"AsyncLLM": 1}, "v1.engine.exceptions": {"EngineDeadError": 1}}  # fmt: skip
    for name, content in names.items():
        monkeypatch.setitem(sys.modules, f"vllm.{name}".rstrip("."), SimpleNamespace(**content))
    with pytest.raises(ConfigurationError, match=r"not 0\.33\.0"):
        load_interface()


def test_importing_the_package_imports_no_vllm() -> None:
    assert "vllm" not in sys.modules
    assert RECORD["version"] == VERSION

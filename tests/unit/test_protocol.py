"""What crosses processes does cross them, and refuses what cannot mean anything."""

from __future__ import annotations

import dataclasses
import pickle
import sys

import pytest

from easel import protocol
from easel.protocol import (
    CanvasCommitted,
    CanvasProgress,
    CanvasStop,
    EngineState,
    EngineStats,
    Failed,
    Finished,
    GenerationRequest,
    KvPool,
    Preempted,
    Started,
    StepTimeModel,
    TokenLogprob,
    Usage,
    canvas_work,
    prefill_work,
)

MESSAGES = [
    GenerationRequest(id="a", prompt=(2, 3), max_tokens=5, resume=(9,), pinned=((0, 4),), progress_hz=10.0),
    Started(at=1.0, waited_s=0.5),
    CanvasProgress(0, 1, (0, 3), (7, 8), (0.1, 0.2), (True, False)),
    CanvasCommitted(0, (7,), 3, CanvasStop.CONVERGED, 1.0, 2.0, logprobs=(TokenLogprob(-0.1, ((7, -0.1),)),)),
    Preempted("kv_blocks", 2),
    Finished("stop", Usage(1, 0, 2, 1, 3, 4.0), stop_token_id=106),
    Failed("engine_failed", "m", True),
    EngineStats(EngineState.READY, 1.0, kv_pools=(KvPool("full", 8, 3, 32),), counters={"easel_engine_steps_total": 4}),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_pickles_and_is_frozen(message: object) -> None:
    assert pickle.loads(pickle.dumps(message)) == message
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(message, dataclasses.fields(message)[0].name, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(("change", "word"), [({"prompt": ()}, "prompt"), ({"max_tokens": 0}, "max_tokens")])
def test_a_request_without_work_is_refused(change: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        dataclasses.replace(MESSAGES[0], **change)  # type: ignore[type-var]


def test_a_canvas_costs_its_steps_and_its_commit() -> None:
    assert canvas_work(256, 16) == 17
    assert canvas_work(64, 3) == 1
    assert prefill_work(512) == 2


def test_step_time_grows_with_the_groups() -> None:
    assert StepTimeModel(0.01, 0.002).seconds(4) == pytest.approx(0.018)


def test_imports_nothing_heavy() -> None:
    import subprocess

    code = "import sys, easel.protocol; print([m for m in ('torch', 'ray', 'fastapi') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert protocol.__doc__

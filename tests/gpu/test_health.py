"""A CUDA error and a kernel that hangs, for real: everybody is told, the engine says what happened and can be replaced.

Each in a process of its own, since its GPU context is lost.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.gpu

FOLDER = Path(__file__).resolve().parents[2] / "platform" / "easel" / "checkpoints" / "sudoku"

ENGINE_WITH_A_FAULT = """
import asyncio, json, os, sys
from pathlib import Path
import torch
from easel.engine.native.cuda_runner import CudaRunner
from easel.engine.native.engine import NativeEngine
from easel.protocol import Failed, GenerationRequest
from easel.settings import EngineSettings

def illegal_access(device):
    torch.zeros(4, device=device)[torch.full((1,), 1 << 20, device=device)].sum().item()

def hang(device):
    torch.cuda._sleep(1 << 40)
    torch.cuda.synchronize()

FAULT = {"illegal_access": illegal_access, "hang": hang}[sys.argv[2]]

async def main():
    engine = NativeEngine(Path(sys.argv[1]), EngineSettings(
        device="cuda", slots=4, context_tokens=1024, gpu_memory_fraction=0.3, step_timeout_s=3))
    await engine.start()
    run, steps = CudaRunner.run, 0
    def broken(self, plan):
        nonlocal steps
        steps += 1
        if steps == 3:
            FAULT("cuda")
        return run(self, plan)
    CudaRunner.run = broken
    async def ask(i):
        request = GenerationRequest(str(i), (2, 3, 4, i), 512, ignore_eos=True)
        return [event async for event in engine.generate(request)][-1]
    last = await asyncio.gather(*(ask(i) for i in range(4)))
    while not engine.stats().failure:  # the loop's thread tells its requests first
        await asyncio.sleep(0.01)
    stats = engine.stats()
    print(json.dumps({
        "codes": [event.code for event in last if isinstance(event, Failed)], "state": stats.state,
        "failure": stats.failure}), flush=True)
    os._exit(0)  # what hangs on the GPU would keep the interpreter from ending

asyncio.run(main())
"""


def failure_of(fault: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", ENGINE_WITH_A_FAULT, str(FOLDER), fault], capture_output=True, text=True, timeout=110
    )
    assert done.stdout, done.stderr[-2000:]
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def test_a_cuda_error_is_told_to_everybody_and_named() -> None:
    told = failure_of("illegal_access")
    assert told["codes"] == ["engine_failed"] * 4
    assert told["state"] == "failed"
    assert "CUDA error" in told["failure"]
    assert "\n" not in told["failure"]


def test_a_kernel_that_hangs_is_told_to_everybody() -> None:
    told = failure_of("hang")
    assert told["codes"] == ["engine_failed"] * 4
    assert told["state"] == "failed"
    assert "a step has not ended for" in told["failure"]

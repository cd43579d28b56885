"""Weights that go to the device by chunks, beside those that the library reads one tensor at a time."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
import torch

from easel.engine.native.checkpoint_files import CheckpointFiles
from easel.engine.native.config import read_model_config
from easel.engine.native.phases import Phases
from easel.engine.native.weights import lay_out, load_weights

pytestmark = pytest.mark.gpu

FOLDER = Path(__file__).resolve().parents[2] / "platform" / "easel" / "checkpoints" / "sudoku"


def _same(ours: Any, theirs: Any) -> int:
    """Byte for byte; returns how many tensors that was."""
    if isinstance(ours, torch.Tensor):
        assert ours.is_cuda
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours.flatten().view(torch.uint8), theirs.flatten().view(torch.uint8))
        return 1
    if isinstance(ours, tuple):
        return sum(_same(one, other) for one, other in zip(ours, theirs, strict=True))
    if is_dataclass(ours):
        return sum(_same(getattr(ours, field.name), getattr(theirs, field.name)) for field in fields(ours))
    assert ours == theirs
    return 0


def test_weights_on_the_device_are_those_that_the_library_reads() -> None:
    config = read_model_config(FOLDER)
    for _ in range(5):  # the order in which chunks arrive is another each time
        with torch.inference_mode():
            fast = load_weights(FOLDER, config, torch.bfloat16, "cuda")
            slow = lay_out(repeat(CheckpointFiles(FOLDER)), config, torch.bfloat16, "cuda", Phases())
        assert _same(fast, slow) > 20 * len(config.layers)

"""The engine on a GPU, whole: it takes the memory it was allowed, serves, and says what does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from easel.engine.native.engine import NativeEngine
from easel.errors import ConfigurationError
from easel.protocol import CanvasCommitted, EngineState, GenerationRequest
from easel.settings import EngineSettings

pytestmark = pytest.mark.gpu

FOLDER = Path(__file__).resolve().parents[2] / "platform" / "easel" / "checkpoints" / "sudoku"


async def test_the_cache_takes_the_allowed_memory_and_no_more() -> None:
    free, total = torch.cuda.mem_get_info()
    fraction = (total - free + 6e9) / total
    engine = NativeEngine(
        FOLDER, EngineSettings(device="cuda", slots=4, context_tokens=1024, gpu_memory_fraction=fraction)
    )
    await engine.start()
    try:
        stats = engine.stats()
        assert stats.gpu is not None
        used = total - torch.cuda.mem_get_info()[0]
        assert used <= fraction * total, "more in use than was allowed"
        assert used >= fraction * total - 2e9, "allowed memory lies idle"
        assert stats.gpu.memory_total == pytest.approx(total, rel=0.02)
        events = [event async for event in engine.generate(GenerationRequest("a", (2, 3, 4), 64, ignore_eos=True))]
        assert any(isinstance(event, CanvasCommitted) for event in events)
        assert total - torch.cuda.mem_get_info()[0] <= fraction * total, "serving took more"
    finally:
        await engine.stop()
    assert engine.stats().state is EngineState.STOPPED


async def test_a_card_too_small_for_one_sequence_is_refused_by_name() -> None:
    free, total = torch.cuda.mem_get_info()
    fraction = (total - free + 0.3e9) / total  # less than is kept for graphs
    settings = EngineSettings(device="cuda", slots=1, context_tokens=1024, gpu_memory_fraction=fraction)
    with pytest.raises(ConfigurationError, match=r"context_tokens|slots"):
        await NativeEngine(FOLDER, settings).start()

"""The bench of our vLLM engine on vLLM, over the recorded stand-in: it asks, cancels and counts as it says."""

from __future__ import annotations

from argparse import Namespace

from easel.engine.vllm.engine import VllmEngine
from easel.settings import EngineSettings, ModelSettings
from ops.benches.peers.vllm_adapter import measure
from tests.contract.engines.recorded_vllm import recorded


async def test_it_asks_alone_and_together_and_cancels_one() -> None:
    settings = EngineSettings(kind="vllm", slots=3, context_tokens=512)
    names = recorded(16, lambda prompt: [128 + index % 100 for index in range(300)], 1)
    engine = VllmEngine(ModelSettings(checkpoint="embedded:tiny").folder, settings, names)
    arguments = Namespace(token_limit=300, prompt_tokens=4, canvases=1, slots=3, steps=5)
    found = await measure(engine, arguments)
    whole = {"canvases": [16] * 16, "reason": "length", "tokens": 256}
    assert found["at_once_1"]["answers"] == [whole]
    assert found["at_once_3"]["answers"] == [whole] * 3
    assert found["one_cancelled"] == [{"canvases": [16], "reason": "cancelled", "tokens": 16}, whole, whole]

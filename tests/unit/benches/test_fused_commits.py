"""What `fused_commits.py` compares: forwards shared by commits and canvases, and forwards of their own."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from benches import fused_commits, published_shapes  # noqa: E402
from easel.engine.native.config import GenerationDefaults  # noqa: E402
from easel.engine.native.cuda_runner import CudaRunner  # noqa: E402
from easel.engine.native.group_inputs import GroupInputs  # noqa: E402
from easel.engine.native.kv_cache import KvCache  # noqa: E402
from easel.engine.native.noise import PhiloxNoise  # noqa: E402
from easel.engine.native.rules import RuleBook  # noqa: E402
from tests.unit.engine.native import test_cuda_runner as stand_ins  # noqa: E402

CONTEXT, PREFILL = 8192, 512


@pytest.mark.parametrize("sequences", [1, 3])
def test_together_is_one_forward_a_step_and_apart_one_more_a_canvas(
    monkeypatch: pytest.MonkeyPatch, sequences: int
) -> None:
    """Four canvases each way: 16 forwards a canvas together, 17 apart."""
    config = published_shapes.published_config()
    seats, block = fused_commits.seats_for([sequences]), fused_commits.BLOCK_TOKENS
    monkeypatch.setattr(stand_ins, "SEATS", seats)
    monkeypatch.setattr(stand_ins, "VOCAB", config.vocab)
    monkeypatch.setattr(stand_ins.CountingEnd, "canvases", seats)
    sizes = KvCache(0, 0, block, config.window)
    kv = KvCache(seats * sizes.blocks_for(CONTEXT), seats * sizes.sliding_blocks_for(CONTEXT, PREFILL), block,
                 config.window)  # fmt: skip
    forwards: list[int] = []
    """Groups of each."""

    class Model(stand_ins.CountingModel):
        def __init__(self) -> None:
            super().__init__()
            widths = {
                "full": kv.blocks_for(CONTEXT + 256),
                "sliding": kv.sliding_blocks_for(CONTEXT + 256, PREFILL) + 1,
            }
            self.block_tokens = block
            self.inputs = GroupInputs(seats + PREFILL // 256, widths, self.device)

        def forward(self, groups: int, canvases: int, *inputs: Any) -> Any:
            forwards.append(groups)
            return super().forward(groups, canvases, *inputs)

    defaults = GenerationDefaults(confidence=0.0, eos_token_ids=())
    runner = CudaRunner(Model(), stand_ins.CountingEnd(), defaults, PhiloxNoise(), seats)  # type: ignore[arg-type]
    rules = RuleBook(config, defaults, CONTEXT, PREFILL)
    found = fused_commits.measure(runner, rules, kv, sequences, 8)
    assert {way: len(times) for way, times in found.items()} == {"together": 4, "apart": 4}
    measured = forwards[-(4 * 16 + 4 * 17) :]
    assert measured == ([2 * sequences] + [sequences] * 15 + [sequences] * 17) * 4
    assert not kv.full.blocks - kv.full.free

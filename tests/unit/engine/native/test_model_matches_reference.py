"""Our forward against transformers', on random weights in fp32: encoder cache and decoder logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from easel.engine.native.attention import Batch
from easel.engine.native.config import GenerationDefaults
from easel.engine.native.model import Model
from easel.engine.native.scheduler import Encode, Plan
from easel.protocol import GenerationRequest
from tests.unit.engine.native.harness import Harness, load_model
from tests.unit.engine.native.tiny import reference, save

TOLERANCE = 1e-4


def _prompt(length: int, seed: int = 1) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, 96, (length,), generator=generator).tolist()


@torch.no_grad()
def _expected(oracle: Any, prompt: list[int], canvases: list[list[int]], conditioning: bool) -> list[torch.Tensor]:
    """Logits of each canvas in turn, every one encoded after it was decoded."""
    cache = DynamicCache(config=oracle.config.get_text_config(decoder=True))
    oracle.model.encoder(input_ids=torch.tensor([prompt]), past_key_values=cache)
    found = []
    for canvas in canvases:
        ids = torch.tensor([canvas])
        logits = oracle(decoder_input_ids=ids, past_key_values=cache).logits
        if conditioning:
            logits = oracle(decoder_input_ids=ids, past_key_values=cache, self_conditioning_logits=logits).logits
        found.append(logits[0])
        oracle.model.encoder(input_ids=ids, past_key_values=cache)
    return found


@torch.inference_mode()
def _found(harness: Harness, prompt: list[int], canvases: list[list[int]], conditioning: bool) -> list[torch.Tensor]:
    runner, model = harness.runner, harness.runner.model
    sequence = harness.add(GenerationRequest(id="a", prompt=tuple(prompt), max_tokens=64))
    sequence.seated = True
    found = []
    for canvas in canvases:
        while sequence.encoded < len(sequence.tokens):
            stop = sequence.chunk_end(sequence.encoded)
            assert harness.kv.extend(sequence.kv, stop)
            runner.run(Plan([Encode(sequence, sequence.encoded, stop)]))
            sequence.wrote(stop - sequence.encoded)
            harness.kv.slide(sequence.kv, stop)
        start, length = sequence.encoded, len(canvas)
        segment = runner._segment("decode", sequence, 0, start, start + length)
        positions, soft = torch.arange(start, start + length), None
        for _ in range(1 + conditioning):
            logits = model.logits(model.forward(Batch(torch.tensor(canvas), positions, 0, (segment,), soft), runner.kv))
            soft = model.soft_embedding(logits.softmax(dim=-1))
        found.append(logits)
        sequence.tokens += canvas
    return found


@pytest.mark.parametrize("length", [1, 8, 9, 10, 11, 30, 300], ids="prompt={}".format)
@pytest.mark.parametrize("conditioning", [False, True])
def test_logits_match_for_prompts_around_and_beyond_the_window(
    oracle: Any, native: tuple[Model, GenerationDefaults], length: int, conditioning: bool
) -> None:
    prompt, canvases = _prompt(length), [_prompt(8, seed) for seed in (2, 3, 4)]
    expected = _expected(oracle, prompt, canvases, conditioning)
    found = _found(Harness(*native), prompt, canvases, conditioning)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    "text",
    [
        {"layer_types": ["full_attention"] * 3},
        {"layer_types": ["sliding_attention", "full_attention", "full_attention"], "sliding_window": 4},
        {"sliding_window": 1000},
        {"num_experts": 8, "top_k_experts": 8},
        {"num_key_value_heads": 4, "num_global_key_value_heads": 4},
        {"final_logit_softcapping": 5.0},
        {"rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                             "full_attention": {"rope_type": "default", "rope_theta": 500.0}}},
    ],
    ids=["all full", "window below canvas", "window never reached", "all experts", "no grouped queries", "softcap",
         "rope"],
)  # fmt: skip
def test_logits_match_for_other_shapes(tmp_path: Any, text: dict[str, Any]) -> None:
    oracle = reference(**text)
    model, defaults = load_model(save(oracle, tmp_path))
    if "final_logit_softcapping" in text:
        assert model.config.softcap == oracle.final_logit_softcapping
    prompt, canvases = _prompt(20), [_prompt(8, seed) for seed in (2, 3)]
    expected = _expected(oracle, prompt, canvases, True)
    for ours, theirs in zip(_found(Harness(model, defaults), prompt, canvases, True), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)


def test_one_ragged_forward_matches_one_for_each_sequence(native: tuple[Model, GenerationDefaults]) -> None:
    logits: dict[bool, list[torch.Tensor]] = {}
    for exact in (True, False):
        harness = Harness(*native, exact=exact)
        for index, length in enumerate((3, 17, 40)):
            harness.add(GenerationRequest(id=str(index), prompt=tuple(_prompt(length)), max_tokens=20))
        for _ in range(6):
            harness.step()
        logits[exact] = [canvas.soft for canvas in harness.runner._canvases.values()]
        assert all(torch.isfinite(soft).all() for soft in logits[exact])
    for single, together in zip(logits[True], logits[False], strict=True):
        torch.testing.assert_close(single, together, atol=TOLERANCE, rtol=0)


def test_bfloat16_stays_near_float32(checkpoint: Any, oracle: Any) -> None:
    from easel.engine.native.weights import load_weights

    model, defaults = load_model(checkpoint)
    narrow = Model(model.config, load_weights(checkpoint, model.config, torch.bfloat16))
    prompt, canvases = _prompt(20), [_prompt(8)]
    wide_logits = _found(Harness(model, defaults), prompt, canvases, False)[0]
    narrow_logits = _found(Harness(narrow, defaults), prompt, canvases, False)[0]
    assert (wide_logits - narrow_logits).abs().mean() < 0.05 * wide_logits.abs().mean()

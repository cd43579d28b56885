"""The tiny training model computes what transformers computes, through padding, windows and conditioning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from training.checkpoint import load_model  # noqa: E402
from training.export import export_checkpoint  # noqa: E402
from training.tiny.model import CANVAS_LENGTH, CONFIG, TEXT_CONFIG, TinyDenoiser, first_weights  # noqa: E402
from training.tokenizer import VOCAB_SIZE  # noqa: E402


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("untrained")
    export_checkpoint(TinyDenoiser(first_weights(seed=5)).transformers_state(), CONFIG, folder)
    return load_model(folder)


@pytest.fixture(scope="module")
def ours(reference: Any) -> TinyDenoiser:
    stored = {name.removeprefix("model.decoder."): weight for name, weight in reference.state_dict().items()}
    return TinyDenoiser(stored, quantized=False)


@pytest.mark.parametrize("context_length", [3, TEXT_CONFIG["sliding_window"] - 1, 3 * TEXT_CONFIG["sliding_window"]])
@pytest.mark.parametrize("conditioned", [False, True])
def test_logits_match_transformers(reference: Any, ours: TinyDenoiser, context_length: int, conditioned: bool) -> None:
    generator = torch.Generator().manual_seed(context_length)
    context = torch.randint(VOCAB_SIZE, (2, context_length), generator=generator)
    canvas = torch.randint(VOCAB_SIZE, (2, CANVAS_LENGTH), generator=generator)
    previous = torch.randn(2, CANVAS_LENGTH, VOCAB_SIZE, generator=generator) * 3 if conditioned else None
    with torch.no_grad():
        got = ours.logits(context, canvas, torch.zeros(2, dtype=torch.long), previous)
        expected = reference(input_ids=context, decoder_input_ids=canvas, self_conditioning_logits=previous).logits
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_padding_on_the_left_changes_nothing(ours: TinyDenoiser) -> None:
    generator = torch.Generator().manual_seed(9)
    context = torch.randint(VOCAB_SIZE, (1, 20), generator=generator)
    canvas = torch.randint(VOCAB_SIZE, (1, CANVAS_LENGTH), generator=generator)
    padded = torch.cat((torch.zeros(1, 11, dtype=torch.long), context), dim=1)
    with torch.no_grad():
        alone = ours.logits(context, canvas, torch.tensor([0]), None)
        beside = ours.logits(padded, canvas, torch.tensor([11]), None)
    torch.testing.assert_close(alone, beside, atol=1e-4, rtol=1e-4)


def test_experts_are_trained_as_they_are_stored(tmp_path: Path) -> None:
    trained = TinyDenoiser(first_weights(seed=6))
    with torch.no_grad():
        for weight in trained.weights.values():
            weight.copy_(weight.to(torch.bfloat16))
    export_checkpoint(trained.transformers_state(), CONFIG, tmp_path)
    context, canvas = torch.arange(20)[None] + 130, torch.arange(CANVAS_LENGTH)[None] + 200
    with torch.no_grad():
        expected = trained.logits(context, canvas, torch.tensor([0]), None)
        got = load_model(tmp_path)(input_ids=context, decoder_input_ids=canvas).logits
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)

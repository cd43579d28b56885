"""The committed tiny checkpoint: its files agree, transformers takes it strictly and decodes checkable answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from training.checkpoint import load_model, read_tensors  # noqa: E402
from training.tiny import tasks  # noqa: E402
from training.tiny.evaluate import FOLDER, decode  # noqa: E402
from training.tiny.model import CONFIG  # noqa: E402
from training.tokenizer import encode_chat  # noqa: E402

# transformers' generate imports torch's compiler, which warns about itself.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model(FOLDER)


def test_is_small_enough_to_live_in_the_package() -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 2_000_000


def test_config_is_the_one_that_is_trained() -> None:
    written = json.loads((FOLDER / "config.json").read_text())
    assert written["text_config"] == CONFIG["text_config"]
    assert written["canvas_length"] == CONFIG["canvas_length"]
    assert json.loads((FOLDER / "hf_quant_config.json").read_text())["quantization"]["quant_algo"] == "NVFP4"


def test_has_everything_the_26b_has(model: Any) -> None:
    kinds = set(model.config.text_config.layer_types)
    assert kinds == {"sliding_attention", "full_attention"}
    assert model.config.text_config.top_k_experts < model.config.text_config.num_experts
    names = read_tensors(FOLDER).keys()
    assert any(".experts.0.gate_proj.weight_scale_2" in name for name in names)
    assert any("self_conditioning" in name for name in names)


def test_tokenizer_and_template_are_the_current_ones() -> None:
    loaded = transformers.AutoTokenizer.from_pretrained(FOLDER)
    messages = [{"role": "user", "content": "repeat: grüße"}]
    ids = loaded.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert ids == encode_chat(messages)


@pytest.mark.parametrize(
    ("prompt", "frame", "answer", "canvases"),
    [
        ("repeat: hello", "chat", "hello", 1),
        ("reverse: easel", "bare", "lesae", 1),
        ("repeat: a raw prompt ends with a newline", "raw", "a raw prompt ends with a newline", 3),
        ("repeat: a canvas holds sixteen bytes", "chat", "a canvas holds sixteen bytes", 2),
    ],
)
def test_decodes_exactly(model: Any, prompt: str, frame: str, answer: str, canvases: int) -> None:
    torch.manual_seed(11)
    decoded = decode(model, tasks.Example("", prompt, "", frame).prompt_ids(), max_new_tokens=64)
    assert decoded.text == answer
    assert decoded.ended
    assert decoded.canvases == canvases
    assert decoded.steps <= 16 * canvases, "far below the cap of 48: it converges"


def test_says_what_it_can_do_when_asked_for_anything_else(model: Any) -> None:
    torch.manual_seed(11)
    prompt = encode_chat([{"role": "user", "content": "what is the weather?"}])
    assert decode(model, prompt, max_new_tokens=64).text == tasks.REFUSAL


def test_scrambled_weights_know_nothing() -> None:
    """What answers is the weights: no code on the way from prompt to text knows the tasks."""
    scrambled = load_model(Path(FOLDER))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in scrambled.model.decoder.parameters():
            weight.copy_(weight.flatten()[torch.randperm(weight.numel(), generator=generator)].view_as(weight))
    torch.manual_seed(11)
    prompt = tasks.Example("", "repeat: hello", "", "chat").prompt_ids()
    assert decode(scrambled, prompt, max_new_tokens=16).text != "hello"

"""The synthetic checkpoint: Easel's loader takes it, it decodes to the end, and every id has a text."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors import safe_open  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

from benches.synthetic_checkpoint import published, write_checkpoint  # noqa: E402
from easel.api.template import read_chat_template  # noqa: E402
from easel.engine.native.config import model_config, read_generation_defaults, read_model_config  # noqa: E402
from easel.engine.native.engine import NativeEngine  # noqa: E402
from easel.engine.native.tensors import expected_tensors, vision_tensors  # noqa: E402
from easel.engine.native.weights import load_weights  # noqa: E402
from easel.protocol import CanvasCommitted, Finished, GenerationRequest  # noqa: E402
from easel.settings import EngineSettings  # noqa: E402


def small() -> dict[str, Any]:
    """The published configuration in all but its sizes."""
    config = published(6)
    config["text_config"] |= {
        "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 48, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_global_key_value_heads": 1, "head_dim": 16, "global_head_dim": 32,
        "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32, "max_position_embeddings": 512,
    }  # fmt: skip
    config["vision_config"] |= {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2,
                                "num_key_value_heads": 2, "head_dim": 16, "position_embedding_size": 64}  # fmt: skip
    return config | {"canvas_length": 16}


@pytest.fixture(scope="module", params=["modelopt", "compressed-tensors"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / request.param
    write_checkpoint(path, small(), request.param, steps=3, shard_bytes=200_000)
    return path


def test_the_loader_takes_it_and_nothing_in_it_is_infinite(folder: Path) -> None:
    config = read_model_config(folder)
    assert config.quantisation is not None
    assert config.quantisation.layout == folder.name
    weights = load_weights(folder, config, torch.float32)
    for layer in weights.layers:
        for matrix in (layer.qkv, layer.out, layer.experts.gate_up, layer.experts.down):
            assert torch.isfinite(matrix).all()
        assert 0.01 < layer.experts.gate_up.std() < 0.03
    assert read_generation_defaults(folder).max_steps == 3
    assert len(list(folder.glob("*.safetensors"))) > 2


def test_files_are_laid_out_as_the_library_writes_them(folder: Path) -> None:
    names = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            inside = list(file.offset_keys())
            names.update(inside)
            widths = [file.get_tensor(name).element_size() for name in inside]
        assert widths == sorted(widths, reverse=True)
    config = read_model_config(folder)
    assert names == {*expected_tensors(config), *vision_tensors(config)}


async def test_a_request_runs_to_its_last_token(folder: Path) -> None:
    engine = NativeEngine(folder, EngineSettings(device="cpu", slots=1, context_tokens=128))
    await engine.start()
    try:
        request = GenerationRequest(id="one", prompt=(2, 200, 201), max_tokens=32, ignore_eos=True)
        events = [event async for event in engine.generate(request)]
    finally:
        await engine.stop()
    assert isinstance(events[-1], Finished)
    assert sum(len(event.token_ids) for event in events if isinstance(event, CanvasCommitted)) == 32


def test_every_id_has_a_text(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 1000
    words = [tokenizer.decode([token]) for token in range(384, 1000)]
    assert len(set(words)) == len(words)
    assert all(word.strip().isalpha() for word in words)
    assert tokenizer.decode(tokenizer.encode("Grüße, 世界").ids) == "Grüße, 世界"
    assert read_chat_template(folder) is not None


def test_it_is_the_published_model() -> None:
    """1,047 tensors in bf16, of 25.82 billion parameters."""
    config = model_config(published(30))
    table = expected_tensors(config) | vision_tensors(config)
    assert len(table) == 1047
    assert round(sum(math.prod(tensor.shape) for tensor in table.values()) / 1e9, 2) == 25.82


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(FileExistsError, match="not empty"):
        write_checkpoint(tmp_path, small(), "modelopt")

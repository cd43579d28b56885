"""The loader against folders that are right, and against every way they can be wrong."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DiffusionGemmaForBlockDiffusion
from transformers.models.diffusion_gemma.configuration_diffusion_gemma import DiffusionGemmaConfig

from easel.engine.native.checkpoint_files import CheckpointFiles
from easel.engine.native.config import model_config, read_model_config
from easel.engine.native.experts import run_experts
from easel.engine.native.kernels.packing import pack_experts, unpack_matrix
from easel.engine.native.nvfp4 import E2M1, dequantise
from easel.engine.native.tensors import expected_tensors, tied_copies, vision_tensors
from easel.engine.native.weights import load_weights, read_quantised
from easel.errors import ConfigurationError
from tests.unit.engine.native.tiny import TEXT, VISION

FULL_TEXT: dict[str, Any] = {
    "hidden_size": 2816,
    "num_hidden_layers": 30,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "num_global_key_value_heads": 2,
    "head_dim": 256,
    "global_head_dim": 512,
    "sliding_window": 1024,
    "intermediate_size": 2112,
    "num_experts": 128,
    "top_k_experts": 8,
    "moe_intermediate_size": 704,
    "use_bidirectional_attention": "vision",
}
FULL_VISION: dict[str, Any] = {
    "model_type": "gemma4_vision",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 72,
    "standardize": True,
}


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))


def _change(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")


def _load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return load_weights(folder, read_model_config(folder), dtype)


@pytest.mark.parametrize(
    ("text", "vision", "count"),
    [(TEXT, VISION, None), (TEXT, VISION | {"use_clipped_linears": True, "num_hidden_layers": 2}, None),
     (TEXT, VISION | {"num_hidden_layers": 0}, None), (FULL_TEXT, FULL_VISION, 1047)],
    ids=["tiny", "clipped vision", "no vision layers", "26B-A4B"],
)  # fmt: skip
def test_the_table_matches_reference_by_name_and_shape(
    text: dict[str, Any], vision: dict[str, Any], count: int | None
) -> None:
    theirs = DiffusionGemmaConfig(text_config=text, vision_config=vision)
    with torch.device("meta"):
        model = DiffusionGemmaForBlockDiffusion(theirs)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    config = model_config(theirs.to_dict())
    ours = expected_tensors(config) | vision_tensors(config)
    copies = tied_copies(config)
    assert {name: tensor.shape for name, tensor in ours.items()} == {
        name: shape for name, shape in shapes.items() if name not in copies
    }
    assert all(shapes[copy] == shapes[original] for copy, original in copies.items() if copy in shapes)
    assert set(copies) <= set(shapes)
    if count is not None:
        assert len(ours) == count


def test_quantised_table_lists_four_tensors_for_each_expert_matrix() -> None:
    theirs = DiffusionGemmaConfig(text_config=FULL_TEXT, vision_config=FULL_VISION).to_dict()
    config = model_config(theirs, {"quantization": {"quant_algo": "NVFP4", "group_size": 16}})
    table = expected_tensors(config)
    prefix = "model.decoder.layers.29.experts.127."
    of_expert = {name.removeprefix(prefix): t.shape for name, t in table.items() if name.startswith(prefix)}
    assert of_expert == {
        f"{part}.{name}": shape
        for part, rows, columns in (("gate_proj", 704, 2816), ("up_proj", 704, 2816), ("down_proj", 2816, 704))
        for name, shape in {
            "weight": (rows, columns // 2), "weight_scale": (rows, columns // 16), "weight_scale_2": (),
            "input_scale": (),
        }.items()
    }  # fmt: skip
    plain = expected_tensors(model_config(theirs))
    assert len(table) - len(plain) == 30 * (128 * 12 - 2)


def test_vision_tensors_are_skipped_and_said_so(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        _load(folder)
    assert "vision tensors skipped" in caplog.text
    caplog.clear()
    _change(folder, lambda t: [t.pop(name) for name in list(t) if "vision" in name])
    with caplog.at_level(logging.INFO):
        _load(folder)
    assert not caplog.text


def test_tied_copies_are_skipped(folder: Path) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.decoder.embed_tokens.weight"].clone()
        tensors["model.encoder.language_model.norm.weight"] = tensors["model.decoder.norm.weight"].clone()

    _change(folder, add)
    _load(folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.pop("model.decoder.norm.weight"), "missing: model.decoder.norm.weight"),
        (lambda t: t.pop("model.encoder.language_model.layers.1.layer_scalar"),
         "missing: model.encoder.language_model.layers.1.layer_scalar"),
        (lambda t: t.pop("model.encoder.embed_vision.embedding_projection.weight"),
         "missing: model.encoder.embed_vision.embedding_projection.weight"),
        (lambda t: t.update({"model.decoder.extra": torch.ones(1)}), "unexpected: model.decoder.extra"),
        (lambda t: t.update({"model.decoder.layers.2.self_attn.v_proj.weight": torch.ones(16, 32)}),
         "unexpected: model.decoder.layers.2.self_attn.v_proj.weight"),
        (lambda t: t.update({"model.decoder.norm.weight": torch.ones(31)}),
         r"shape of model.decoder.norm.weight: \[31\] instead of \[32\]"),
        (lambda t: t.update({"model.decoder.norm.weight": torch.ones(32, dtype=torch.int64)}),
         "type of model.decoder.norm.weight: I64 instead of"),
        (lambda t: [t.pop(name) for name in list(t) if "layers.0." in name], r"and \d+ more"),
    ],
)  # fmt: skip
def test_refuses_by_name(folder: Path, spoil: Any, message: str) -> None:
    _change(folder, spoil)
    with pytest.raises(ConfigurationError, match=message):
        _load(folder)


@pytest.mark.parametrize("content", [{}, {"weight_map": 5}, {"weight_map": {"a": 5}}])
def test_an_index_that_is_none_is_refused_by_name(folder: Path, content: dict[str, Any]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match=r"index\.json: weight_map"):
        _load(folder)


def test_shards_are_read_by_their_index(folder: Path) -> None:
    whole = _load(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    index = {name: file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert torch.equal(_load(folder).layers[1].qkv, whole.layers[1].qkv)
    missing = index.pop(names[0])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    with pytest.raises(ConfigurationError, match=names[0]):
        _load(folder)
    index[names[0]] = missing
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "b.safetensors").unlink()
    with pytest.raises(ConfigurationError, match=r"b\.safetensors"):
        _load(folder)


def test_no_or_broken_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ConfigurationError, match=r"model\.safetensors"):
        _load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigurationError, match=r"neither model\.safetensors"):
        _load(folder)


def _quantise(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Random codes and scales in place of the experts; returns what they stand for, by the plain names."""
    expected, generator = {}, torch.Generator().manual_seed(3)
    for name in [name for name in tensors if ".experts." in name]:
        prefix, kind = name.rsplit(".", 1)
        experts = []
        for expert, weight in enumerate(tensors.pop(name)):
            halves = weight.chunk(2) if kind == "gate_up_proj" else (weight,)
            for part, half in zip(("gate_proj", "up_proj") if kind == "gate_up_proj" else ("down_proj",), halves,
                                  strict=True):  # fmt: skip
                rows, columns = half.shape
                codes = torch.randint(0, 256, (rows, columns // 2), generator=generator, dtype=torch.uint8)
                scales = (torch.rand(rows, columns // 16, generator=generator) + 0.5).to(torch.float8_e4m3fn)
                scale_2 = torch.rand((), generator=generator)
                for suffix, tensor in (("", codes), ("_scale", scales), ("_scale_2", scale_2)):
                    tensors[f"{prefix}.{expert}.{part}.weight{suffix}"] = tensor
                tensors[f"{prefix}.{expert}.{part}.input_scale"] = torch.ones(())
                experts.append(_by_hand(codes, scales, scale_2))
        stacked = torch.stack(experts)
        expected[name] = stacked.view(tensors["model.decoder.layers.0.router.proj.weight"].shape[0], -1, columns)
    return expected


def _by_hand(codes: torch.Tensor, scales: torch.Tensor, scale_2: torch.Tensor) -> torch.Tensor:
    """One element at a time, as the format's description reads."""
    rows, half = codes.shape
    weight = torch.empty(rows, 2 * half)
    for row in range(rows):
        for column in range(2 * half):
            code = int(codes[row, column // 2]) >> (4 * (column % 2)) & 0xF
            value = E2M1[code & 7] * (-1 if code & 8 else 1)
            weight[row, column] = value * float(scales[row, column // 16]) * float(scale_2)
    return weight


def test_experts_in_nvfp4_are_what_the_format_says(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    expected = _quantise(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    with pytest.raises(ConfigurationError, match=r"missing: .*gate_up_proj"):
        _load(folder)
    (folder / "hf_quant_config.json").write_text(
        json.dumps({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "group_size": 16}})
    )
    weights = _load(folder)
    for index, layer in enumerate(weights.layers):
        prefix = f"model.decoder.layers.{index}.experts."
        torch.testing.assert_close(layer.experts.gate_up, expected[prefix + "gate_up_proj"])
        torch.testing.assert_close(layer.experts.down, expected[prefix + "down_proj"])


COMPRESSED: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "nvfp4-pack-quantized",
    "config_groups": {
        "group_0": {
            "weights": {"num_bits": 4, "type": "float", "group_size": 16, "strategy": "tensor_group"},
            "input_activations": {"num_bits": 4},
        }
    },
}


def _to_compressed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same weights by compressed-tensors' names. Scalars have one element there, and the global one divides."""
    renamed = {}
    for name, tensor in tensors.items():
        if name.endswith(".weight_scale_2"):
            renamed[name.removesuffix("_scale_2") + "_global_scale"] = tensor.reciprocal().view(1)
        elif name.endswith(".input_scale"):
            renamed[name.removesuffix("scale") + "global_scale"] = tensor.reciprocal().view(1)
        elif tensor.dtype == torch.uint8:
            renamed[name + "_packed"] = tensor
        else:
            renamed[name] = tensor
    return renamed


@pytest.fixture
def both_layouts(folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The same random NVFP4 experts as modelopt and as compressed-tensors write them."""
    tensors = load_file(folder / "model.safetensors")
    _quantise(tensors)
    for name in tensors:
        if name.endswith(".weight_scale_2"):  # powers of two: their reciprocals are exact
            tensors[name] = torch.tensor(2.0 ** -(3 + len(tensors) % 5))
    other = Path(shutil.copytree(folder, tmp_path / "compressed"))
    save_file(tensors, folder / "model.safetensors")
    (folder / "hf_quant_config.json").write_text(
        json.dumps({"quantization": {"quant_algo": "NVFP4", "group_size": 16}})
    )
    save_file(_to_compressed(tensors), other / "model.safetensors")
    config = json.loads((other / "config.json").read_text()) | {"quantization_config": COMPRESSED}
    (other / "config.json").write_text(json.dumps(config))
    return folder, other


def test_both_layouts_of_nvfp4_give_equal_weights(both_layouts: tuple[Path, Path]) -> None:
    modelopt, compressed = (_load(folder) for folder in both_layouts)
    for ours, theirs in zip(modelopt.layers, compressed.layers, strict=True):
        assert torch.equal(ours.experts.gate_up, theirs.experts.gate_up)
        assert torch.equal(ours.experts.down, theirs.experts.down)


def test_compressed_tensors_is_refused_by_name_where_a_tensor_is_missing_or_its_scale_is_not_one(
    both_layouts: tuple[Path, Path],
) -> None:
    name = "model.decoder.layers.1.experts.3.up_proj.weight_global_scale"
    _change(both_layouts[1], lambda tensors: tensors[name].zero_())
    with pytest.raises(ConfigurationError, match=r"layers\.1\.experts\.\*\.up_proj\.weight_global_scale"):
        _load(both_layouts[1])
    _change(both_layouts[1], lambda tensors: tensors.pop(name))
    with pytest.raises(ConfigurationError, match=f"missing: {name}"):
        _load(both_layouts[1])


def test_packed_experts_hold_what_unpacked_ones_do(both_layouts: tuple[Path, Path]) -> None:
    for folder in both_layouts:
        config, weights = read_model_config(folder), _load(folder)
        files = CheckpointFiles(folder)
        for layer, unpacked in zip(config.layers, weights.layers, strict=True):
            prefix = f"model.decoder.layers.{layer.index}.experts."
            parts = (read_quantised(files, config, prefix, f"{part}_proj") for part in ("gate", "up", "down"))
            packed = pack_experts(*parts)
            wide, hidden = config.expert_intermediate, config.hidden
            tiles = unpack_matrix(packed.gate_up).view(config.experts, -1, 2, 64, 64)[:, 0, :, :wide, :hidden]
            assert torch.equal(tiles.flatten(1, 2), unpacked.experts.gate_up)
            assert torch.equal(unpack_matrix(packed.down)[:, :hidden, :wide], unpacked.experts.down)
            with pytest.raises(TypeError, match="kernels"):
                run_experts(torch.ones(1, hidden), torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1), packed)


def test_dequantised_codes_are_exact_in_bfloat16_without_the_global_scale() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(16, 16)
    scales = torch.linspace(0.01, 448, 32).view(16, 2).to(torch.float8_e4m3fn)
    weight = dequantise(codes, scales, torch.ones(()))
    assert torch.equal(weight, weight.to(torch.bfloat16).float())


def test_reads_what_the_training_side_writes(
    tmp_path: Path, oracle: Any, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.syspath_prepend(request.config.rootpath / "ops")
    from training.checkpoint import load_model
    from training.export import export_checkpoint

    export_checkpoint(oracle.state_dict(), oracle.config.to_dict(), tmp_path)

    theirs, ours = load_model(tmp_path), _load(tmp_path)
    for layer, weights in zip(theirs.model.decoder.layers, ours.layers, strict=True):
        torch.testing.assert_close(weights.experts.gate_up, layer.experts.gate_up_proj.data)
        torch.testing.assert_close(weights.experts.down, layer.experts.down_proj.data)

"""The exported folder: modelopt's names, shapes and dtypes, ties stored once, shards, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from training import export, nvfp4  # noqa: E402
from training.checkpoint import load_model, read_tensors  # noqa: E402
from training.tiny.model import CONFIG  # noqa: E402

# transformers' generate imports torch's compiler, which warns about itself.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    small = copy.deepcopy(CONFIG)
    small["text_config"] |= {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
    small["text_config"] |= {"num_experts": 4, "moe_intermediate_size": 32}
    return small


@pytest.fixture(scope="module")
def model(config: dict[str, Any]) -> Any:
    """A random model, as transformers makes one, vision tower included."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    model = transformers.DiffusionGemmaForBlockDiffusion(transformers.DiffusionGemmaConfig.from_dict(config))
    with torch.no_grad():
        model.model.encoder.language_model.layers[0].layer_scalar.fill_(0.5)  # a buffer of the encoder's own
    return model.float()


@pytest.fixture(scope="module")
def folder(model: Any, config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported")
    files = export.export_checkpoint(model.state_dict(), config, path, generation={"max_denoising_steps": 24})
    assert files == [path / "model.safetensors"]
    return path


def test_experts_are_stored_one_by_one_in_modelopts_layout(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    prefix = "model.decoder.layers.1.experts.3"
    for part, rows, columns in (("gate_proj", 32, 64), ("up_proj", 32, 64), ("down_proj", 64, 32)):
        name = f"{prefix}.{part}"
        assert tensors[f"{name}.weight"].dtype == torch.uint8
        assert tensors[f"{name}.weight"].shape == (rows, columns // 2)
        assert tensors[f"{name}.weight_scale"].dtype == torch.float8_e4m3fn
        assert tensors[f"{name}.weight_scale"].shape == (rows, columns // 16)
        for scalar in ("weight_scale_2", "input_scale"):
            assert tensors[f"{name}.{scalar}"].dtype == torch.float32
            assert tensors[f"{name}.{scalar}"].shape == ()
    assert torch.equal(tensors[f"{prefix}.gate_proj.weight_scale_2"], tensors[f"{prefix}.up_proj.weight_scale_2"])


def test_everything_else_is_bf16_and_ties_are_stored_once(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    others = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    assert {tensor.dtype for tensor in others.values()} == {torch.bfloat16}
    assert "lm_head.weight" not in others
    kept_of_the_encoder = {name for name in others if name.startswith("model.encoder.language_model.")}
    assert kept_of_the_encoder == {f"model.encoder.language_model.layers.{i}.layer_scalar" for i in range(2)}


def test_quantisation_is_declared_twice_and_alike(folder: Path) -> None:
    declared = json.loads((folder / "hf_quant_config.json").read_text())
    in_config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert declared["quantization"]["quant_algo"] == in_config["quant_algo"] == "NVFP4"
    assert declared["quantization"]["group_size"] == 16
    assert declared["quantization"]["exclude_modules"] == in_config["ignore"]
    assert declared["producer"]["name"] == in_config["quant_method"] == "modelopt"
    group = in_config["config_groups"]["group_0"]["weights"]
    assert (group["num_bits"], group["type"], group["group_size"]) == (4, "float", 16)


def test_generation_config_reads_in_transformers(folder: Path) -> None:
    generation = load_model(folder).generation_config
    assert generation.max_denoising_steps == 24
    assert generation.eos_token_id == [1, 106, 50]
    assert generation.sampler_config.entropy_bound == 0.1
    assert (generation.t_min, generation.t_max) == (0.4, 0.8)
    assert (generation.stability_threshold, generation.confidence_threshold) == (1, 0.005)


def test_what_is_read_back_is_the_model_with_stored_values(folder: Path, model: Any) -> None:
    loaded = load_model(folder).state_dict()
    for name, weight in model.state_dict().items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            expected = nvfp4.fake_quantize(weight)
        else:
            expected = weight.to(torch.bfloat16).float()
        assert torch.equal(loaded[name], expected), name


def test_shards_stay_under_their_limit_and_read_as_one(model: Any, config: dict[str, Any], tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    export.export_checkpoint(model.state_dict(), config, whole)
    files = export.export_checkpoint(model.state_dict(), config, parts, shard_bytes=100_000)
    assert len(files) > 1
    assert all(file.stat().st_size <= 100_000 for file in files)
    one, many = read_tensors(whole), read_tensors(parts)
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name].view(torch.uint8), many[name].view(torch.uint8)) for name in one if one[name].ndim)
    export.export_checkpoint(model.state_dict(), config, parts)  # whole again: the old shards must not stay
    assert sorted(file.name for file in parts.glob("model*")) == ["model.safetensors"]


def test_a_text_only_state_gets_the_vision_tensors_a_strict_load_expects(
    model: Any, config: dict[str, Any], tmp_path: Path
) -> None:
    text = {name: tensor for name, tensor in model.state_dict().items() if "vision" not in name}
    export.export_checkpoint(text, config, tmp_path)
    stored = {name for name in read_tensors(tmp_path) if "vision" in name}
    assert stored == {name for name in model.state_dict() if "vision" in name}
    load_model(tmp_path)


def test_refuses_a_tensor_larger_than_a_shard(model: Any, config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"embed_tokens.weight alone takes"):
        export.export_checkpoint(model.state_dict(), config, tmp_path, shard_bytes=20_000)


def test_refuses_experts_of_odd_shape() -> None:
    with pytest.raises(ValueError, match=r"layers.0.experts.gate_up_proj: .*multiples of 16"):
        # 2 * 24 rows are a multiple of 16, the 24 of gate and of up are not
        export.quantize_experts("model.decoder.layers.0.experts.gate_up_proj", torch.zeros(2, 48, 64))
    with pytest.raises(ValueError, match="not a routed expert weight"):
        export.quantize_experts("model.decoder.layers.0.mlp.down_proj.weight", torch.zeros(2, 48, 64))


def test_refuses_a_broken_tie(model: Any) -> None:
    state = dict(model.state_dict())
    state["lm_head.weight"] = state["lm_head.weight"] + 1
    with pytest.raises(ValueError, match=r"lm_head.weight differs from model.decoder.embed_tokens.weight"):
        export.canonical_state(state)


def test_refuses_values_that_are_not_finite(model: Any) -> None:
    state = export.canonical_state(model.state_dict())
    state["model.decoder.norm.weight"] = state["model.decoder.norm.weight"] / 0
    with pytest.raises(ValueError, match=r"model.decoder.norm.weight has values that are not finite"):
        export.disk_tensors(state)


def test_refuses_unknown_generation_names(model: Any, config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="temperature"):
        export.export_checkpoint(model.state_dict(), config, tmp_path, generation={"temperature": 1.0})


@pytest.mark.parametrize(
    ("broken", "reason"),
    [("model.decoder.layers.0.experts.2.up_proj.weight_scale", "lacks"), ("model.decoder.norm.weight", "missing")],
)
def test_reading_back_names_a_missing_tensor(
    folder: Path, config: dict[str, Any], tmp_path: Path, broken: str, reason: str
) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[broken]
    save_file(tensors, tmp_path / "model.safetensors")
    for name in ("config.json", "generation_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(ValueError, match=reason):
        load_model(tmp_path)


def test_a_config_without_media_tokens_still_generates(model: Any, config: dict[str, Any], tmp_path: Path) -> None:
    without = config | {"image_token_id": None, "boi_token_id": None, "eoi_token_id": None}
    export.export_checkpoint(model.state_dict(), without, tmp_path)
    loaded = load_model(tmp_path)
    output = loaded.generate(torch.tensor([[2, 200]]), max_new_tokens=16, max_denoising_steps=1)
    assert output.sequences.shape == (1, 2 + CONFIG["canvas_length"])

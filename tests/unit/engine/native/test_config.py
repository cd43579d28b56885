"""Reading config.json and generation_config.json, and refusing what this engine does not compute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers.models.diffusion_gemma.configuration_diffusion_gemma import DiffusionGemmaConfig

from easel.engine.native.config import (
    GenerationDefaults,
    LayerConfig,
    Quantisation,
    Rope,
    generation_defaults,
    model_config,
    read_generation_defaults,
    read_model_config,
)
from easel.errors import ConfigurationError
from tests.unit.engine.native.tiny import TEXT, VISION


def _data(**text: Any) -> dict[str, Any]:
    data = DiffusionGemmaConfig(text_config=TEXT, vision_config=VISION, canvas_length=8).to_dict()
    data["text_config"] |= text
    return data


def test_reads_what_transformers_writes() -> None:
    config = model_config(_data())
    assert config.layers == (
        LayerConfig(0, "sliding", 8, 2),
        LayerConfig(1, "sliding", 8, 2),
        LayerConfig(2, "full", 16, 1),
    )
    assert config.ropes == {"sliding": Rope(10_000.0, 8, 4, 8), "full": Rope(1_000_000.0, 16, 2, 16)}
    assert (config.canvas_length, config.window, config.softcap, config.top_k) == (8, 10, 30.0, 2)
    assert config.of_kind("full") == config.layers[2:]


def test_reads_the_published_spelling_alike() -> None:
    data = _data(global_head_dim=16, num_global_key_value_heads=1)
    del data["text_config"]["per_layer_config"]
    assert model_config(data) == model_config(_data())


def test_placeholders_within_the_vocabulary_are_kept() -> None:
    data = _data() | {"image_token_id": 90, "boi_token_id": 91, "eoi_token_id": 258_882}
    assert model_config(data).placeholder_ids == (90, 91)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("model_type", {"model_type": "gemma4_text"}),
        ("hidden_activation", {"hidden_activation": "silu"}),
        ("attention_bias", {"attention_bias": True}),
        ("use_bidirectional_attention", {"use_bidirectional_attention": "all"}),
        ("num_kv_shared_layers", {"num_kv_shared_layers": 2}),
        ("num_experts", {"num_experts": None}),
        ("top_k_experts", {"top_k_experts": 5}),
        ("hidden_size", {"hidden_size": "32"}),
        ("layer_types", {"layer_types": ["sliding_attention"] * 2}),
        ("layer_types", {"layer_types": ["chunked_attention"] * 3}),
        ("layer_types", {"layer_types": 3}),
        ("rms_norm_eps", {"rms_norm_eps": float("nan")}),
        ("rms_norm_eps", {"rms_norm_eps": -1e-6}),
        ("final_logit_softcapping", {"final_logit_softcapping": 0}),
        ("head_dim", {"head_dim": 7}),
        ("per_layer_config", {"per_layer_config": [1]}),
        ("per_layer_config", {"per_layer_config": {"last": {}}}),
        ("2", {"per_layer_config": {"2": 5}}),
        ("rope_parameters", {"rope_parameters": 5}),
        ("full_attention", {"rope_parameters": {"full_attention": 5}}),
        ("rope_theta", {"rope_parameters": {"full_attention": {"rope_theta": 0}}}),
        ("partial_rotary_factor", {"rope_parameters": {"full_attention": {
            "rope_type": "proportional", "partial_rotary_factor": 1.5, "rope_theta": 1e4}}}),
        ("intermediate_size", {"per_layer_config": {"2": {"intermediate_size": 3}}}),
        ("per_layer_config", {"per_layer_config": {"1": {"head_dim": 16}}}),
        ("num_key_value_heads", {"per_layer_config": {"2": {"num_key_value_heads": 3}}}),
        ("rope_type", {"rope_parameters": {"full_attention": {"rope_type": "yarn", "rope_theta": 1e4}}}),
        ("rope_theta", {"rope_parameters": {"full_attention": {"rope_type": "default"}}}),
        ("factor", {"rope_parameters": {"full_attention": {"factor": 8.0, "rope_theta": 1e4}}}),
        ("partial_rotary_factor", {"rope_parameters": {"sliding_attention": {"partial_rotary_factor": 0.5,
                                                                             "rope_theta": 1e4}}}),
    ],
)  # fmt: skip
def test_refuses_by_name(key: str, text: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=key) as caught:
        model_config(_data(**text))
    assert caught.value.param == key


def _compressed(**changes: Any) -> dict[str, Any]:
    """A quantization_config in the layout of compressed-tensors; weights' keys go to its one group."""
    weights = {"num_bits": 4, "type": "float", "group_size": 16, "strategy": "tensor_group", "symmetric": True}
    weights |= {key: changes.pop(key) for key in list(changes) if key in weights}
    group = {"weights": weights, "input_activations": {"num_bits": 4, "dynamic": "local"}, "targets": ["Linear"]}
    return {
        "quant_method": "compressed-tensors",
        "format": "nvfp4-pack-quantized",
        "kv_cache_scheme": None,
        "config_groups": {"group_0": group},
    } | changes


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("model_type", {"model_type": "llada"}),
        ("text_config", {"text_config": None}),
        ("tie_word_embeddings", {"tie_word_embeddings": False}),
        ("model_type", {"vision_config": {"model_type": "siglip"}}),
        ("quant_method", {"quantization_config": {"quant_method": "gptq"}}),
        ("format", {"quantization_config": _compressed(format="pack-quantized")}),
        ("kv_cache_scheme", {"quantization_config": _compressed(kv_cache_scheme={"num_bits": 8})}),
        ("config_groups", {"quantization_config": _compressed(config_groups=None)}),
        ("config_groups", {"quantization_config": _compressed(config_groups={})}),
        ("weights", {"quantization_config": _compressed(config_groups={"group_0": {}})}),
        ("num_bits", {"quantization_config": _compressed(num_bits=8)}),
        ("type", {"quantization_config": _compressed(type="int")}),
        ("group_size", {"quantization_config": _compressed(group_size=32)}),
        ("strategy", {"quantization_config": _compressed(strategy="group")}),
        ("quant_algo", {"quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8"}}),
        ("quantization_config", {"quantization_config": "nvfp4"}),
    ],
)
def test_refuses_other_models_by_name(key: str, change: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=key):
        model_config(_data() | change)


def test_quantisation_is_read_from_either_place() -> None:
    inline = _data() | {"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}}
    assert (
        model_config(inline).quantisation
        == model_config(_data(), {"quantization": {"quant_algo": "NVFP4"}}).quantisation
    )
    assert model_config(_data()).quantisation is None


def test_compressed_tensors_is_read_with_and_without_scales_for_activations() -> None:
    both = _compressed()
    assert model_config(_data() | {"quantization_config": both}).quantisation == Quantisation(
        16, "compressed-tensors", input_scales=True
    )
    both["config_groups"]["group_0"]["input_activations"] = None
    only_weights = model_config(_data() | {"quantization_config": both}).quantisation
    assert only_weights == Quantisation(16, "compressed-tensors", input_scales=False)


def test_generation_defaults_come_from_the_file_and_else_from_the_reference() -> None:
    assert generation_defaults({}) == GenerationDefaults()
    assert generation_defaults({"eos_token_id": 1, "t_min": None}) == GenerationDefaults(eos_token_ids=(1,))
    given = {
        "max_denoising_steps": 10, "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.3},
        "t_min": 0.1, "t_max": 0.2, "stability_threshold": 0, "confidence_threshold": 0.5, "eos_token_id": [1, 106],
    }  # fmt: skip
    assert generation_defaults(given) == GenerationDefaults(10, 0.3, 0.1, 0.2, 0, 0.5, (1, 106))


@pytest.mark.parametrize(
    ("key", "data"),
    [
        ("_cls_name", {"sampler_config": {"_cls_name": "Other", "entropy_bound": 0.1}}),
        ("entropy_bound", {"sampler_config": {}}),
        ("stability_threshold", {"stability_threshold": -1}),
        ("stability_threshold", {"stability_threshold": True}),
        ("confidence_threshold", {"confidence_threshold": -0.1}),
        ("entropy_bound", {"sampler_config": {"entropy_bound": float("nan")}}),
        ("t_min", {"t_min": float("inf")}),
        ("eos_token_id", {"eos_token_id": "1"}),
        ("eos_token_id", {"eos_token_id": [1.5]}),
        ("eos_token_id", {"eos_token_id": True}),
        ("max_denoising_steps", {"max_denoising_steps": 0}),
        ("t_min", {"t_min": 0.0, "t_max": 0.0}),
    ],
)
def test_generation_defaults_are_refused_by_name(key: str, data: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=key):
        generation_defaults(data)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"config\.json"):
        read_model_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigurationError, match="not JSON"):
        read_model_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps([1]))
    with pytest.raises(ConfigurationError, match="object"):
        read_model_config(tmp_path)
    assert read_generation_defaults(tmp_path) == GenerationDefaults()

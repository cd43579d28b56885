"""Write a trained model as a checkpoint folder: NVFP4 routed experts in modelopt's layout, everything else bf16.

Owns: the names and dtypes of the tensors on disk, shards and their index, `config.json` with its quantisation entry,
`hf_quant_config.json`, `generation_config.json`, the tokenizer files. `training.checkpoint` reads the folder back.
Refuses to know: how the weights were trained, what the model is for.

Input is a state dict in transformers' names (`DiffusionGemmaForBlockDiffusion.state_dict()`, with or without its tied
copies). On disk each tied tensor exists once, under `model.decoder`; only the encoder's `layer_scalar` buffers, which
are not tied, and the vision tensors, if the config has a vision tower, stay under `model.encoder`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from training import nvfp4
from training.tokenizer import BOS, EOS, PAD, TOOL_RESPONSE, TURN_CLOSE, write_tokenizer

MIB = 1 << 20

_EXPERTS = re.compile(r"(model\.decoder\.layers\.\d+\.experts)\.(gate_up_proj|down_proj)$")
_ENCODER_TEXT = "model.encoder.language_model."
_DECODER = "model.decoder."
_EMBEDDING = "model.decoder.embed_tokens.weight"

GENERATION_DEFAULTS: dict[str, Any] = {
    "bos_token_id": BOS,
    "eos_token_id": [EOS, TURN_CLOSE, TOOL_RESPONSE],
    "pad_token_id": PAD,
    "max_new_tokens": 256,
    "max_denoising_steps": 48,
    "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.1},
    "t_min": 0.4,
    "t_max": 0.8,
    "stability_threshold": 1,
    "confidence_threshold": 0.005,
}
"""The 26B checkpoint's decoding parameters, in the names of transformers' `DiffusionGemmaGenerationConfig`."""

TEXT_ONLY_VISION_CONFIG: dict[str, Any] = {
    "model_type": "gemma4_vision",
    "num_hidden_layers": 0,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "patch_size": 1,
    "position_embedding_size": 1,
    "use_clipped_linears": False,
}
"""How a text-only checkpoint is expressed: transformers always builds a vision tower, so it is one of no layers. What
is left of it are three small tensors, stored so that a strict load finds every name."""


MEDIA_TOKEN_IDS = {"boi_token_id": 255_999, "eoi_token_id": 258_882, "image_token_id": 258_880}
"""The 26B's ids. They lie past a small vocabulary, so no token means an image; None in their place makes transformers'
`generate` fail."""


def empty_vision_tensors(config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors that transformers wants of a vision tower of no layers, as zeros; none if it has layers."""
    vision = config["vision_config"]
    if vision["num_hidden_layers"]:
        return {}
    width, patch = vision["hidden_size"], vision["patch_size"]
    tower = "model.encoder.vision_tower.patch_embedder"
    shapes = {
        f"{tower}.position_embedding_table": (2, vision["position_embedding_size"], width),
        f"{tower}.input_proj.weight": (width, 3 * patch * patch),
        "model.encoder.embed_vision.embedding_projection.weight": (config["text_config"]["hidden_size"], width),
    }
    return {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}


def canonical_state(state: Mapping[str, torch.Tensor], tied: bool = True) -> dict[str, torch.Tensor]:
    """The state dict without tied copies.

    Raises:
        ValueError: a copy that should be tied differs from its original, or has none.
    """
    kept: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if name == "lm_head.weight" and tied:
            original = _EMBEDDING
        elif name.startswith(_ENCODER_TEXT) and not name.endswith("layer_scalar"):
            original = _DECODER + name.removeprefix(_ENCODER_TEXT)
        else:
            kept[name] = tensor
            continue
        if original not in state:
            raise ValueError(f"{name} is a tied copy of {original}, which the state dict does not have")
        if state[original].data_ptr() != tensor.data_ptr() and not torch.equal(state[original], tensor):
            raise ValueError(f"{name} differs from {original}, to which it must be tied")
    return kept


def quantize_experts(name: str, weight: torch.Tensor, *, search: bool = False) -> dict[str, torch.Tensor]:
    """The tensors on disk of one 3-D expert weight: `gate_up_proj [E, 2I, H]` or `down_proj [E, H, I]`.

    Gate and up of an expert share one global scale (loaders that fuse them need that); it is the scale of their fused
    weight, the one `nvfp4.fake_quantize(gate_up_proj)` trains with.

    `input_scale` is 1: activations were not calibrated. Weight-only engines ignore it; with 4-bit activations, 1
    leaves the E4M3 group scales a range from 0.1 to 2,688 without loss.

    Raises:
        ValueError: naming the tensor, if a dimension is not a multiple of 16.
    """
    match = _EXPERTS.fullmatch(name)
    if match is None or weight.ndim != 3:
        raise ValueError(f"{name} of shape {tuple(weight.shape)} is not a routed expert weight")
    layer, kind = match.groups()
    parts = ["gate_proj", "up_proj"] if kind == "gate_up_proj" else ["down_proj"]
    try:
        nvfp4.check_shape((weight.shape[-2] // len(parts), weight.shape[-1]))
        quantized = nvfp4.quantize(weight, search=search)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    tensors: dict[str, torch.Tensor] = {}
    rows = weight.shape[-2] // len(parts)
    for expert in range(weight.shape[0]):
        for index, part in enumerate(parts):
            prefix = f"{layer}.{expert}.{part}"
            chosen = slice(index * rows, (index + 1) * rows)
            tensors[f"{prefix}.weight"] = quantized.codes[expert, chosen].contiguous()
            tensors[f"{prefix}.weight_scale"] = quantized.scale[expert, chosen].contiguous()
            tensors[f"{prefix}.weight_scale_2"] = quantized.global_scale[expert].clone()
            tensors[f"{prefix}.input_scale"] = torch.ones((), dtype=torch.float32)
    return tensors


def disk_tensors(state: Mapping[str, torch.Tensor], *, search: bool = False) -> dict[str, torch.Tensor]:
    """Every tensor of the checkpoint by name, on the CPU, in the dtype it is stored in.

    Raises:
        ValueError: a broken tie, an expert shape NVFP4 cannot hold, or a value that is not finite (naming the tensor).
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in canonical_state(state).items():
        tensor = tensor.detach().cpu()
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} has values that are not finite")
        if _EXPERTS.fullmatch(name):
            tensors |= quantize_experts(name, tensor, search=search)
        else:
            tensors[name] = tensor.to(torch.bfloat16).contiguous().clone()
    return tensors


def _excluded_modules(layers: int) -> list[str]:
    """Modules that are not quantised, as patterns."""
    of_a_layer = ("self_attn*", "mlp*", "router*")
    return [
        "lm_head",
        "model.decoder.embed_tokens*",
        "model.decoder.self_conditioning*",
        *(f"model.decoder.layers.{layer}.{module}" for layer in range(layers) for module in of_a_layer),
        "model.encoder.vision_tower*",
        "model.encoder.embed_vision*",
    ]


def quantization_entries(layers: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Content of `hf_quant_config.json` and of `quantization_config` in config.json.

    The producer's name is the name of the layout: readers choose their loader by it.
    """
    producer = {"name": "modelopt", "version": "0.0.0"}
    excluded = _excluded_modules(layers)
    format_4_bit = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": nvfp4.GROUP}
    hf_quant_config = {
        "producer": producer,
        "quantization": {
            "quant_algo": "NVFP4",
            "kv_cache_quant_algo": None,
            "group_size": nvfp4.GROUP,
            "exclude_modules": excluded,
        },
    }
    quantization_config = {
        "config_groups": {
            "group_0": {"input_activations": format_4_bit, "weights": dict(format_4_bit), "targets": ["Linear"]}
        },
        "ignore": excluded,
        "quant_algo": "NVFP4",
        "producer": producer,
        "quant_method": "modelopt",
    }
    return hf_quant_config, quantization_config


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_shards(tensors: Mapping[str, torch.Tensor], folder: Path, shard_bytes: int) -> list[Path]:
    """Write `model.safetensors`, or numbered shards and `model.safetensors.index.json`, replacing what was there.

    Raises:
        ValueError: one tensor alone is larger than `shard_bytes`.
    """
    header_allowance = 160  # bytes of a safetensors header for one tensor, roughly: name, dtype, shape, offsets
    shards: list[dict[str, torch.Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size() + header_allowance
        if size > shard_bytes:
            raise ValueError(f"{name} alone takes {size} bytes, more than a shard of {shard_bytes}")
        if filled + size > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += size
    for old in folder.glob("model*.safetensors*"):
        old.unlink()
    if len(shards) == 1:
        names = ["model.safetensors"]
    else:
        names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
        total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(folder / "model.safetensors.index.json", index)
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, folder / name, metadata={"format": "pt"})
        (folder / name).chmod(0o644)  # the library writes 0600, which would follow the file into images and wheels
    return [folder / name for name in names]


def export_checkpoint(
    state: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    folder: Path,
    *,
    generation: Mapping[str, Any] | None = None,
    shard_bytes: int = 15 * MIB,
    search: bool = False,
) -> list[Path]:
    """Write the whole checkpoint folder except its model card; returns the weight files.

    Args:
        state: tensors by transformers' name, any float dtype, any device; the vision tensors of a text-only
            checkpoint may be left out.
        config: content of config.json (`DiffusionGemmaConfig.to_dict()` or written by hand), without quantisation;
            media token ids that are None or missing become the 26B's.
        folder: created if missing; weights in it are replaced.
        generation: overrides of `GENERATION_DEFAULTS`.
        shard_bytes: upper bound on one weight file.
        search: see `nvfp4.quantize`; leave off for weights trained with `fake_quantize`.

    Raises:
        ValueError: as `disk_tensors` and `write_shards`, or an unknown name in `generation`.
    """
    unknown = set(generation or {}) - set(GENERATION_DEFAULTS)
    if unknown:
        raise ValueError(f"generation has unknown names: {sorted(unknown)}")
    tensors = empty_vision_tensors(config) | disk_tensors(state, search=search)
    text = config["text_config"]
    folder.mkdir(parents=True, exist_ok=True)
    hf_quant_config, quantization_config = quantization_entries(text["num_hidden_layers"])
    media = {name: value for name, value in MEDIA_TOKEN_IDS.items() if config.get(name) is None}
    written = dict(config) | {
        **media,
        "architectures": ["DiffusionGemmaForBlockDiffusion"],
        "dtype": "bfloat16",
        "quantization_config": quantization_config,
    }
    _write_json(folder / "config.json", written)
    _write_json(folder / "hf_quant_config.json", hf_quant_config)
    _write_json(folder / "generation_config.json", GENERATION_DEFAULTS | dict(generation or {}))
    write_tokenizer(folder, max_length=text["max_position_embeddings"])
    return write_shards(tensors, folder, shard_bytes)

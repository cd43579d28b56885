"""Read an exported checkpoint back into transformers, experts dequantised: for evaluation and tests, not for serving.

Owns: the way from the files of `training.export` to a `DiffusionGemmaForBlockDiffusion` with every weight checked.
Refuses to know: the serving engine, which has a loader of its own (two independent readers of one format).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from training import nvfp4

_QUANTIZED = re.compile(
    r"(.+\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj)\.(weight|weight_scale|weight_scale_2|input_scale)"
)


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the folder as stored, from one file or from the shards of the index.

    Raises:
        ValueError: the index and the shards disagree about a name.
    """
    index_path = folder / "model.safetensors.index.json"
    if not index_path.exists():
        return dict(load_file(folder / "model.safetensors"))
    weight_map: dict[str, str] = json.loads(index_path.read_text())["weight_map"]
    tensors: dict[str, torch.Tensor] = {}
    for name in sorted(set(weight_map.values())):
        tensors |= load_file(folder / name)
    if set(tensors) != set(weight_map):
        raise ValueError(f"index and shards differ: {sorted(set(tensors) ^ set(weight_map))}")
    return tensors


def dequantize_experts(tensors: dict[str, torch.Tensor], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Tensors in transformers' layout: per-expert NVFP4 joined into the 3-D `gate_up_proj` and `down_proj`.

    Raises:
        ValueError: an expert lacks a tensor.
    """
    state: dict[str, torch.Tensor] = {}
    experts: dict[str, dict[int, dict[str, dict[str, torch.Tensor]]]] = {}
    for name, tensor in tensors.items():
        match = _QUANTIZED.fullmatch(name)
        if match is None:
            state[name] = tensor.to(dtype)
            continue
        module, expert, projection, field = match.groups()
        experts.setdefault(module, {}).setdefault(int(expert), {}).setdefault(projection, {})[field] = tensor

    def weight(module: str, expert: int, projection: str) -> torch.Tensor:
        try:
            parts = experts[module][expert][projection]
            quantized = nvfp4.NVFP4(parts["weight"], parts["weight_scale"], parts["weight_scale_2"])
        except KeyError as error:
            raise ValueError(f"{module}.{expert}.{projection} lacks {error}") from error
        return nvfp4.dequantize(quantized, dtype)

    for module, by_expert in experts.items():
        count = range(max(by_expert) + 1)
        state[f"{module}.down_proj"] = torch.stack([weight(module, e, "down_proj") for e in count])
        gate_up = [torch.cat([weight(module, e, "gate_proj"), weight(module, e, "up_proj")]) for e in count]
        state[f"{module}.gate_up_proj"] = torch.stack(gate_up)
    return state


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """transformers' `DiffusionGemmaForBlockDiffusion` with the folder's weights and generation config, in eval mode.

    Raises:
        ValueError: a tensor is missing, unexpected or of another shape (transformers alone would only warn).
    """
    from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion
    from transformers.models.diffusion_gemma.generation_diffusion_gemma import DiffusionGemmaGenerationConfig

    content = json.loads((folder / "config.json").read_text())
    content.pop("quantization_config", None)  # the experts are dequantised here; transformers cannot read them
    config = DiffusionGemmaConfig.from_dict(content)
    model = DiffusionGemmaForBlockDiffusion(config)
    state = dequantize_experts(read_tensors(folder), dtype)
    tied_copies = {
        name
        for name in model.state_dict()
        if name == "lm_head.weight"
        or (name.startswith("model.encoder.language_model.") and not name.endswith("layer_scalar"))
    }
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    missing = sorted(set(missing) - tied_copies)
    if missing or unexpected:
        raise ValueError(f"missing tensors {missing}, unexpected tensors {sorted(unexpected)}")
    model.tie_weights()
    model.generation_config = DiffusionGemmaGenerationConfig.from_pretrained(folder)
    return model.to(dtype).eval()

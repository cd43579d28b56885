"""A checkpoint's tensors, checked by name and laid out the way the model reads them.

Owns: finding the files, comparing what they hold with the table in `tensors`, and the fused layout: q, k and v in one
matrix, gate and up in one. A tensor that is missing, unexpected or of another shape is refused by name, because a
model that runs without one answers with noise and no error. Vision tensors are known and skipped: there is no tower.
Refuses to know: what the weights are for.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from easel.engine.native import nvfp4
from easel.engine.native.config import LayerConfig, ModelConfig, read_json
from easel.engine.native.kernels.packing import Nvfp4, PackedExperts, pack_experts
from easel.engine.native.tensors import (
    DECODER,
    ENCODER_TEXT,
    NVFP4_NAMES,
    Expected,
    Stored,
    expected_tensors,
    tied_copies,
    vision_tensors,
)
from easel.errors import ConfigurationError

log = logging.getLogger(__name__)

STORED_TYPES: Mapping[Stored, tuple[str, ...]] = {
    "float": ("BF16", "F16", "F32"),
    "codes": ("U8",),
    "scales": ("F8_E4M3",),
    "scalar": ("F32",),
}
MOST_NAMES = 8
"""Problems listed in one error. The rest are counted."""


@dataclass(frozen=True, slots=True)
class GatedWeights:
    """A gated feed-forward block: `down(gelu(gate x) * up x)`."""

    gate_up: torch.Tensor  # [2 * wide, hidden], gate rows first
    down: torch.Tensor  # [hidden, wide]


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """The routed experts of one layer, unpacked."""

    gate_up: torch.Tensor  # [experts, 2 * wide, hidden], gate rows first
    down: torch.Tensor  # [experts, hidden, wide]


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer. Norms are [hidden] or [head_dim]."""

    input_norm: torch.Tensor
    qkv: torch.Tensor  # [(heads + 2 * kv_heads) * head_dim, hidden]; full layers have no v: [(heads + kv_heads) ...]
    qk_norm: torch.Tensor  # [heads + kv_heads, head_dim]: the queries' norm for each head, then the keys'
    out: torch.Tensor  # [hidden, heads * head_dim]
    post_attention_norm: torch.Tensor
    mlp_norm: torch.Tensor
    mlp: GatedWeights
    mlp_post_norm: torch.Tensor
    router_norm: torch.Tensor  # the router's `scale` over sqrt(hidden)
    router: torch.Tensor  # [experts, hidden]
    per_expert_scale: torch.Tensor  # [experts], fp32
    experts_norm: torch.Tensor
    experts: ExpertWeights | PackedExperts
    """Packed where kernels read NVFP4: on a GPU, from a quantised checkpoint."""
    experts_post_norm: torch.Tensor
    post_norm: torch.Tensor
    encode_scalar: torch.Tensor  # [1]
    decode_scalar: torch.Tensor  # [1]


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """Everything that a forward reads."""

    embedding: torch.Tensor  # [vocab, hidden]; also the head
    conditioning_norm: torch.Tensor
    conditioning: GatedWeights
    layers: tuple[LayerWeights, ...]
    norm: torch.Tensor


def load_weights(folder: Path, config: ModelConfig, dtype: torch.dtype, device: str = "cpu") -> ModelWeights:
    """The weights in `folder` on `device`, floats in `dtype`.

    Raises `ConfigurationError` that names each tensor which is missing, unexpected, or of another shape or type.
    """
    files = CheckpointFiles(folder)
    files.check(config)
    return _Layout(files, config, dtype, device).all()


class CheckpointFiles:
    """The safetensors files of a folder as one mapping."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = folder / "model.safetensors.index.json"
        single = folder / "model.safetensors"
        self.file_of: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}  # safetensors' handles carry no types
        if index.is_file():
            for name, file in read_json(index)["weight_map"].items():
                self.file_of[name] = folder / file
            for path in sorted(set(self.file_of.values())):
                inside, listed = set(self._handle(path).keys()), {n for n, p in self.file_of.items() if p == path}
                if inside != listed:
                    raise ConfigurationError(f"{path.name} and its index differ: {_some(sorted(inside ^ listed))}")
        elif single.is_file():
            self.file_of = dict.fromkeys(self._handle(single).keys(), single)
        else:
            raise ConfigurationError(f"{folder}: neither model.safetensors nor model.safetensors.index.json")

    def _handle(self, path: Path) -> Any:
        if path not in self._open:
            try:
                self._open[path] = safe_open(path, framework="pt", device="cpu")
            except (OSError, SafetensorError) as error:
                raise ConfigurationError(f"{path}: {error}") from None
        return self._open[path]

    def check(self, config: ModelConfig) -> None:
        """Compare with the table. Raises `ConfigurationError` listing every kind of difference."""
        expected, vision, copies = expected_tensors(config), vision_tensors(config), tied_copies(config)
        known = expected | (vision if any(name in self.file_of for name in vision) else {})
        problems = [f"missing: {name}" for name in known if name not in self.file_of]
        problems += [f"unexpected: {name}" for name in self.file_of if name not in known and name not in copies]
        for name, tensor in known.items():
            if name in self.file_of:
                problems += self._differences(name, tensor)
        if problems:
            raise ConfigurationError(f"{self.folder} does not hold the model it describes: {_some(problems)}")
        if skipped := [name for name in self.file_of if name in vision]:
            log.info("%d vision tensors skipped: this engine reads text only", len(skipped))

    def _differences(self, name: str, expected: Expected) -> list[str]:
        part = self._handle(self.file_of[name]).get_slice(name)
        shape, dtype = tuple(part.get_shape()), part.get_dtype()
        # A scalar is written as [] by some and as [1] by others.
        if shape != expected.shape and not (expected.stored == "scalar" and shape == (1,)):
            return [f"shape of {name}: {list(shape)} instead of {list(expected.shape)}"]
        if dtype not in STORED_TYPES[expected.stored]:
            return [f"type of {name}: {dtype} instead of {' or '.join(STORED_TYPES[expected.stored])}"]
        return []

    def read(self, name: str) -> torch.Tensor:
        """One tensor as it is stored."""
        tensor: torch.Tensor = self._handle(self.file_of[name]).get_tensor(name)
        return tensor


def _some(problems: list[str]) -> str:
    shown = "; ".join(problems[:MOST_NAMES])
    return shown if len(problems) <= MOST_NAMES else f"{shown}; and {len(problems) - MOST_NAMES} more"


def read_quantised(files: CheckpointFiles, config: ModelConfig, prefix: str, part: str, device: str = "cpu") -> Nvfp4:
    """One projection of all experts of the layer whose experts' names begin with `prefix`, as it is stored."""
    assert config.quantisation is not None
    layout = config.quantisation.layout
    names = NVFP4_NAMES[layout]

    def all_experts(suffix: str) -> torch.Tensor:
        # Stored bytes are stacked before they move: a copy for each of 128 small tensors would take longer.
        return torch.stack([files.read(f"{prefix}{expert}.{part}.{suffix}") for expert in range(config.experts)])

    scales = all_experts(names.scales).view(torch.uint8)
    scale_2 = all_experts(names.scale_2).float().reshape(-1)
    if layout == "compressed-tensors":
        if not bool((scale_2 > 0).all()):
            raise ConfigurationError(f"{prefix}*.{part}.{names.scale_2}: a number above zero is needed")
        scale_2 = scale_2.reciprocal()
    return Nvfp4(
        all_experts(names.codes).to(device),
        scales.to(device).view(torch.float8_e4m3fn),
        scale_2.to(device),
    )


def unpacked(parts: Sequence[Nvfp4], config: ModelConfig, dtype: torch.dtype, device: str = "cpu") -> ExpertWeights:
    """The experts of one layer as floats, from `gate_proj`, `up_proj` and `down_proj`."""
    assert config.quantisation is not None
    count, wide, hidden = config.experts, config.expert_intermediate, config.hidden
    gate_up = torch.empty(count, 2 * wide, hidden, dtype=dtype, device=device)
    down = torch.empty(count, hidden, wide, dtype=dtype, device=device)
    for expert in range(count):
        for part, target in zip(parts, (*gate_up[expert].chunk(2), down[expert]), strict=True):
            codes, scales, scale_2 = part.codes[expert], part.scales[expert], part.scale_2[expert]
            target.copy_(nvfp4.dequantise(codes, scales, scale_2, config.quantisation.group))
    return ExpertWeights(gate_up, down)


class _Layout:
    """Puts tensors together the way the model reads them."""

    def __init__(self, files: CheckpointFiles, config: ModelConfig, dtype: torch.dtype, device: str) -> None:
        self.files, self.config, self.dtype, self.device = files, config, dtype, device

    def all(self) -> ModelWeights:
        return ModelWeights(
            embedding=self.float(DECODER + "embed_tokens.weight"),
            conditioning_norm=self.float(DECODER + "self_conditioning.pre_norm.weight"),
            conditioning=self.gated(DECODER + "self_conditioning."),
            layers=tuple(self.layer(layer) for layer in self.config.layers),
            norm=self.float(DECODER + "norm.weight"),
        )

    def float(self, name: str) -> torch.Tensor:
        return self.files.read(name).to(self.device, self.dtype).contiguous()

    def gated(self, prefix: str) -> GatedWeights:
        gate, up = self.float(prefix + "gate_proj.weight"), self.float(prefix + "up_proj.weight")
        return GatedWeights(torch.cat((gate, up)), self.float(prefix + "down_proj.weight"))

    def layer(self, layer: LayerConfig) -> LayerWeights:
        prefix = f"{DECODER}layers.{layer.index}."
        parts = "qkv" if layer.kind == "sliding" else "qk"
        q_norm, k_norm = (self.float(f"{prefix}self_attn.{part}_norm.weight") for part in "qk")
        router_scale = self.files.read(prefix + "router.scale").float() * self.config.hidden**-0.5
        return LayerWeights(
            input_norm=self.float(prefix + "input_layernorm.weight"),
            qkv=torch.cat([self.float(f"{prefix}self_attn.{part}_proj.weight") for part in parts]),
            qk_norm=torch.cat((q_norm.expand(self.config.heads, -1), k_norm.expand(layer.kv_heads, -1))),
            out=self.float(prefix + "self_attn.o_proj.weight"),
            post_attention_norm=self.float(prefix + "post_attention_layernorm.weight"),
            mlp_norm=self.float(prefix + "pre_feedforward_layernorm.weight"),
            mlp=self.gated(prefix + "mlp."),
            mlp_post_norm=self.float(prefix + "post_feedforward_layernorm_1.weight"),
            router_norm=router_scale.to(self.device, self.dtype),
            router=self.float(prefix + "router.proj.weight"),
            per_expert_scale=self.files.read(prefix + "router.per_expert_scale").to(self.device, torch.float32),
            experts_norm=self.float(prefix + "pre_feedforward_layernorm_2.weight"),
            experts=self.experts(prefix + "experts."),
            experts_post_norm=self.float(prefix + "post_feedforward_layernorm_2.weight"),
            post_norm=self.float(prefix + "post_feedforward_layernorm.weight"),
            encode_scalar=self.float(f"{ENCODER_TEXT}layers.{layer.index}.layer_scalar"),
            decode_scalar=self.float(prefix + "layer_scalar"),
        )

    def experts(self, prefix: str) -> ExpertWeights | PackedExperts:
        config = self.config
        if config.quantisation is None:
            return ExpertWeights(self.float(prefix + "gate_up_proj"), self.float(prefix + "down_proj"))
        parts = [
            read_quantised(self.files, config, prefix, part, self.device)
            for part in ("gate_proj", "up_proj", "down_proj")
        ]
        if torch.device(self.device).type == "cuda":
            try:
                return pack_experts(*parts)
            except ValueError as error:
                raise ConfigurationError(f"{prefix}*: {error}") from None
        return unpacked(parts, config, self.dtype, self.device)

"""A checkpoint's tensors laid out the way the model reads them.

Owns: the fused layout: q, k and v in one matrix, gate and up in one, experts stacked and packed; and which tensors are
read together. Refuses to know: where tensors come from (`reading`, `checkpoint_files`), and what they are for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from easel.engine.native import nvfp4
from easel.engine.native.checkpoint_files import CheckpointFiles
from easel.engine.native.config import LayerConfig, ModelConfig
from easel.engine.native.kernels.packing import Nvfp4, PackedExperts, pack_experts
from easel.engine.native.phases import Phases
from easel.engine.native.reading import Source, read_stages
from easel.engine.native.tensors import DECODER, ENCODER_TEXT, NVFP4_NAMES, expected_tensors
from easel.errors import ConfigurationError

T = TypeVar("T")

EMBEDDING = DECODER + "embed_tokens.weight"
_OF_LAYER = re.compile(rf"(?:{re.escape(DECODER)}|{re.escape(ENCODER_TEXT)})layers\.(\d+)\.")


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


def load_weights(
    folder: Path, config: ModelConfig, dtype: torch.dtype, device: str = "cpu", phases: Phases | None = None
) -> ModelWeights:
    """The weights in `folder` on `device`, floats in `dtype`. `phases` is told what was spent on reading (waiting for
    bytes: more is read while this is laid out) and on repacking.

    Raises `ConfigurationError` that names each tensor which is missing, unexpected, or of another shape or type.
    """
    files = CheckpointFiles(folder)
    files.check(config)
    with closing(read_stages(files, stages(config), device)) as sources:
        weights = lay_out(sources, config, dtype, device, phases or Phases())
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()  # what was read into: the KV cache is sized from what is free
    return weights


def stages(config: ModelConfig) -> list[list[str]]:
    """The tensors that `lay_out` reads, in the order of its sources: the embedding, what else lies outside the layers,
    then a layer at a time."""
    embedding: list[str] = []
    outside: list[str] = []
    layers: list[list[str]] = [[] for _ in config.layers]
    unread = NVFP4_NAMES[config.quantisation.layout].input_scale if config.quantisation else None
    for name in expected_tensors(config):
        if unread is not None and name.endswith(f".{unread}"):
            continue
        if match := _OF_LAYER.match(name):
            layers[int(match[1])].append(name)
        else:
            (embedding if name == EMBEDDING else outside).append(name)
    return [embedding, outside, *layers]


def lay_out(
    sources: Iterator[Source], config: ModelConfig, dtype: torch.dtype, device: str, phases: Phases
) -> ModelWeights:
    """The weights from one source for each of `stages`. Nothing of the result shares memory with a source."""

    def part(build: Callable[[_Layout], T]) -> T:
        with phases.of("read"):
            source = next(sources)
        with phases.of("repack"):
            return build(_Layout(config, dtype, device, source))

    embedding = part(lambda layout: layout.float(EMBEDDING))
    norm, conditioning_norm, conditioning = part(_Layout.outside)
    layers = tuple(part(partial(_Layout.layer, layer=layer)) for layer in config.layers)
    if torch.device(device).type == "cuda":
        with phases.of("repack"):
            torch.cuda.synchronize(device)
    return ModelWeights(embedding, conditioning_norm, conditioning, layers, norm)


def read_quantised(source: Source, config: ModelConfig, prefix: str, part: str, device: str = "cpu") -> Nvfp4:
    """One projection of all experts of the layer whose experts' names begin with `prefix`, as it is stored."""
    assert config.quantisation is not None
    layout = config.quantisation.layout
    names = NVFP4_NAMES[layout]

    def all_experts(suffix: str) -> torch.Tensor:
        return source.stack([f"{prefix}{expert}.{part}.{suffix}" for expert in range(config.experts)])

    scale_2 = all_experts(names.scale_2).float().reshape(-1)
    if layout == "compressed-tensors":
        if not bool((scale_2 > 0).all()):
            raise ConfigurationError(f"{prefix}*.{part}.{names.scale_2}: a number above zero is needed")
        scale_2 = scale_2.reciprocal()
    return Nvfp4(all_experts(names.codes).to(device), all_experts(names.scales).to(device), scale_2.to(device))


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

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: str, source: Source) -> None:
        self.config, self.dtype, self.device, self.source = config, dtype, device, source

    def outside(self) -> tuple[torch.Tensor, torch.Tensor, GatedWeights]:
        """What lies outside the layers: the last norm, and self-conditioning."""
        prefix = DECODER + "self_conditioning."
        return self.float(DECODER + "norm.weight"), self.float(prefix + "pre_norm.weight"), self.gated(prefix)

    def float(self, name: str) -> torch.Tensor:
        return self.source.read(name).to(self.device, self.dtype, copy=True)

    def gated(self, prefix: str) -> GatedWeights:
        gate, up = self.float(prefix + "gate_proj.weight"), self.float(prefix + "up_proj.weight")
        return GatedWeights(torch.cat((gate, up)), self.float(prefix + "down_proj.weight"))

    def layer(self, layer: LayerConfig) -> LayerWeights:
        prefix = f"{DECODER}layers.{layer.index}."
        parts = "qkv" if layer.kind == "sliding" else "qk"
        q_norm, k_norm = (self.float(f"{prefix}self_attn.{part}_norm.weight") for part in "qk")
        router_scale = self.source.read(prefix + "router.scale").float() * self.config.hidden**-0.5
        per_expert_scale = self.source.read(prefix + "router.per_expert_scale")
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
            per_expert_scale=per_expert_scale.to(self.device, torch.float32, copy=True),
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
            read_quantised(self.source, config, prefix, part, self.device)
            for part in ("gate_proj", "up_proj", "down_proj")
        ]
        if torch.device(self.device).type == "cuda":
            try:
                return pack_experts(*parts)
            except ValueError as error:
                raise ConfigurationError(f"{prefix}*: {error}") from None
        return unpacked(parts, config, self.dtype, self.device)

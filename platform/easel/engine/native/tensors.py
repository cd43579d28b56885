"""Which tensors a checkpoint must hold: names, shapes and stored types, as a pure function of its configuration.

Owns: the table that a loader checks a folder against, tensor by tensor. Refuses to know: files, and torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from easel.engine.native.config import LayerConfig, ModelConfig, VisionConfig

DECODER = "model.decoder."
ENCODER = "model.encoder."
ENCODER_TEXT = ENCODER + "language_model."
VISION_PREFIXES = (ENCODER + "vision_tower.", ENCODER + "embed_vision.")

Stored = Literal["float", "codes", "scales", "scalar"]
"""`float`: bf16, fp16 or fp32. The rest make up an NVFP4 weight: E2M1 codes as uint8, group scales as E4M3, and
scalars in fp32."""


@dataclass(frozen=True, slots=True)
class Nvfp4Names:
    """What one matrix's tensors are called."""

    codes: str
    scales: str
    scale_2: str
    input_scale: str


NVFP4_NAMES: Mapping[str, Nvfp4Names] = {
    "modelopt": Nvfp4Names("weight", "weight_scale", "weight_scale_2", "input_scale"),
    # Its global scale is what the weights were multiplied by: one over the other layout's.
    "compressed-tensors": Nvfp4Names("weight_packed", "weight_scale", "weight_global_scale", "input_global_scale"),
}


@dataclass(frozen=True, slots=True)
class Expected:
    """One tensor of the table."""

    shape: tuple[int, ...]
    stored: Stored = "float"


def expected_tensors(config: ModelConfig) -> dict[str, Expected]:
    """Every tensor of the text model. All of them must be there, and nothing else but the vision tower's."""
    return dict(_text(config))


def vision_tensors(config: ModelConfig) -> dict[str, Expected]:
    """The vision tower's tensors: all there, or none. Empty where the configuration has no tower."""
    return dict(_vision(config.vision, config.hidden)) if config.vision else {}


def tied_copies(config: ModelConfig) -> dict[str, str]:
    """Names that some writers add, each a copy of the tensor named after it: safe to skip."""
    copies = {"lm_head.weight": DECODER + "embed_tokens.weight"}
    for name in expected_tensors(config):
        tail = name.removeprefix(DECODER)
        if name.startswith(DECODER) and not tail.startswith("self_conditioning.") and not tail.endswith("layer_scalar"):
            copies[ENCODER_TEXT + tail] = name
    return copies


def _text(config: ModelConfig) -> Iterator[tuple[str, Expected]]:
    hidden, wide = config.hidden, config.intermediate
    yield DECODER + "embed_tokens.weight", Expected((config.vocab, hidden))
    yield DECODER + "norm.weight", Expected((hidden,))
    yield from _gated(DECODER + "self_conditioning.", hidden, wide)
    yield DECODER + "self_conditioning.pre_norm.weight", Expected((hidden,))
    for layer in config.layers:
        prefix = f"{DECODER}layers.{layer.index}."
        yield from _attention(prefix + "self_attn.", config, layer)
        yield from _gated(prefix + "mlp.", hidden, wide)
        for norm in LAYER_NORMS:
            yield f"{prefix}{norm}.weight", Expected((hidden,))
        yield prefix + "router.proj.weight", Expected((config.experts, hidden))
        yield prefix + "router.scale", Expected((hidden,))
        yield prefix + "router.per_expert_scale", Expected((config.experts,))
        yield from _experts(prefix + "experts.", config)
        yield prefix + "layer_scalar", Expected((1,))
        yield f"{ENCODER_TEXT}layers.{layer.index}.layer_scalar", Expected((1,))


LAYER_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
    "post_feedforward_layernorm_1",
    "post_feedforward_layernorm_2",
    "pre_feedforward_layernorm_2",
)


def _attention(prefix: str, config: ModelConfig, layer: LayerConfig) -> Iterator[tuple[str, Expected]]:
    queries, keys = config.heads * layer.head_dim, layer.kv_heads * layer.head_dim
    yield prefix + "q_proj.weight", Expected((queries, config.hidden))
    yield prefix + "k_proj.weight", Expected((keys, config.hidden))
    if layer.kind == "sliding":  # full layers take the raw keys for values
        yield prefix + "v_proj.weight", Expected((keys, config.hidden))
    yield prefix + "o_proj.weight", Expected((config.hidden, queries))
    yield prefix + "q_norm.weight", Expected((layer.head_dim,))
    yield prefix + "k_norm.weight", Expected((layer.head_dim,))


def _gated(prefix: str, hidden: int, wide: int) -> Iterator[tuple[str, Expected]]:
    yield prefix + "gate_proj.weight", Expected((wide, hidden))
    yield prefix + "up_proj.weight", Expected((wide, hidden))
    yield prefix + "down_proj.weight", Expected((hidden, wide))


def _experts(prefix: str, config: ModelConfig) -> Iterator[tuple[str, Expected]]:
    hidden, wide = config.hidden, config.expert_intermediate
    if config.quantisation is None:
        yield prefix + "gate_up_proj", Expected((config.experts, 2 * wide, hidden))
        yield prefix + "down_proj", Expected((config.experts, hidden, wide))
        return
    quantisation = config.quantisation
    names = NVFP4_NAMES[quantisation.layout]
    for expert in range(config.experts):
        for part, (rows, columns) in {
            "gate_proj": (wide, hidden),
            "up_proj": (wide, hidden),
            "down_proj": (hidden, wide),
        }.items():
            name = f"{prefix}{expert}.{part}."
            yield name + names.codes, Expected((rows, columns // 2), "codes")
            yield name + names.scales, Expected((rows, columns // quantisation.group), "scales")
            yield name + names.scale_2, Expected((), "scalar")
            if quantisation.input_scales:
                yield name + names.input_scale, Expected((), "scalar")


def _vision(vision: VisionConfig, text_hidden: int) -> Iterator[tuple[str, Expected]]:
    tower, width = ENCODER + "vision_tower.", vision.hidden
    yield ENCODER + "embed_vision.embedding_projection.weight", Expected((text_hidden, width))
    yield tower + "patch_embedder.input_proj.weight", Expected((width, 3 * vision.patch**2))
    yield tower + "patch_embedder.position_embedding_table", Expected((2, vision.positions, width))
    if vision.standardize:
        yield tower + "std_bias", Expected((width,))
        yield tower + "std_scale", Expected((width,))
    queries, keys = vision.heads * vision.head_dim, vision.kv_heads * vision.head_dim
    linears: Mapping[str, tuple[int, int]] = {
        "self_attn.q_proj": (queries, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, queries),
        "mlp.gate_proj": (vision.intermediate, width),
        "mlp.up_proj": (vision.intermediate, width),
        "mlp.down_proj": (width, vision.intermediate),
    }
    for index in range(vision.layers):
        prefix = f"{tower}encoder.layers.{index}."
        for norm in LAYER_NORMS[:4]:
            yield f"{prefix}{norm}.weight", Expected((width,))
        yield prefix + "self_attn.q_norm.weight", Expected((vision.head_dim,))
        yield prefix + "self_attn.k_norm.weight", Expected((vision.head_dim,))
        for name, shape in linears.items():
            yield f"{prefix}{name}.linear.weight", Expected(shape)
            if vision.clipped:
                for bound in ("input_min", "input_max", "output_min", "output_max"):
                    yield f"{prefix}{name}.{bound}", Expected(())

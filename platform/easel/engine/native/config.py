"""What a checkpoint says about its model: config.json and generation_config.json as frozen values.

Owns: reading and checking these files; anything that this engine does not compute is refused by name, because a model
that runs with one flag ignored answers nonsense. Refuses to know: tensors, devices, and what a request overrides.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, Literal

from easel.errors import ConfigurationError

LayerKind = Literal["sliding", "full"]
KINDS: dict[str, LayerKind] = {"sliding_attention": "sliding", "full_attention": "full"}

# Settings of the Gemma family that change what is computed, with the values under which they change nothing here.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "hidden_activation": ("gelu_pytorch_tanh",),
    "attention_bias": (False,),
    "use_bidirectional_attention": (None, "vision"),
    "tie_word_embeddings": (True,),
    "enable_moe_block": (True, None),
    "hidden_size_per_layer_input": (0, None),
    "num_kv_shared_layers": (0, None),
    "use_double_wide_mlp": (False, None),
    "attn_logit_softcapping": (None,),
}


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary positions of one kind of layer. The first `rotated` of `head_dim / 2` pairs turn, the rest stand still."""

    theta: float
    head_dim: int
    rotated: int
    exponent_dim: int
    """The dimension that frequencies are spread over: pair i turns by `theta ** (-2 i / exponent_dim)` a position."""


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """One layer of the stack."""

    index: int
    kind: LayerKind
    head_dim: int
    kv_heads: int


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """As much of the vision tower as its tensors' names and shapes need. The tower itself is not run."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    patch: int
    positions: int
    standardize: bool
    clipped: bool


@dataclass(frozen=True, slots=True)
class Quantisation:
    """How routed experts are stored, in NVFP4. Everything else is stored as it is."""

    group: int = 16
    layout: Literal["modelopt", "compressed-tensors"] = "modelopt"
    """Whose names the tensors have, and whether the global scale multiplies or divides."""
    input_scales: bool = True
    """Whether scales for activations lie beside the weights. They are checked and not read."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The text model. Sizes in elements, `window` and `canvas_length` in positions."""

    vocab: int
    hidden: int
    intermediate: int
    heads: int
    layers: tuple[LayerConfig, ...]
    window: int
    canvas_length: int
    experts: int
    top_k: int
    expert_intermediate: int
    eps: float
    softcap: float
    max_positions: int
    ropes: Mapping[LayerKind, Rope]
    placeholder_ids: tuple[int, ...]
    """Ids that stand for images and sounds in a prompt; no sampler may produce them."""
    vision: VisionConfig | None = None
    quantisation: Quantisation | None = None

    def of_kind(self, kind: LayerKind) -> tuple[LayerConfig, ...]:
        """The layers of that kind, in order."""
        return tuple(layer for layer in self.layers if layer.kind == kind)


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """How the checkpoint wants to be decoded. Entropies in nats."""

    max_steps: int = 48
    entropy_bound: float = 0.1
    t_min: float = 0.4
    t_max: float = 0.8
    stability: int = 1
    confidence: float = 0.005
    eos_token_ids: tuple[int, ...] = ()


class _Reader:
    """A mapping whose missing or ill-typed keys are reported with the file and the path to the key."""

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self.data = data
        self.where = where

    def refuse(self, key: str, problem: str) -> ConfigurationError:
        return ConfigurationError(f"{self.where}: {key}: {problem}", param=key)

    def count(self, key: str, default: int | None = None, least: int = 1) -> int:
        value = self.data.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.refuse(key, f"an integer from {least} is needed, not {value!r}")
        return value

    def number(self, key: str, default: float | None = None, above: float | None = None) -> float:
        """Finite, and not below 0. `above`: nor at or below that."""
        value = self.data.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < inf:
            raise self.refuse(key, f"a number from 0 is needed, not {value!r}")
        if above is not None and value <= above:
            raise self.refuse(key, f"a number above {above:g} is needed, not {value!r}")
        return float(value)

    def section(self, key: str) -> _Reader:
        value = self.data.get(key)
        if not isinstance(value, Mapping):
            raise self.refuse(key, f"a mapping is needed, not {value!r}")
        return _Reader(value, f"{self.where}: {key}")

    def among(self, key: str, allowed: tuple[object, ...], default: object = None) -> Any:
        value = self.data.get(key, default)
        if value not in allowed:
            known = ", ".join(map(repr, allowed))
            raise self.refuse(key, f"{value!r} is not supported; supported: {known}")
        return value


def read_json(path: Path) -> Mapping[str, Any]:
    """An object from a JSON file. Raises `ConfigurationError` that names the file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigurationError(f"{path}: not JSON: {error}") from None
    if not isinstance(data, Mapping):
        raise ConfigurationError(f"{path}: an object is needed")
    return data


def read_model_config(folder: Path) -> ModelConfig:
    """The model that lies in `folder`. Raises `ConfigurationError` for what is missing or not supported."""
    quantised = folder / "hf_quant_config.json"
    return model_config(
        read_json(folder / "config.json"),
        read_json(quantised) if quantised.is_file() else None,
        where=str(folder / "config.json"),
    )


def model_config(
    data: Mapping[str, Any], quant: Mapping[str, Any] | None = None, where: str = "config.json"
) -> ModelConfig:
    """The model described by config.json's content and, where there is one, hf_quant_config.json's."""
    top = _Reader(data, where)
    top.among("model_type", ("diffusion_gemma",))
    top.among("tie_word_embeddings", (True,), True)
    text = top.section("text_config")
    text.among("model_type", ("diffusion_gemma_text",), "diffusion_gemma_text")
    for key, allowed in _NEUTRAL.items():
        text.among(key, allowed, allowed[0])
    layers = _layers(text)
    vocab = text.count("vocab_size", 262_144)
    ropes = {layer.kind: _rope(text, layer) for layer in layers}
    config = ModelConfig(
        vocab=vocab,
        hidden=text.count("hidden_size"),
        intermediate=text.count("intermediate_size"),
        heads=text.count("num_attention_heads"),
        layers=layers,
        window=text.count("sliding_window", 512),
        canvas_length=top.count("canvas_length", 256),
        experts=text.count("num_experts"),
        top_k=text.count("top_k_experts"),
        expert_intermediate=text.count("moe_intermediate_size"),
        eps=text.number("rms_norm_eps", 1e-6, above=0),
        softcap=text.number("final_logit_softcapping", 30.0, above=0),
        max_positions=text.count("max_position_embeddings", 131_072),
        ropes=ropes,
        placeholder_ids=_placeholders(data, vocab),
        vision=_vision(top) if isinstance(data.get("vision_config"), Mapping) else None,
        quantisation=_quantisation(data.get("quantization_config"), quant, where),
    )
    if config.top_k > config.experts:
        raise text.refuse("top_k_experts", f"{config.top_k} of {config.experts} experts")
    for layer in layers:
        if config.heads % layer.kv_heads:
            raise text.refuse("num_key_value_heads", f"{config.heads} heads do not divide by {layer.kv_heads}")
    return config


def _layers(text: _Reader) -> tuple[LayerConfig, ...]:
    count = text.count("num_hidden_layers", 30)
    pattern = ["full_attention" if index % 6 == 5 else "sliding_attention" for index in range(count)]
    types = text.data.get("layer_types") or pattern
    if not isinstance(types, list):
        raise text.refuse("layer_types", f"a list is needed, not {types!r}")
    if len(types) != count:
        raise text.refuse("layer_types", f"{len(types)} of them for {count} layers")
    for name in types:
        if name not in KINDS:
            raise text.refuse("layer_types", f"{name!r} is not supported; supported: {', '.join(KINDS)}")
    types = [*types[:-1], "full_attention"]  # the architecture forces the last one
    head_dim, kv_heads = text.count("head_dim", 256), text.count("num_key_value_heads", 4)
    if text.data.get("per_layer_config") is None:  # the published checkpoint's spelling; transformers writes the other
        full: dict[str, Any] = {"head_dim": text.count("global_head_dim", 512)}
        if text.data.get("num_global_key_value_heads") is not None and text.data.get("attention_k_eq_v", True):
            full["num_key_value_heads"] = text.count("num_global_key_value_heads")
        given = _Reader({str(i): full for i, name in enumerate(types) if name == "full_attention"}, text.where)
    else:
        given = text.section("per_layer_config")
    if strange := [key for key in given.data if not str(key).isdecimal()]:
        raise text.refuse("per_layer_config", f"layers go by number, and {strange[0]!r} is none")
    overrides = {int(key): given.section(key) for key in given.data}  # JSON may have "05" for 5
    layers = []
    for index, name in enumerate(types):
        override = overrides.get(index) or _Reader({}, given.where)
        for key in override.data:
            if key not in ("head_dim", "num_key_value_heads"):
                raise override.refuse(key, "not supported for one layer alone")
        layers.append(
            LayerConfig(
                index,
                KINDS[name],
                override.count("head_dim", head_dim),
                override.count("num_key_value_heads", kv_heads),
            )
        )
    for layer in layers:
        if layer.head_dim % 2:
            raise text.refuse("head_dim", f"{layer.head_dim} cannot be halved into pairs")
    for kind in set(KINDS.values()):
        shapes = {(layer.head_dim, layer.kv_heads) for layer in layers if layer.kind == kind}
        if len(shapes) > 1:
            raise text.refuse("per_layer_config", f"{kind} layers of different shapes are not supported")
    return tuple(layers)


_ROPE_DEFAULTS: dict[LayerKind, dict[str, Any]] = {
    "sliding": {"rope_type": "default", "rope_theta": 10_000.0},
    "full": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
}


def _rope(text: _Reader, layer: LayerConfig) -> Rope:
    name = next(name for name, kind in KINDS.items() if kind == layer.kind)
    given = _Reader({}, text.where) if text.data.get("rope_parameters") is None else text.section("rope_parameters")
    rope = _Reader(_ROPE_DEFAULTS[layer.kind], text.where) if given.data.get(name) is None else given.section(name)
    type_ = rope.among("rope_type", ("default", "proportional"), "default")
    theta, partial = rope.number("rope_theta", above=0), rope.number("partial_rotary_factor", 1.0)
    rope.among("factor", (1, 1.0, None))
    if partial > 1.0 or (partial < 1.0 and type_ != "proportional"):
        raise rope.refuse("partial_rotary_factor", "up to 1, and below 1 only with rope_type 'proportional'")
    return Rope(theta, layer.head_dim, int(partial * layer.head_dim // 2), layer.head_dim)


def _placeholders(data: Mapping[str, Any], vocab: int) -> tuple[int, ...]:
    keys = ("boi_token_id", "eoi_token_id", "image_token_id", "boa_token_id", "eoa_token_id", "audio_token_id",
            "video_token_id", "eoa_token_index")  # fmt: skip
    found = {data[key] for key in keys if isinstance(data.get(key), int)}
    return tuple(sorted(token for token in found if 0 <= token < vocab))


def _vision(top: _Reader) -> VisionConfig:
    vision = top.section("vision_config")
    vision.among("model_type", ("gemma4_vision",))
    return VisionConfig(
        layers=vision.count("num_hidden_layers", 16, least=0),
        hidden=vision.count("hidden_size", 768),
        intermediate=vision.count("intermediate_size", 3072),
        heads=vision.count("num_attention_heads", 12),
        kv_heads=vision.count("num_key_value_heads", 12),
        head_dim=vision.count("head_dim", 64),
        patch=vision.count("patch_size", 16),
        positions=vision.count("position_embedding_size", 10_240),
        standardize=bool(vision.data.get("standardize", False)),
        clipped=bool(vision.data.get("use_clipped_linears", False)),
    )


def _quantisation(inline: Any, beside: Mapping[str, Any] | None, where: str) -> Quantisation | None:
    """modelopt writes the same facts twice: into config.json and into a file beside it. One is enough."""
    if inline is None and beside is None:
        return None
    if beside is not None:
        entry = _Reader(beside, "hf_quant_config.json").section("quantization")
    else:
        entry = _Reader({"quantization_config": inline}, where).section("quantization_config")
        if entry.among("quant_method", ("modelopt", "modelopt_fp4", "compressed-tensors")) == "compressed-tensors":
            return _compressed_tensors(entry)
    entry.among("quant_algo", ("NVFP4",))
    entry.among("group_size", (16,), 16)
    return Quantisation()


def _compressed_tensors(entry: _Reader) -> Quantisation:
    """The layout of llm-compressor: one group of layers, all in NVFP4, activations quantised or not."""
    entry.among("format", ("nvfp4-pack-quantized",))
    entry.among("kv_cache_scheme", (None,))
    groups = entry.section("config_groups")
    if len(groups.data) != 1:
        raise entry.refuse("config_groups", f"one group is supported, not {len(groups.data)}")
    group = groups.section(next(iter(groups.data)))
    weights = group.section("weights")
    for key, value in {"num_bits": 4, "type": "float", "group_size": 16, "strategy": "tensor_group"}.items():
        weights.among(key, (value,))
    return Quantisation(layout="compressed-tensors", input_scales=group.data.get("input_activations") is not None)


def read_generation_defaults(folder: Path) -> GenerationDefaults:
    """How the checkpoint in `folder` wants to be decoded; where it says nothing, as the reference does."""
    path = folder / "generation_config.json"
    return generation_defaults(read_json(path) if path.is_file() else {}, str(path))


def generation_defaults(data: Mapping[str, Any], where: str = "generation_config.json") -> GenerationDefaults:
    """Defaults from generation_config.json's content. A key that is null counts as absent."""
    given = _Reader({key: value for key, value in data.items() if value is not None}, where)
    base = GenerationDefaults()
    bound = base.entropy_bound
    if "sampler_config" in given.data:
        sampler = given.section("sampler_config")
        sampler.among("_cls_name", ("EntropyBoundSamplerConfig",), "EntropyBoundSamplerConfig")
        bound = sampler.number("entropy_bound")
    eos = given.data.get("eos_token_id", [])
    eos = eos if isinstance(eos, list) else [eos]
    if not all(type(token) is int for token in eos):
        raise given.refuse("eos_token_id", f"an integer or some are needed, not {eos!r}")
    defaults = GenerationDefaults(
        max_steps=given.count("max_denoising_steps", base.max_steps),
        entropy_bound=bound,
        t_min=given.number("t_min", base.t_min),
        t_max=given.number("t_max", base.t_max),
        stability=given.count("stability_threshold", base.stability, least=0),
        confidence=given.number("confidence_threshold", base.confidence),
        eos_token_ids=tuple(eos),
    )
    if defaults.t_max == 0:
        raise given.refuse("t_min", f"a schedule from {defaults.t_max} to {defaults.t_min} has no temperature above 0")
    return defaults

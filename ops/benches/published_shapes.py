"""DiffusionGemma 26B-A4B in its published shapes with random weights, made on the GPU: nothing is read from disk.

Routed experts are random NVFP4 codes with group scales around one, packed as a checkpoint's would be; everything else
is normal with a small deviation, norms are ones. A step over it moves the bytes and does the products of the real
model; what it says means nothing.
"""

from __future__ import annotations

import torch

from benches.shapes import CONFIG
from easel.engine.native.config import ModelConfig, model_config
from easel.engine.native.kernels.packing import Nvfp4, PackedExperts, pack_experts
from easel.engine.native.weights import GatedWeights, LayerWeights, ModelWeights


def published_config(layers: int = 30) -> ModelConfig:
    """The published model's; with fewer layers for a quick look."""
    text = {**CONFIG["text_config"], "num_hidden_layers": layers}
    return model_config({**CONFIG, "text_config": text}, {"quantization": {"quant_algo": "NVFP4", "group_size": 16}})


def random_weights(config: ModelConfig, seed: int = 0) -> ModelWeights:
    """About 18 GB for the published shapes."""
    torch.manual_seed(seed)

    def normal(*shape: int, deviation: float = 0.02) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.bfloat16, device="cuda").mul_(deviation)

    def ones(size: int = config.hidden) -> torch.Tensor:
        return torch.ones(size, dtype=torch.bfloat16, device="cuda")

    def gated() -> GatedWeights:
        return GatedWeights(normal(2 * config.intermediate, config.hidden), normal(config.hidden, config.intermediate))

    layers = []
    for layer in config.layers:
        projected = config.heads + layer.kv_heads * (2 if layer.kind == "sliding" else 1)
        layers.append(
            LayerWeights(
                input_norm=ones(),
                qkv=normal(projected * layer.head_dim, config.hidden),
                qk_norm=torch.ones(
                    config.heads + layer.kv_heads, layer.head_dim, dtype=torch.bfloat16, device="cuda"
                ).mul_(layer.head_dim**-0.25),
                out=normal(config.hidden, config.heads * layer.head_dim),
                post_attention_norm=ones(),
                mlp_norm=ones(),
                mlp=gated(),
                mlp_post_norm=ones(),
                router_norm=ones().mul_(config.hidden**-0.5),
                router=normal(config.experts, config.hidden, deviation=1.0),
                per_expert_scale=torch.ones(config.experts, device="cuda"),
                experts_norm=ones(),
                experts=random_experts(config),
                experts_post_norm=ones(),
                post_norm=ones(),
                encode_scalar=ones(1),
                decode_scalar=ones(1),
            )
        )
    return ModelWeights(
        embedding=normal(config.vocab, config.hidden),
        conditioning_norm=ones(),
        conditioning=gated(),
        layers=tuple(layers),
        norm=ones(),
    )


def random_projection(*shape: int) -> Nvfp4:
    """One of all experts, [experts, N, K], with group scales from 0.5 to 2 and weights of about 0.02."""
    codes = torch.randint(0, 256, (*shape[:-1], shape[-1] // 2), dtype=torch.uint8, device="cuda")
    scales = torch.rand(*shape[:-1], shape[-1] // 16, device="cuda").mul_(1.5).add_(0.5).to(torch.float8_e4m3fn)
    return Nvfp4(codes, scales, torch.full((shape[0],), 0.005, device="cuda"))


def random_experts(config: ModelConfig) -> PackedExperts:
    """One layer's."""
    count, wide, hidden = config.experts, config.expert_intermediate, config.hidden
    gate, up = random_projection(count, wide, hidden), random_projection(count, wide, hidden)
    return pack_experts(gate, up, random_projection(count, hidden, wide))

"""The published shapes of DiffusionGemma 26B-A4B, as its config.json has them: what every bench of a step uses."""

from __future__ import annotations

import copy
from typing import Any

CONFIG: dict[str, Any] = {
    "model_type": "diffusion_gemma",
    "tie_word_embeddings": True,
    "canvas_length": 256,
    "boi_token_id": 255_999,
    "eoi_token_id": 258_882,
    "image_token_id": 258_880,
    "text_config": {
        "model_type": "diffusion_gemma_text",
        "vocab_size": 262_144,
        "hidden_size": 2816,
        "intermediate_size": 2112,
        "num_hidden_layers": 30,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "num_global_key_value_heads": 2,
        "head_dim": 256,
        "global_head_dim": 512,
        "sliding_window": 1024,
        "num_experts": 128,
        "top_k_experts": 8,
        "moe_intermediate_size": 704,
        "max_position_embeddings": 262_144,
        "rms_norm_eps": 1e-6,
        "final_logit_softcapping": 30.0,
    },
}

VISION: dict[str, Any] = {
    "model_type": "gemma4_vision", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
    "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 72, "patch_size": 16, "pooling_kernel_size": 3,
    "position_embedding_size": 10_240, "default_output_length": 280, "standardize": True, "use_clipped_linears": False,
}  # fmt: skip

VLLM_QUANTISED: dict[str, Any] = {
    "quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16,
    "ignore": [
        "lm_head", "*self_attn*", "*router*", "*self_conditioning*", "*vision_tower*", "*embed_vision*", "*.mlp.*",
    ],
}  # fmt: skip
"""What config.json tells vLLM of NVFP4 experts in modelopt's layout."""

_ROPE: dict[str, Any] = {
    "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1e6, "rope_type": "proportional"},
    "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
}


def whole_config() -> dict[str, Any]:
    """config.json as other engines want it too: with what `CONFIG` leaves to its default. Without quantisation."""
    text = CONFIG["text_config"] | {
        "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0,
        "hidden_activation": "gelu_pytorch_tanh", "initializer_range": 0.02, "rope_parameters": _ROPE,
        "dtype": "bfloat16",
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 5, "tie_word_embeddings": True,
        "use_bidirectional_attention": "vision",
    }  # fmt: skip
    whole = CONFIG | {
        "architectures": ["DiffusionGemmaForBlockDiffusion"], "text_config": text, "vision_config": VISION,
        "dtype": "bfloat16", "eos_token_id": 1, "self_conditioning_size": 2112,
    }  # fmt: skip
    return copy.deepcopy(whole)

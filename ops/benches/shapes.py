"""The published shapes of DiffusionGemma 26B-A4B, as its config.json has them: what every bench of a step uses."""

from __future__ import annotations

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

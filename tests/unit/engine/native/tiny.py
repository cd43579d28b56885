"""Small random DiffusionGemma models, written by transformers, so that both sides read the same checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import DiffusionGemmaForBlockDiffusion
from transformers.models.diffusion_gemma.configuration_diffusion_gemma import DiffusionGemmaConfig

EOS = 1
TEXT: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "global_head_dim": 16,
    "num_global_key_value_heads": 1,
    "sliding_window": 10,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 16,
    "use_bidirectional_attention": "vision",
}
VISION: dict[str, Any] = {
    "model_type": "gemma4_vision",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "position_embedding_size": 32,
}


def reference(canvas_length: int = 8, seed: int = 0, embedding: float = 0.25, **text: Any) -> Any:
    """transformers' model in fp32 with weights wide enough for the layers to matter, norms and scalars included.

    `embedding`: spread of the embedding, which is the head too: with 0.25 no canvas converges, with 1 they do.
    """
    config = DiffusionGemmaConfig(text_config=TEXT | text, vision_config=VISION, canvas_length=canvas_length)
    config.text_config._attn_implementation = "sdpa"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = DiffusionGemmaForBlockDiffusion(config).eval()
        for name, tensor in model.state_dict().items():
            if name.endswith(("norm.weight", "router.scale", "per_expert_scale")) or "layernorm" in name:
                tensor.copy_(1 + 0.3 * torch.randn_like(tensor))
            elif name.endswith("layer_scalar"):
                tensor.copy_(0.5 + torch.rand_like(tensor))
            elif tensor.is_floating_point() and "vision" not in name:
                # Wider layers amplify the last bits over the steps until any two computations part.
                tensor.copy_((embedding if "embed" in name or "lm_head" in name else 0.1) * torch.randn_like(tensor))
    return model


def save(model: Any, folder: Path, **generation: Any) -> Path:
    """The model as a checkpoint folder."""
    for key, value in ({"eos_token_id": [EOS], "pad_token_id": 0} | generation).items():
        setattr(model.generation_config, key, value)
    model.save_pretrained(folder)
    return folder

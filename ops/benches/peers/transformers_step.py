"""What a denoising step takes in transformers' own generate(), published shapes, bf16 experts, random weights.

    PYTHONPATH=ops python ops/benches/peers/transformers_step.py 1 4 8

A step's time is the difference between generating one canvas in 12 steps and in 4, over 8: prefill cancels out.
Prompts have 512 tokens, nothing converges. Needs about 54 GB on the GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
import transformers
from transformers import DiffusionGemmaForBlockDiffusion
from transformers.models.diffusion_gemma import modeling_diffusion_gemma as modeling
from transformers.models.diffusion_gemma.configuration_diffusion_gemma import DiffusionGemmaConfig

from benches.shapes import CONFIG

VISION = {
    "model_type": "gemma4_vision", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 64, "position_embedding_size": 64,
}  # fmt: skip
FEW, MANY = 4, 12


def share_experts(layers: int) -> None:
    """Have the second tower built with the first one's experts: both are tied later, and do not fit a card before."""
    built, build = [], modeling.DiffusionGemmaTextExperts.__init__

    def build_or_share(self: torch.nn.Module, *given: object, **named: object) -> None:
        if len(built) < layers:
            build(self, *given, **named)
        else:
            with torch.device("meta"):
                build(self, *given, **named)
            twin = built[len(built) - layers]
            self.gate_up_proj, self.down_proj = twin.gate_up_proj, twin.down_proj
        built.append(self)

    modeling.DiffusionGemmaTextExperts.__init__ = build_or_share


def main() -> None:
    """Print one JSON line for each number of canvases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("canvases", type=int, nargs="*", default=[1, 4, 8])
    arguments = parser.parse_args()
    text = {k: v for k, v in CONFIG["text_config"].items() if k != "model_type"}
    config = DiffusionGemmaConfig(text_config=text, vision_config=VISION, canvas_length=256)
    share_experts(text["num_hidden_layers"])
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = DiffusionGemmaForBlockDiffusion(config).eval()
    torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.02)
    print(f"transformers {transformers.__version__}, {torch.cuda.memory_allocated() / 1e9:.1f} GB", flush=True)
    for canvases in arguments.canvases:
        prompts = torch.randint(10, 250_000, (canvases, 512), device="cuda")
        seconds(model, prompts, 2)
        few, many = (statistics.median(seconds(model, prompts, n) for _ in range(3)) for n in (FEW, MANY))
        row = {"canvases": canvases, "step_ms": round((many - few) / (MANY - FEW) * 1e3, 2)}
        print(json.dumps(row | {"peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 1)}), flush=True)


def seconds(model: DiffusionGemmaForBlockDiffusion, prompts: torch.Tensor, steps: int) -> float:
    """Of one canvas a prompt in exactly so many steps."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    with torch.no_grad():
        model.generate(
            prompts, max_new_tokens=256, max_denoising_steps=steps, t_min=0.4, t_max=0.8, stability_threshold=1,
            confidence_threshold=1e-9, eos_token_id=1, pad_token_id=0, bos_token_id=2,
        )  # fmt: skip
    torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()

"""vLLM's own server over the published shapes with random weights: what `service_h100.py --peer` measures beside us.

    PYTHONPATH=ops python ops/benches/peers/vllm_serve.py diffusion --tokenizer FOLDER --port 8001 [--steps 16]
    PYTHONPATH=ops python ops/benches/peers/vllm_serve.py autoregressive --tokenizer FOLDER --port 8002

`diffusion` is DiffusionGemma 26B-A4B with NVFP4 experts, no more than `--steps` denoising steps a canvas;
`autoregressive` is its twin, Gemma 4 26B-A4B, with the same experts. The tokenizer is taken from FOLDER, such as
`synthetic_checkpoint.py` writes. Becomes the server: end it by its pid. With transformers 5.17, whose configuration of
Gemma 4 has a head size for each layer, vLLM 0.26 does not start the twin: 5.12.1 did
(2026-11-27), without its bound on tokenizers.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from benches.shapes import VLLM_QUANTISED, whole_config

TWIN = {
    "model_type": "gemma4_text", "architectures": ["Gemma4ForCausalLM"], "enable_moe_block": True,
    "attention_k_eq_v": True, "hidden_size_per_layer_input": 0, "use_bidirectional_attention": None,
}  # fmt: skip
"""What differs from DiffusionGemma's text part."""
SEATS = {"diffusion": 8, "autoregressive": 32}
"""vLLM serves diffusion to 8 requests at a time unless told otherwise, because of what more would take in memory."""


def config_of(kind: str) -> dict[str, Any]:
    """config.json."""
    whole = whole_config()
    if kind == "autoregressive":
        whole = whole["text_config"] | TWIN
    return whole | {"quantization_config": VLLM_QUANTISED}


def folder_of(kind: str, tokenizer: Path, steps: int) -> Path:
    """A folder with what vLLM needs beside weights."""
    folder = Path(tempfile.mkdtemp(prefix=f"vllm-{kind}-"))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tokenizer / name, folder / name)
    (folder / "config.json").write_text(json.dumps(config_of(kind)))
    generation: dict[str, Any] = {"eos_token_id": [1], "pad_token_id": 0, "bos_token_id": 2}
    if kind == "diffusion":
        generation |= {
            "max_denoising_steps": steps, "t_min": 0.4, "t_max": 0.8, "stability_threshold": 1,
            "confidence_threshold": 0.005,
            "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.1},
        }  # fmt: skip
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=tuple(SEATS))
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--memory", type=float, default=0.85, help="part of the GPU's memory")
    parser.add_argument("--moe", help="back end of the experts; vLLM chooses unless given")
    arguments = parser.parse_args()
    folder = folder_of(arguments.kind, arguments.tokenizer, arguments.steps)
    command = [
        sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(folder), "--load-format", "dummy",
        "--served-model-name", "peer", "--host", "127.0.0.1", "--port", str(arguments.port),
        "--max-model-len", "4096", "--max-num-batched-tokens", "4096", "--max-num-seqs", str(SEATS[arguments.kind]),
        "--gpu-memory-utilization", str(arguments.memory), "--attention-backend", "TRITON_ATTN",
        "--no-enable-prefix-caching", "--disable-log-stats",
        *(["--language-model-only"] if arguments.kind == "diffusion" else []),
        *(["--moe-backend", arguments.moe] if arguments.moe else []),
    ]  # fmt: skip
    environment = os.environ | {"VLLM_NO_USAGE_STATS": "1", "VLLM_USE_FLASHINFER_SAMPLER": "0", "HF_HUB_OFFLINE": "1"}
    os.execve(sys.executable, command, environment)


if __name__ == "__main__":
    main()

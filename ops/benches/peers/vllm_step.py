"""What a step takes in vLLM, published shapes, NVFP4 experts, random weights, 512-token prompts.

    PYTHONPATH=ops python ops/benches/peers/vllm_step.py --canvases 1 4 8 [--moe humming]

Two canvases a request at 48 steps each, nothing converges; a step is the wall-clock time over 2 * 49, because vLLM
spends one further forward on committing a canvas.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from pathlib import Path

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "HF_HUB_OFFLINE": "1",
}  # fmt: skip

import torch
import vllm
from vllm import LLM, SamplingParams

from benches.shapes import VLLM_QUANTISED, whole_config

STEPS, CANVASES = 48, 2


def checkpoint(folder: Path) -> None:
    """A folder with what vLLM needs beside weights."""
    shapes = whole_config()
    shapes["vision_config"] |= {"num_hidden_layers": 2}  # not run, and built all the same
    whole = shapes | {"quantization_config": VLLM_QUANTISED}
    generation = {
        "max_new_tokens": 256, "max_denoising_steps": STEPS, "t_min": 0.4, "t_max": 0.8, "stability_threshold": 1,
        "confidence_threshold": 0.005, "eos_token_id": [1], "pad_token_id": 0, "bos_token_id": 2,
        "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.1},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(whole), encoding="utf-8")
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")


def main() -> None:
    """Print one JSON line for each number of canvases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--canvases", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--moe", help="back end of the experts; unset: vLLM's choice")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    checkpoint(folder)
    began = time.perf_counter()
    llm = LLM(
        model=str(folder), load_format="dummy", skip_tokenizer_init=True, max_model_len=4096,
        max_num_seqs=max(arguments.canvases), max_num_batched_tokens=4096, gpu_memory_utilization=0.8,
        language_model_only=True, enable_prefix_caching=False, disable_log_stats=True,
        attention_config={"backend": "TRITON_ATTN"}, **({"moe_backend": arguments.moe} if arguments.moe else {}),
    )  # fmt: skip
    print(f"vllm {vllm.__version__}, {arguments.moe or 'default'}, {time.perf_counter() - began:.0f} s", flush=True)
    sampling = SamplingParams(max_tokens=256 * CANVASES, temperature=1.0, ignore_eos=True, detokenize=False)
    for canvases in arguments.canvases:
        seconds(llm, sampling, canvases)
        took = seconds(llm, sampling, canvases)
        row = {"canvases": canvases, "step_ms": round(took / (CANVASES * (STEPS + 1)) * 1e3, 2)}
        print(json.dumps(row | {"peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 1)}), flush=True)


def seconds(llm: LLM, sampling: SamplingParams, canvases: int) -> float:
    """Of so many requests at a time."""
    prompts = [{"prompt_token_ids": random.choices(range(10, 250_000), k=512)} for _ in range(canvases)]
    torch.cuda.synchronize()
    began = time.perf_counter()
    llm.generate(prompts, sampling, use_tqdm=False)
    torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()

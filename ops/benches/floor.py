"""The least time a denoising step can take on a GPU.

For each part the larger of its bytes over the copy ceiling and its operations over the product ceiling, summed.
Ceilings are measured, shapes come from the model's configuration.
"""

from __future__ import annotations

import statistics

import torch

from easel.engine.native.config import ModelConfig

NVFP4_BYTES = 0.5 + 1 / 16
"""Bytes of one weight: half a byte of code and a sixteenth of a one-byte scale."""


def ceilings() -> dict[str, float]:
    """`copy_tb_s`: bytes read plus written of a large device copy; `bf16_tflop_s`: an 8192^3 product of random data."""
    source = torch.randn(2**30, dtype=torch.bfloat16, device="cuda")
    target = torch.empty_like(source)
    copy = 2 * source.nbytes / _median_s(lambda: target.copy_(source)) / 1e12
    left, right = (torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    product = 2 * 8192**3 / _median_s(lambda: torch.mm(left, right)) / 1e12
    return {"copy_tb_s": round(copy, 3), "bf16_tflop_s": round(product, 1)}


def floor_ms(
    config: ModelConfig, canvases: int, context: int, experts_touched: float, limits: dict[str, float]
) -> dict[str, float]:
    """Milliseconds by part, and `total`, of one denoising step of so many canvases after `context` cached tokens."""
    rows, hidden, layers = canvases * config.canvas_length, config.hidden, len(config.layers)
    expert = 3 * hidden * config.expert_intermediate  # weights of one
    routed = _part(layers * experts_touched * expert * NVFP4_BYTES, layers * 2 * rows * config.top_k * expert, limits)
    dense = layers * 3 * hidden * config.intermediate + 3 * hidden * config.intermediate
    keys = products = 0.0
    for layer in config.layers:
        parts = config.heads * 2 + layer.kv_heads * (2 if layer.kind == "sliding" else 1)
        dense += hidden * layer.head_dim * parts + hidden * config.experts
        cached = min(context, config.window - 1) if layer.kind == "sliding" else context
        seen = cached + config.canvas_length
        keys += canvases * cached * layer.kv_heads * layer.head_dim * 2 * 2
        products += 4 * rows * seen * config.heads * layer.head_dim
    head = config.vocab * hidden
    parts_ms = {
        "experts": routed,
        "dense": _part(2 * dense, 2 * rows * dense, limits),
        "attention": _part(keys, products, limits),
        "vocabulary": 2 * _part(2 * head, 2 * rows * head, limits),
    }
    return {**parts_ms, "total": sum(parts_ms.values())}


def _part(moved: float, operations: float, limits: dict[str, float]) -> float:
    return 1e3 * max(moved / (limits["copy_tb_s"] * 1e12), operations / (limits["bf16_tflop_s"] * 1e12))


def _median_s(work, repeats: int = 15) -> float:  # type: ignore[no-untyped-def]
    times = []
    for _ in range(repeats):
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record()
        work()
        after.record()
        after.synchronize()
        times.append(before.elapsed_time(after) / 1e3)
    return statistics.median(times[3:])

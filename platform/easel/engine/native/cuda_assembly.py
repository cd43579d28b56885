"""Puts together what decodes on a GPU: KV pools, inputs, model, vocabulary end, runner.

Owns: their sizes, and the order in which memory is taken: weights, then everything a step needs beside the cache, then
the cache, then graphs. Nothing is allocated afterwards but what a preempted canvas is parked in, so what has loaded
does not run out of memory later. Refuses to know: files, and what a CPU needs instead (`assembly`).
"""

from __future__ import annotations

import logging

import torch

from easel.engine.native.attention import KvTensors
from easel.engine.native.config import GenerationDefaults, LayerKind, ModelConfig
from easel.engine.native.cuda_model import CudaModel
from easel.engine.native.cuda_runner import CudaRunner
from easel.engine.native.group_inputs import GroupInputs
from easel.engine.native.kernels.controls import MOST_SPREAD
from easel.engine.native.kernels.vocabulary import VocabularyEnd
from easel.engine.native.kv_cache import KvCache
from easel.engine.native.noise import Noise
from easel.engine.native.pool_sizes import PoolSizes, block_bytes
from easel.engine.native.weights import ModelWeights
from easel.errors import ConfigurationError
from easel.protocol import GROUP_ROWS

log = logging.getLogger(__name__)

BF16_BYTES = 2
GRAPH_BYTES = 24 * 2**20
"""Kept for each CUDA graph: what the driver needs for its launches, of which a forward has some 400."""
SPARE_BYTES = 256 * 2**20
"""Kept for parked canvases (1.5 MB each) and for what cuBLAS and the allocator round up."""


def build_runner(config: ModelConfig, weights: ModelWeights, defaults: GenerationDefaults, kv: KvCache, noise: Noise,
                 slots: int, context: int, most_written: int, deterministic: bool = False) -> CudaRunner:  # fmt: skip
    """A runner for up to `slots` canvases of sequences of up to `context` tokens, `most_written` written in a step.

    A step takes every canvas and one round of prefill in one forward; more is taken in several.
    Raises `ConfigurationError` for another type than bf16, for shapes that the kernels do not have, and for a
    temperature schedule that the vocabulary end cannot hold.
    """
    if weights.embedding.dtype != torch.bfloat16:
        raise ConfigurationError("dtype: quantised experts run in bfloat16 on a GPU", param="dtype")
    _check_shapes(config)
    if 2 * config.softcap > MOST_SPREAD * min(defaults.t_min, defaults.t_max):
        raise ConfigurationError(
            f"t_min: {defaults.t_min} with a softcap of {config.softcap}: masses of tokens would not fit their range",
            param="t_min",
        )
    device = weights.embedding.device
    groups = slots + -(-most_written // GROUP_ROWS)
    widths: dict[LayerKind, int] = {
        "full": kv.blocks_for(context + config.canvas_length),
        "sliding": kv.sliding_blocks_for(context + config.canvas_length, most_written) + 1,
    }
    inputs = GroupInputs(groups, widths, device)
    model = CudaModel(config, weights, pool_tensors(config, kv, device), inputs, kv.block_tokens, deterministic)
    end = VocabularyEnd(weights.embedding, config.softcap, slots, config.placeholder_ids)
    return CudaRunner(model, end, defaults, noise, slots)


def _check_shapes(config: ModelConfig) -> None:
    dims = {layer.head_dim for layer in config.layers}
    for name, value, fits, needed in (
        ("canvas_length", config.canvas_length, config.canvas_length <= GROUP_ROWS, f"{GROUP_ROWS} at the most"),
        ("hidden_size", config.hidden, config.hidden % 8 == 0, "a multiple of 8"),
        ("num_experts", config.experts, config.experts.bit_count() == 1, "a power of two"),
        ("head_dim", sorted(dims), all(dim >= 16 and dim.bit_count() == 1 for dim in dims), "powers of two from 16"),
    ):
        if not fits:
            raise ConfigurationError(f"{name}: {value}, and kernels on a GPU take {needed}", param=name)


def build_sized(config: ModelConfig, weights: ModelWeights, defaults: GenerationDefaults, sizes: PoolSizes,
                block_tokens: int, noise: Noise, slots: int, context: int, most_written: int, memory_fraction: float,
                grow: bool, deterministic: bool = False) -> tuple[CudaRunner, KvCache]:  # fmt: skip
    """The same with pools of the size that there is room for, and the pools' accounts.

    `memory_fraction`: part of the GPU's memory that may be in use in the end, by whomever. `grow`: whether to take
    more than `sizes` want. Raises `ConfigurationError` where there is too little room.
    """
    device = weights.embedding.device
    try:
        smallest = KvCache(1, 1, block_tokens, config.window)
        runner = build_runner(config, weights, defaults, smallest, noise, slots, context, most_written,
                              deterministic)  # fmt: skip
        runner.warm_up()
    except torch.OutOfMemoryError:
        raise ConfigurationError(
            f"slots: no room for the work space of {slots} canvases beside the weights; lower slots", param="slots"
        ) from None
    room = free_bytes(device, memory_fraction) - runner.graphs * GRAPH_BYTES - SPARE_BYTES
    blocks = sizes.within(room, block_bytes(config, block_tokens, BF16_BYTES), grow)
    kv = KvCache(*blocks, block_tokens, config.window)
    runner.model.kv = pool_tensors(config, kv, device)
    log.info(
        "%.2f GB of weights and work space, %.2f GB of KV cache: %s",
        torch.cuda.memory_allocated(device) / 1e9 - _pool_gb(runner.model.kv),
        _pool_gb(runner.model.kv),
        "every slot may grow to context_tokens"
        if all(has >= wanted for has, wanted in zip(blocks, sizes.wanted, strict=True))
        else f"{blocks[0] * block_tokens} tokens for {slots} slots of {context}, so sequences may be preempted",
    )
    return runner, kv


def pool_tensors(config: ModelConfig, kv: KvCache, device: torch.device) -> KvTensors:
    """Keys and values for all of the pools' blocks."""
    rows: dict[LayerKind, int] = {
        "full": kv.full.blocks * kv.block_tokens,
        "sliding": kv.sliding.blocks * kv.block_tokens,
    }
    return KvTensors(config, rows, torch.bfloat16, str(device))


def free_bytes(device: torch.device, fraction: float) -> int:
    """Bytes until `fraction` of the GPU's memory is in use, counting what anybody uses now."""
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return int(total * fraction) - (total - free)


def _pool_gb(kv: KvTensors) -> float:
    return sum(tensor.nbytes for tensor in (*kv.keys, *kv.values)) / 1e9

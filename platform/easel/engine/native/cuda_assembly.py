"""Puts together what decodes on a GPU: KV pools, inputs, model, vocabulary end, runner.

Owns: their sizes. Refuses to know: files, and what a CPU needs instead (`assembly`).
"""

from __future__ import annotations

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
from easel.engine.native.weights import ModelWeights
from easel.errors import ConfigurationError
from easel.protocol import GROUP_ROWS


def build_runner(config: ModelConfig, weights: ModelWeights, defaults: GenerationDefaults, kv: KvCache, noise: Noise,
                 slots: int, context: int, most_written: int) -> CudaRunner:  # fmt: skip
    """A runner for up to `slots` canvases of sequences of up to `context` tokens, `most_written` written in a step.

    A step takes every canvas and one round of prefill in one forward; more is taken in several.
    Raises `ConfigurationError` for another type than bf16, and for a temperature schedule that the vocabulary end
    cannot hold.
    """
    if weights.embedding.dtype != torch.bfloat16:
        raise ConfigurationError("dtype: quantised experts run in bfloat16 on a GPU", param="dtype")
    if 2 * config.softcap > MOST_SPREAD * min(defaults.t_min, defaults.t_max):
        raise ConfigurationError(
            f"t_min: {defaults.t_min} with a softcap of {config.softcap}: masses of tokens would not fit their range",
            param="t_min",
        )
    device = weights.embedding.device
    rows: dict[LayerKind, int] = {
        "full": kv.full.blocks * kv.block_tokens,
        "sliding": kv.sliding.blocks * kv.block_tokens,
    }
    tensors = KvTensors(config, rows, torch.bfloat16, str(device))
    groups = slots + -(-most_written // GROUP_ROWS)
    widths: dict[LayerKind, int] = {
        "full": kv.blocks_for(context + config.canvas_length),
        "sliding": kv.sliding_blocks_for(context + config.canvas_length, most_written) + 1,
    }
    inputs = GroupInputs(groups, widths, device)
    model = CudaModel(config, weights, tensors, inputs, kv.block_tokens)
    end = VocabularyEnd(weights.embedding, config.softcap, slots, config.placeholder_ids)
    return CudaRunner(model, end, defaults, noise, slots)

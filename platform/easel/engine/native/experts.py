"""The routed experts of one layer, in plain torch: which experts a row goes to, and their weighted sum.

Owns: routing and the grouped products. A kernel that reads NVFP4 in registers replaces `run_experts` and keeps its
meaning. Refuses to know: sequences, and how the weights are stored.
"""

from __future__ import annotations

import torch
from torch.nn.functional import gelu, linear

from easel.engine.native.kernels.packing import PackedExperts
from easel.engine.native.weights import ExpertWeights


def route(
    rows: torch.Tensor, router: torch.Tensor, per_expert_scale: torch.Tensor, top_k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Experts of each row: weights fp32 and indices int64, both [rows, top_k].

    `rows` [rows, hidden] are normed and scaled for the router already.
    """
    chances = torch.softmax(linear(rows, router), dim=-1, dtype=torch.float32)
    weights, index = torch.topk(chances, top_k, dim=-1)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights * per_expert_scale[index], index


def run_experts(
    rows: torch.Tensor, index: torch.Tensor, weights: torch.Tensor, experts: ExpertWeights | PackedExperts
) -> torch.Tensor:
    """`sum over k of weights[r, k] * expert[index[r, k]](rows[r])`, [rows, hidden].

    Rows are sorted by expert, so that each expert is two products over its own rows; experts without rows cost nothing.
    Raises `TypeError` for packed experts: only the kernel reads those.
    """
    if isinstance(experts, PackedExperts):
        raise TypeError("packed experts are read by kernels.experts.run_experts alone")
    top_k, count = index.shape[1], experts.down.shape[0]
    flat = index.flatten()
    order = flat.argsort(stable=True)  # [pairs]: (row, k) pairs, one expert's after another's
    inputs = rows.index_select(0, order // top_k)
    pairs = torch.bincount(flat, minlength=count).tolist()

    wide = inputs.new_empty(inputs.shape[0], experts.gate_up.shape[1])
    _grouped(inputs, experts.gate_up, pairs, wide)
    gate, up = wide.chunk(2, dim=-1)
    narrow = torch.empty_like(inputs)
    _grouped(gelu(gate, approximate="tanh").mul_(up), experts.down, pairs, narrow)

    by_row = torch.empty_like(narrow).index_copy_(0, order, narrow).view(*index.shape, -1)  # [rows, top_k, hidden]
    return (by_row * weights.to(rows.dtype).unsqueeze(-1)).sum(dim=1)


def _grouped(inputs: torch.Tensor, weights: torch.Tensor, pairs: list[int], out: torch.Tensor) -> None:
    """`out[group e] = inputs[group e] @ weights[e].T`, groups one after another with `pairs[e]` rows each."""
    start = 0
    for expert, length in enumerate(pairs):
        if length:
            group = slice(start, start + length)
            torch.mm(inputs[group], weights[expert].t(), out=out[group])
            start += length

"""The kernel that makes a step's first hidden states from tokens.

Owns: the scaled embedding, on canvas rows joined by the self-conditioning and normed, and the first layer's norm of it.
Refuses to know: the gated block that makes the conditioning. Rounds where the plain model does (`Model._inputs`).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from easel.engine.native.kernels.groups import Groups


@triton.jit
def _embed_kernel(
    tokens,
    embedding,
    conditioning,
    length,
    causal,
    next_norm,
    x,
    normed,
    scale,
    eps,
    rows_each: tl.constexpr,
    width: tl.constexpr,
    block: tl.constexpr,
):
    number = tl.program_id(0)
    group = number // rows_each
    at = tl.arange(0, block)
    inside = at < width
    # A row that holds nothing reads nothing and is zero: its token may be anything.
    holds = number - group * rows_each < tl.load(length + group)
    encodes = tl.load(causal + group) != 0
    row = number.to(tl.int64) * width
    kept = x.dtype.element_ty
    token = tl.load(tokens + number, mask=holds, other=0).to(tl.int64)
    wide = tl.load(embedding + token * width + at, mask=inside & holds, other=0.0).to(tl.float32)
    wide = (wide * scale).to(kept).to(tl.float32)
    joins = holds & (encodes == 0)
    joined = wide + tl.load(conditioning + row + at, mask=inside & joins, other=0.0).to(tl.float32)
    joined = joined.to(kept).to(tl.float32)
    joined = joined * tl.rsqrt(tl.sum(joined * joined, axis=0) / width + eps)
    first = tl.where(joins, joined, wide).to(kept)
    tl.store(x + row + at, first, mask=inside)
    wide = first.to(tl.float32)
    by = tl.load(next_norm + at, mask=inside, other=0.0).to(tl.float32)
    unit = wide * tl.rsqrt(tl.sum(wide * wide, axis=0) / width + eps)
    tl.store(normed + row + at, (unit * by).to(kept), mask=inside)


def embed(
    tokens: torch.Tensor,
    embedding: torch.Tensor,
    conditioning: torch.Tensor,
    groups: Groups,
    next_norm: torch.Tensor,
    eps: float,
    x: torch.Tensor,
    normed: torch.Tensor,
) -> None:
    """`x` [rows, hidden] of `tokens` int32 [rows], and `x` normed by the first layer's `next_norm` [hidden].

    Encoding rows: `embedding[token] * sqrt(hidden)`. Canvas rows: the same plus `conditioning` [rows, hidden], over the
    root mean square, without a weight. Rows that hold nothing: zeros. Raises `ValueError` on shapes that do not fit.
    """
    rows, width = x.shape
    for name, tensor in {"conditioning": conditioning, "x": x, "normed": normed}.items():
        if tensor.shape != x.shape or not tensor.is_contiguous():
            raise ValueError(f"{name}: {list(tensor.shape)}, contiguous {[rows, width]} wanted")
    block = max(16, triton.next_power_of_2(width))
    _embed_kernel[(rows,)](
        tokens,
        embedding,
        conditioning,
        groups.length,
        groups.causal,
        next_norm,
        x,
        normed,
        float(torch.tensor(width**0.5, dtype=embedding.dtype)),  # rounded as the model keeps it; on the host
        eps,
        rows_each=groups.rows_each(rows),
        width=width,
        block=block,
        num_warps=max(1, min(8, block // 512)),
    )

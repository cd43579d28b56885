"""The kernel between the fused q, k, v projection and attention: norms, rotary positions, and the cache's new rows.

Owns: queries, keys and values as attention reads them, and writing an encoding group's keys and values to its blocks.
Refuses to know: attention itself. Rounds where the plain model does (`Model._attention_block`).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from easel.engine.native.kernels.groups import Groups, PagedKv


@triton.jit
def _turns(angle):
    """Cosine and sine. Reduced to one turn here: the hardware's own are only good close to 0.

    Two pi in three parts, the first two of 8 bits, so that their multiples by up to 2^16 turns are exact.
    """
    turns = tl.floor(angle * 0.15915494309189535 + 0.5)
    rest = angle - turns * 6.28125
    rest = rest - turns * 0.0019302368164062500
    rest = rest - turns * 5.070363180226e-06
    return tl.cos(rest), tl.sin(rest)


@triton.jit
def _shape_heads_kernel(
    qkv,
    qk_norm,
    frequencies,
    start,
    length,
    causal,
    table,
    first,
    pool_keys,
    pool_values,
    q,
    k,
    v,
    eps,
    most_blocks,
    rows,
    rows_each: tl.constexpr,
    heads: tl.constexpr,
    kv_heads: tl.constexpr,
    own_values: tl.constexpr,
    dim: tl.constexpr,
    block_tokens: tl.constexpr,
    block_rows: tl.constexpr,
    heads_each: tl.constexpr,
):
    half: tl.constexpr = dim // 2
    columns: tl.constexpr = (heads + kv_heads + (kv_heads if own_values else 0)) * dim
    row = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    exists = row < rows
    group = row // rows_each
    inside = row - group * rows_each
    holds = exists & (inside < tl.load(length + group, mask=exists, other=0))
    position = tl.load(start + group, mask=exists, other=0) + inside
    writes = holds & (tl.load(causal + group, mask=exists, other=0) != 0)
    place = position - tl.load(first + group, mask=exists, other=0)
    block = tl.load(table + group * most_blocks + place // block_tokens, mask=writes, other=0)
    slot = block.to(tl.int64) * block_tokens + place % block_tokens
    at = tl.arange(0, half)
    angle = position.to(tl.float32)[:, None] * tl.load(frequencies + at)[None, :]
    cosine, sine = _turns(angle)
    kept = q.dtype.element_ty
    cosine = cosine.to(kept).to(tl.float32)
    sine = sine.to(kept).to(tl.float32)
    for number in range(heads_each):
        head = tl.program_id(1) * heads_each + number
        if head < heads + kv_heads:
            source = qkv + row.to(tl.int64)[:, None] * columns + head * dim + at[None, :]
            # Rows that hold nothing are zeros.
            left = tl.load(source, mask=holds[:, None], other=0.0).to(tl.float32)
            right = tl.load(source + half, mask=holds[:, None], other=0.0).to(tl.float32)
            root = tl.rsqrt((tl.sum(left * left, axis=1) + tl.sum(right * right, axis=1)) / dim + eps)[:, None]
            left = left * root
            right = right * root
            by = tl.load(qk_norm + head * dim + at).to(tl.float32)[None, :]
            by_right = tl.load(qk_norm + head * dim + half + at).to(tl.float32)[None, :]
            turned = (left * by).to(kept).to(tl.float32)
            other = (right * by_right).to(kept).to(tl.float32)
            turned_left = ((turned * cosine).to(kept).to(tl.float32) - (other * sine).to(kept).to(tl.float32)).to(kept)
            turned_right = ((other * cosine).to(kept).to(tl.float32) + (turned * sine).to(kept).to(tl.float32)).to(kept)
            if head < heads:
                target = q + (row.to(tl.int64) * heads + head)[:, None] * dim + at[None, :]
                tl.store(target, turned_left, mask=exists[:, None])
                tl.store(target + half, turned_right, mask=exists[:, None])
            else:
                target = k + (row.to(tl.int64) * kv_heads + head - heads)[:, None] * dim + at[None, :]
                tl.store(target, turned_left, mask=exists[:, None])
                tl.store(target + half, turned_right, mask=exists[:, None])
                cached = (slot * kv_heads + head - heads)[:, None] * dim + at[None, :]
                tl.store(pool_keys + cached, turned_left, mask=writes[:, None])
                tl.store(pool_keys + cached + half, turned_right, mask=writes[:, None])
                if not own_values:
                    target = v + (row.to(tl.int64) * kv_heads + head - heads)[:, None] * dim + at[None, :]
                    tl.store(target, left.to(kept), mask=exists[:, None])
                    tl.store(target + half, right.to(kept), mask=exists[:, None])
                    tl.store(pool_values + cached, left.to(kept), mask=writes[:, None])
                    tl.store(pool_values + cached + half, right.to(kept), mask=writes[:, None])
        else:
            if head < columns // dim:
                source = qkv + row.to(tl.int64)[:, None] * columns + head * dim + at[None, :]
                left = tl.load(source, mask=holds[:, None], other=0.0).to(tl.float32)
                right = tl.load(source + half, mask=holds[:, None], other=0.0).to(tl.float32)
                root = tl.rsqrt((tl.sum(left * left, axis=1) + tl.sum(right * right, axis=1)) / dim + eps)[:, None]
                target = v + (row.to(tl.int64) * kv_heads + head - heads - kv_heads)[:, None] * dim + at[None, :]
                tl.store(target, (left * root).to(kept), mask=exists[:, None])
                tl.store(target + half, (right * root).to(kept), mask=exists[:, None])
                cached = (slot * kv_heads + head - heads - kv_heads)[:, None] * dim + at[None, :]
                tl.store(pool_values + cached, (left * root).to(kept), mask=writes[:, None])
                tl.store(pool_values + cached + half, (right * root).to(kept), mask=writes[:, None])


def shape_heads(
    qkv: torch.Tensor,
    qk_norm: torch.Tensor,
    frequencies: torch.Tensor,
    eps: float,
    groups: Groups,
    kv: PagedKv,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    shape: tuple[int, int, int] | None = None,
) -> None:
    """Queries [rows, heads, dim], keys and values [rows, kv_heads, dim] of `qkv` [rows, columns].

    `qk_norm` [heads + kv_heads, dim], `frequencies` fp32 [dim / 2] in radians a position. Where `qkv` has no columns
    for values, they are the keys before their norm's weight and rotation. Encoding groups' valid rows also go to the
    blocks of their table. Rows that hold nothing become zeros. `shape`: rows, heads and warps of a program,
    other than what measured best. Raises `ValueError` on shapes that do not fit.
    """
    rows, heads, dim = q.shape
    kv_heads = k.shape[1]
    own_values = qkv.shape[1] == (heads + 2 * kv_heads) * dim
    if not own_values and qkv.shape[1] != (heads + kv_heads) * dim:
        raise ValueError(f"qkv: {qkv.shape[1]} columns for {heads} + {kv_heads} heads of {dim}")
    if k.shape != v.shape or qk_norm.shape != (heads + kv_heads, dim) or frequencies.shape != (dim // 2,):
        raise ValueError(f"k {list(k.shape)}, v {list(v.shape)}, qk_norm {list(qk_norm.shape)} do not fit q")
    columns = heads + kv_heads * (2 if own_values else 1)
    block_rows, heads_each, warps = shape or ((4, 2, 4) if dim >= 512 else (8, 2, 4))
    _shape_heads_kernel[(triton.cdiv(rows, block_rows), triton.cdiv(columns, heads_each))](
        qkv,
        qk_norm,
        frequencies,
        groups.start,
        groups.length,
        groups.causal,
        kv.table,
        kv.first,
        kv.keys,
        kv.values,
        q,
        k,
        v,
        eps,
        kv.table.shape[1],
        rows,
        rows_each=groups.rows_each(rows),
        heads=heads,
        kv_heads=kv_heads,
        own_values=own_values,
        dim=dim,
        block_tokens=kv.block_tokens,
        block_rows=block_rows,
        heads_each=heads_each,
        num_warps=warps,
    )

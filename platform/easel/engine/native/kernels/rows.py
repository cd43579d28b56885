"""Kernels over whole rows: norms, residuals and the gate, each one launch that reads and writes every row once.

Owns: the arithmetic between matrix products, in fp32 inside, rounded to the tensors' type where the plain model
(`native/model.py`) rounds, so that the two differ only in the order of sums. Refuses to know: attention, experts, and
what a row is. All tensors are contiguous; outputs are the caller's. A row of finite numbers gives a row of finite ones.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from easel.engine.native.kernels.groups import Groups
from easel.engine.native.kernels.routing import Routing


@triton.jit
def _root(wide, width: tl.constexpr, eps):
    """One over the root mean square of a row that is 0 beyond `width`."""
    return tl.rsqrt(tl.sum(wide * wide, axis=0) / width + eps)


@triton.jit
def _norm_kernel(x, weight, out, eps, width: tl.constexpr, block: tl.constexpr):
    at = tl.arange(0, block)
    inside = at < width
    row = tl.program_id(0).to(tl.int64) * width
    wide = tl.load(x + row + at, mask=inside, other=0.0).to(tl.float32)
    by = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row + at, (wide * _root(wide, width, eps) * by).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gelu_gate_kernel(x, out, width: tl.constexpr, block: tl.constexpr):
    at = tl.program_id(1) * block + tl.arange(0, block)
    inside = at < width
    row = tl.program_id(0).to(tl.int64) * width
    gate = tl.load(x + 2 * row + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x + 2 * row + width + at, mask=inside, other=0.0).to(tl.float32)
    # g (1 + tanh u) / 2 = g / (1 + exp(-2 u)): no cancellation. Beyond the bound it is 0 in any type.
    twice = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
    bent = (gate / (1.0 + tl.exp(tl.minimum(-twice, 80.0)))).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row + at, (bent * up).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _after_attention_kernel(
    x,
    mixed,
    post_norm,
    mlp_norm,
    router_norm,
    experts_norm,
    h,
    mlp_in,
    router_in,
    experts_in,
    eps,
    width: tl.constexpr,
    block: tl.constexpr,
):
    at = tl.arange(0, block)
    inside = at < width
    row = tl.program_id(0).to(tl.int64) * width
    kept = h.dtype.element_ty
    # Everything is asked for before the first sum: none of these loads then waits behind its barrier.
    residual = tl.load(x + row + at, mask=inside, other=0.0).to(tl.float32)
    wide = tl.load(mixed + row + at, mask=inside, other=0.0).to(tl.float32)
    by_post = tl.load(post_norm + at, mask=inside, other=0.0)
    by_mlp = tl.load(mlp_norm + at, mask=inside, other=0.0)
    by_router = tl.load(router_norm + at, mask=inside, other=0.0)
    by_experts = tl.load(experts_norm + at, mask=inside, other=0.0)
    added = (wide * _root(wide, width, eps) * by_post.to(tl.float32)).to(kept).to(tl.float32)
    total = (residual + added).to(kept)
    tl.store(h + row + at, total, mask=inside)
    wide = total.to(tl.float32)
    unit = wide * _root(wide, width, eps)
    tl.store(mlp_in + row + at, (unit * by_mlp.to(tl.float32)).to(kept), mask=inside)
    tl.store(router_in + row + at, (unit * by_router.to(tl.float32)).to(kept), mask=inside)
    tl.store(experts_in + row + at, (unit * by_experts.to(tl.float32)).to(kept), mask=inside)


@triton.jit
def _after_feed_forward_kernel(
    h,
    dense,
    narrow,
    weights,
    index,
    slot,
    mlp_post_norm,
    experts_post_norm,
    post_norm,
    encode_scalar,
    decode_scalar,
    length,
    causal,
    next_norm,
    x,
    normed,
    eps,
    rows_each: tl.constexpr,
    width: tl.constexpr,
    block: tl.constexpr,
    top_k: tl.constexpr,
):
    number = tl.program_id(0)
    group = number // rows_each
    at = tl.arange(0, block)
    # A row that holds nothing is read as zeros, which stay zeros.
    inside = at < width
    read = inside & (number - group * rows_each < tl.load(length + group))
    row = number.to(tl.int64) * width
    kept = x.dtype.element_ty
    wide = tl.load(dense + row + at, mask=read, other=0.0).to(tl.float32)
    # The weighted sum of the row's experts, in the order of k.
    other = tl.zeros((block,), tl.float32)
    for k in tl.static_range(top_k):
        pair = number * top_k + k
        live = tl.load(index + pair) >= 0
        here = tl.load(slot + pair, mask=live, other=0).to(tl.int64) * width
        other += tl.load(weights + pair) * tl.load(narrow + here + at, mask=read & live, other=0.0).to(tl.float32)
    other = other.to(kept).to(tl.float32)
    residual = tl.load(h + row + at, mask=read, other=0.0).to(tl.float32)
    by_mlp = tl.load(mlp_post_norm + at, mask=inside, other=0.0)
    by_experts = tl.load(experts_post_norm + at, mask=inside, other=0.0)
    by_post = tl.load(post_norm + at, mask=inside, other=0.0)
    by_next = tl.load(next_norm + at, mask=inside, other=0.0)
    encodes = tl.load(causal + group) != 0
    scalar = tl.where(encodes, tl.load(encode_scalar).to(tl.float32), tl.load(decode_scalar).to(tl.float32))
    both = (wide * _root(wide, width, eps) * by_mlp.to(tl.float32)).to(kept).to(tl.float32)
    both += (other * _root(other, width, eps) * by_experts.to(tl.float32)).to(kept).to(tl.float32)
    both = both.to(kept).to(tl.float32)
    added = (both * _root(both, width, eps) * by_post.to(tl.float32)).to(kept).to(tl.float32)
    total = (residual + added).to(kept).to(tl.float32)
    scaled = (total * scalar).to(kept)
    tl.store(x + row + at, scaled, mask=inside)
    wide = scaled.to(tl.float32)
    tl.store(normed + row + at, (wide * _root(wide, width, eps) * by_next.to(tl.float32)).to(kept), mask=inside)


def _shape(width: int) -> dict[str, int]:
    block = max(16, triton.next_power_of_2(width))
    return {"width": width, "block": block, "num_warps": max(1, min(8, block // 512))}


def _same_shape(**tensors: torch.Tensor) -> tuple[int, int]:
    """Their common [rows, width]. Raises `ValueError` naming the one that differs or is not contiguous."""
    (first, *_) = tensors.values()
    for name, tensor in tensors.items():
        if tensor.shape != first.shape or not tensor.is_contiguous():
            raise ValueError(f"{name}: {list(tensor.shape)}, contiguous {list(first.shape)} wanted")
    return first.shape[0], first.shape[1]


def norm(x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor) -> None:
    """`x` [rows, width] over the root mean square of each row, times `weight` [width]."""
    rows, width = _same_shape(x=x, out=out)
    _norm_kernel[(rows,)](x, weight, out, eps, **_shape(width))


def gelu_gate(x: torch.Tensor, out: torch.Tensor) -> None:
    """`gelu(gate) * up` [rows, wide] of `x` [rows, 2 * wide], gate columns first."""
    rows, width = out.shape
    if x.shape != (rows, 2 * width) or not (x.is_contiguous() and out.is_contiguous()):
        raise ValueError(f"x: {list(x.shape)}, contiguous {[rows, 2 * width]} wanted")
    block = min(1024, max(16, triton.next_power_of_2(width)))
    _gelu_gate_kernel[(rows, triton.cdiv(width, block))](x, out, width=width, block=block, num_warps=4)


def after_attention(
    x: torch.Tensor,
    mixed: torch.Tensor,
    post_attention_norm: torch.Tensor,
    mlp_norm: torch.Tensor,
    router_norm: torch.Tensor,
    experts_norm: torch.Tensor,
    eps: float,
    h: torch.Tensor,
    mlp_in: torch.Tensor,
    router_in: torch.Tensor,
    experts_in: torch.Tensor,
) -> None:
    """`h = x + norm(mixed)`, and `h` normed for the dense block, the router and the experts.

    All [rows, hidden], norms [hidden]. `h` may be `x`: a row is read before it is written.
    """
    rows, width = _same_shape(x=x, mixed=mixed, h=h, mlp_in=mlp_in, router_in=router_in, experts_in=experts_in)
    _after_attention_kernel[(rows,)](
        x,
        mixed,
        post_attention_norm,
        mlp_norm,
        router_norm,
        experts_norm,
        h,
        mlp_in,
        router_in,
        experts_in,
        eps,
        **_shape(width),
    )


def after_feed_forward(
    h: torch.Tensor,
    dense: torch.Tensor,
    narrow: torch.Tensor,
    routing: Routing,
    mlp_post_norm: torch.Tensor,
    experts_post_norm: torch.Tensor,
    post_norm: torch.Tensor,
    encode_scalar: torch.Tensor,
    decode_scalar: torch.Tensor,
    groups: Groups,
    next_norm: torch.Tensor,
    eps: float,
    x: torch.Tensor,
    normed: torch.Tensor,
) -> None:
    """`x = (h + norm(norm(dense) + norm(routed))) * scalar of the group's mode`, and `x` normed for what comes next.

    `routed` is the weighted sum of each row's experts, whose outputs `narrow` [slots, hidden] holds where `routing`
    says. All others [rows, hidden], norms [hidden], scalars [1]; `next_norm` is the next layer's input norm, or the
    model's last norm. Rows that hold nothing become zeros. `x` may be `h`.
    """
    rows, width = _same_shape(h=h, dense=dense, x=x, normed=normed)
    top_k = routing.weights.shape[1]
    if narrow.shape[1] != width or not narrow.is_contiguous() or min(len(narrow), len(routing.row)) < rows * top_k:
        raise ValueError(f"narrow: {list(narrow.shape)}, contiguous rows of {width} wanted for {top_k} experts a row")
    _after_feed_forward_kernel[(rows,)](
        h,
        dense,
        narrow,
        routing.weights,
        routing.index,
        routing.slot,
        mlp_post_norm,
        experts_post_norm,
        post_norm,
        encode_scalar,
        decode_scalar,
        groups.length,
        groups.causal,
        next_norm,
        x,
        normed,
        eps,
        rows_each=groups.rows_each(rows),
        top_k=top_k,
        **_shape(width),
    )

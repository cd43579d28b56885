"""Attention kernels at the model's sizes, checked against fp32 on the same device. Needs torch and triton only."""

from __future__ import annotations

import torch

from easel.engine.native.kernels.attention import AttentionWorkspace, Tiles, attend
from easel.engine.native.kernels.groups import Groups, PagedKv
from easel.engine.native.kernels.heads import shape_heads

HEADS, ROWS, BLOCK, WINDOW = 16, 256, 32, 1024
SLIDING, FULL = (8, 256, WINDOW), (2, 512, None)
"""KV heads, head_dim, window."""
Parts = tuple[tuple[int, int, int], ...]
"""Start, length, causal of each group; each of its own sequence."""
MIXED: Parts = ((512, 256, 0), (5000, 250, 0), (1300, 256, 1), (0, 77, 1), (0, 0, 0), (0, 256, 0), (1023, 256, 1))
ONE: Parts = ((512, 256, 0),)


def make(parts: Parts, kind: tuple[int, int, int | None]) -> tuple[Groups, PagedKv]:
    """Groups, and random pools with scattered blocks, those no longer visible given back."""
    kv_heads, dim, window = kind
    columns = (torch.tensor(column, dtype=torch.int32, device="cuda") for column in zip(*parts, strict=True))
    groups = Groups(*columns)
    dropped = [0 if window is None else max(0, start - window + 1) // BLOCK for start, _, _ in parts]
    counts = [-(-(start + ROWS) // BLOCK) - less for (start, _, _), less in zip(parts, dropped, strict=True)]
    order = torch.randperm(sum(counts), device="cuda").to(torch.int32)
    table = torch.full((len(parts), max(counts)), -1, dtype=torch.int32, device="cuda")
    for row, blocks in enumerate(order.split(counts)):
        table[row, : len(blocks)] = blocks
    first = torch.tensor([less * BLOCK for less in dropped], dtype=torch.int32, device="cuda")
    keys, values = (torch.randn(sum(counts) * BLOCK, kv_heads, dim, device="cuda").bfloat16() for _ in "kv")
    return groups, PagedKv(keys, values, table, first, BLOCK)


def inputs(parts: Parts, kind: tuple[int, int, int | None]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random q, k and v; scores spread by a few."""
    kv_heads, dim, _ = kind
    rows = len(parts) * ROWS
    q = (torch.randn(rows, HEADS, dim, device="cuda") * 2 * dim**-0.5).bfloat16()
    k, v = (torch.randn(rows, kv_heads, dim, device="cuda").bfloat16() for _ in "kv")
    return q, k, v


def plain(
    parts: Parts, group: int, window: int | None, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kv: PagedKv
) -> torch.Tensor:
    """What the valid rows of one group read, fp32 [length, heads * dim]."""
    start, length, causal = parts[group]
    low = group * ROWS
    oldest = 0 if window is None else max(0, start - window + 1)
    positions = torch.arange(oldest, start, device="cuda") - kv.first[group]
    slots = kv.table[group].long()[positions // BLOCK] * BLOCK + positions % BLOCK
    keys = torch.cat((kv.keys[slots], k[low : low + length])).float()
    values = torch.cat((kv.values[slots], v[low : low + length])).float()
    shared = HEADS // keys.shape[1]
    scores = torch.einsum("qhd,khd->hqk", q[low : low + length].float(), keys.repeat_interleave(shared, dim=1))
    if causal:
        row = torch.arange(start, start + length, device="cuda")[:, None]
        key = torch.arange(oldest, start + length, device="cuda")[None]
        seen = key <= row if window is None else (key <= row) & (key > row - window)
        scores = scores.masked_fill(~seen, float("-inf"))
    return torch.einsum("hqk,khd->qhd", scores.softmax(dim=-1), values.repeat_interleave(shared, dim=1)).flatten(1)


def attention_error(
    parts: Parts, kind: tuple[int, int, int | None], tiles: Tiles | None = None, dtype: torch.dtype = torch.bfloat16
) -> float:
    """Largest relative error of a group; infinite where idle rows are not zero or two runs differ."""
    _, dim, window = kind
    groups, kv = make(parts, kind)
    q, k, v = inputs(parts, kind)
    tiles = tiles or Tiles.of(len(parts), ROWS, HEADS, dim)
    size = tiles.splits * q.shape[0] * HEADS
    space = AttentionWorkspace(
        torch.full((size * dim,), float("nan"), dtype=dtype, device="cuda"),
        torch.full((size * 2,), float("nan"), device="cuda"),
    )
    outs = [torch.full((q.shape[0], HEADS * dim), float("nan"), dtype=q.dtype, device="cuda") for _ in range(2)]
    for out in outs:
        attend(q, k, v, groups, kv, window, out, space, tiles)
    if not torch.equal(*outs):
        return float("inf")
    worst = 0.0
    for group, (_, length, _) in enumerate(parts):
        got = outs[0][group * ROWS : (group + 1) * ROWS].float()
        if got[length:].any() or got.isnan().any():
            return float("inf")
        if length:
            wanted = plain(parts, group, window, q, k, v, kv)
            worst = max(worst, float((got[:length] - wanted).norm() / wanted.norm()))
    return worst


def heads_error(parts: Parts, kind: tuple[int, int, int | None], far: int = 0) -> float:
    """Largest relative error of q, k, v and the pools after `shape_heads`, positions moved on by `far`."""
    kv_heads, dim, window = kind
    groups, kv = make(parts, kind)
    groups.start.add_(far)
    kv.first.add_(far)
    rows = len(parts) * ROWS
    columns = HEADS + kv_heads * (1 if window is None else 2)
    qkv = torch.randn(rows, columns * dim, device="cuda").bfloat16()
    weight = (1 + 0.1 * torch.randn(HEADS + kv_heads, dim, device="cuda")).bfloat16()
    frequencies = 1e4 ** (-torch.arange(dim // 2, device="cuda") / (dim // 2))
    positions = (groups.start[:, None] + torch.arange(ROWS, device="cuda")).flatten()
    # The angle as fp32 rounds it, its cosine as fp64 knows it.
    angles = (positions[:, None].float() * frequencies).double()[:, None]
    cosine, sine = angles.cos().bfloat16().float(), angles.sin().bfloat16().float()
    wide = qkv.view(rows, columns, dim).float()
    unit = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + 1e-6)
    left, right = (unit[:, : HEADS + kv_heads] * weight).bfloat16().float().chunk(2, dim=-1)
    turned = torch.cat((left * cosine - right * sine, right * cosine + left * sine), dim=-1)
    wanted = [turned[:, :HEADS], turned[:, HEADS:], unit[:, -kv_heads:]]
    pools = [kv.keys.float(), kv.values.float()]
    for group, (start, length, causal) in enumerate(parts):
        if causal:
            place = torch.arange(start, start + length, device="cuda") + far - kv.first[group]
            slots = kv.table[group].long()[place // BLOCK] * BLOCK + place % BLOCK
            for pool, source in zip(pools, wanted[1:], strict=True):
                pool[slots] = source[group * ROWS : group * ROWS + length]
    got = [
        torch.full((rows, n, dim), float("nan"), dtype=qkv.dtype, device="cuda") for n in (HEADS, kv_heads, kv_heads)
    ]
    shape_heads(qkv, weight, frequencies, 1e-6, groups, kv, *got)
    holds = (torch.arange(ROWS, device="cuda") < groups.length[:, None]).flatten()
    if any(t[~holds].any() for t in got):
        return float("inf")
    pairs = [(a[holds].float(), b[holds]) for a, b in zip(got, wanted, strict=True)]
    pairs += [(kv.keys.float(), pools[0]), (kv.values.float(), pools[1])]
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)

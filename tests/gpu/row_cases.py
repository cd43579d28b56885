"""Row kernels at the model's sizes, checked against fp32 on the same device. Needs torch and triton only."""

from __future__ import annotations

import torch
from torch.nn.functional import gelu

from easel.engine.native.kernels.embed import embed
from easel.engine.native.kernels.groups import Groups
from easel.engine.native.kernels.routing import Routing
from easel.engine.native.kernels.rows import after_attention, after_feed_forward, gelu_gate, norm

HIDDEN, WIDE, ROWS, EPS, VOCAB, TOP_K = 2816, 2112, 256, 1e-6, 262144, 8


def rms(x: torch.Tensor) -> torch.Tensor:
    wide = x.float()
    return wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + EPS)


def some(*shape: int, at: float = 0.0) -> torch.Tensor:
    return (at + torch.randn(*shape, device="cuda")).bfloat16()


def poisoned(*shape: int) -> torch.Tensor:
    return torch.full(shape, float("nan"), dtype=torch.bfloat16, device="cuda")


def groups_of(count: int) -> Groups:
    """The first half encode."""
    start, length = (torch.full((count,), n, dtype=torch.int32, device="cuda") for n in (512, ROWS))
    return Groups(start, length, (torch.arange(count, device="cuda") < count // 2).to(torch.int32))


def routed_by(rows: int) -> tuple[torch.Tensor, Routing]:
    """Random outputs of experts, and random weights and slots of them for every row."""
    routing = Routing.for_rows(rows, 128, TOP_K, "cuda")
    routing.weights[:] = torch.rand(rows, TOP_K, device="cuda")
    routing.slot[:] = torch.randperm(rows * TOP_K, device="cuda").view(rows, TOP_K).int()
    return some(rows * TOP_K, HIDDEN), routing


def errors(count: int) -> dict[str, float]:
    """Relative error of each output of each kernel, for `count` groups."""
    groups, rows, found = groups_of(count), count * ROWS, {}
    groups.length[-1] = 100
    holds = (torch.arange(ROWS, device="cuda") < groups.length[:, None]).flatten()
    encodes = groups.causal.bool().repeat_interleave(ROWS)[:, None]

    def compare(name: str, got: torch.Tensor, wanted: torch.Tensor) -> None:
        found[name] = float((got.float() - wanted).norm() / wanted.norm())

    x, mixed = (some(rows, HIDDEN) for _ in range(2))
    a, b, c, d = (some(HIDDEN, at=1.0) for _ in range(4))
    out = [poisoned(rows, HIDDEN) for _ in range(4)]
    norm(x, a, EPS, out[0])
    compare("norm", out[0], rms(x) * a.float())
    both, narrow = some(rows, 2 * WIDE), poisoned(rows, WIDE)
    gelu_gate(both, narrow)
    gate, up = both.float().chunk(2, dim=-1)
    compare("gelu_gate", narrow, gelu(gate, approximate="tanh") * up)
    after_attention(x, mixed, a, b, c, d, EPS, *out)
    h = x.float() + rms(mixed) * a.float()
    for name, got, weight in zip(("mlp", "router", "experts"), out[1:], (b, c, d), strict=True):
        compare(f"after_attention {name}", got, rms(h) * weight.float())
    compare("after_attention h", out[0], h)
    scalars = some(1, at=1.0), some(1, at=2.0)
    narrow, routing = routed_by(rows)
    routed = (narrow[routing.slot.long()].float() * routing.weights[..., None]).sum(1)
    after_feed_forward(x, mixed, narrow, routing, a, b, c, *scalars, groups, d, EPS, out[0], out[1])
    wanted = x.float() + rms(rms(mixed) * a.float() + rms(routed) * b.float()) * c.float()
    wanted = wanted * torch.where(encodes, *(s.float() for s in scalars)) * holds[:, None]
    compare("after_feed_forward x", out[0], wanted)
    compare("after_feed_forward normed", out[1], rms(wanted) * d.float())
    table = some(1000, HIDDEN) * 0.02
    tokens = torch.randint(1000, (rows,), dtype=torch.int32, device="cuda")
    embed(tokens, table, mixed, groups, a, EPS, out[2], out[3])
    wanted = table[tokens.long()].float() * HIDDEN**0.5
    wanted = torch.where(encodes, wanted, rms(wanted + mixed.float())) * holds[:, None]
    compare("embed x", out[2], wanted)
    compare("embed normed", out[3], rms(wanted) * a.float())
    return found

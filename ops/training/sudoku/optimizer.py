"""Muon for matrices, AdamW for the rest, a moving average of the weights, and the schedule of the learning rate.

Knows parameters by name and shape only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def orthogonalized(update: Tensor, steps: int = 5) -> Tensor:
    """Roughly U V^T of the singular value decomposition of each matrix [n, r, c], by Newton-Schulz iteration."""
    x = update.to(torch.bfloat16)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True).to(x.dtype) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.mT if tall else x).float()


class Optimizer:
    """One step over all parameters of a module; `lr` is AdamW's, matrices take updates of RMS 0.2 * `muon` * lr."""

    def __init__(self, module: nn.Module, *, weight_decay: float = 0.05, muon: float = 2.0) -> None:
        groups: dict[torch.Size, list[nn.Parameter]] = {}
        rest: list[nn.Parameter] = []
        for name, parameter in module.named_parameters():
            if parameter.ndim >= 2 and "embed_tokens" not in name and "router" not in name and muon > 0:
                groups.setdefault(parameter.shape[-2:], []).append(parameter)
            else:
                rest.append(parameter)
        self.groups = list(groups.values())
        self.momenta = [torch.zeros_like(self._joined(g)) for g in self.groups]
        fused = rest[0].is_cuda
        self.adam = torch.optim.AdamW(rest, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0, fused=fused)
        self.weight_decay, self.muon = weight_decay, muon

    @staticmethod
    def _joined(tensors: Sequence[Tensor]) -> Tensor:
        """Matrices of one shape, and stacks of such matrices, as one stack [n, r, c]."""
        return torch.cat([t.detach().reshape(-1, *t.shape[-2:]) for t in tensors])

    @torch.no_grad()
    def step(self, lr: float) -> None:
        for group in self.adam.param_groups:
            group["lr"] = lr
        self.adam.step()
        for parameters, momentum in zip(self.groups, self.momenta, strict=True):
            gradient = self._joined([p.grad for p in parameters])  # type: ignore[misc]
            momentum.lerp_(gradient, 0.05)
            update = orthogonalized(gradient.lerp_(momentum, 0.95))
            update.mul_(-0.2 * self.muon * lr * max(update.shape[-2:]) ** 0.5)
            parts = update.split([p.numel() // update[0].numel() for p in parameters])
            torch._foreach_mul_(parameters, 1 - self.muon * lr * self.weight_decay)
            torch._foreach_add_(parameters, [part.view_as(p) for part, p in zip(parts, parameters, strict=True)])
        for parameters in self.groups:
            for p in parameters:
                p.grad = None
        self.adam.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return {"momenta": self.momenta, "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for mine, saved in zip(self.momenta, state["momenta"], strict=True):
            mine.copy_(saved)
        self.adam.load_state_dict(state["adam"])


@torch.no_grad()
def average(into: nn.Module, module: nn.Module, decay: float) -> None:
    """Move the averaged weights towards the current ones."""
    torch._foreach_lerp_(list(into.parameters()), list(module.parameters()), 1 - decay)


def rate(peak: float, step: int, progress: float, *, warmup: int = 200, decay_from: float = 0.6) -> float:
    """Warm up, stay, then fall in a straight line to zero, so that the run ends in a usable model."""
    falling = 1.0 if progress < decay_from else max(0.0, (1 - progress) / (1 - decay_from))
    return peak * min(1.0, (step + 1) / warmup) * falling

"""One denoising step's choice of tokens, and whole decoding for evaluation: the entropy-bound sampler in torch.

Takes logits or a function that gives them. Knows no Sudoku and no training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Decoding:
    """What generation_config.json says about denoising."""

    max_denoising_steps: int = 48
    entropy_bound: float = 0.1
    t_min: float = 0.4
    t_max: float = 0.8
    confidence_threshold: float = 0.005
    stability_threshold: int = 1

    def temperature(self, remaining: int) -> float:
        return self.t_min + (self.t_max - self.t_min) * remaining / self.max_denoising_steps


def propose(scaled: Tensor, entropy_bound: Tensor | float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """From logits over temperature [B, C, V]: next canvas, argmax canvas, entropies in nats, accepted positions."""
    log_p = torch.log_softmax(scaled.float(), dim=-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    best = scaled.argmax(-1)
    # Gumbel's trick draws from the softmax without building a cumulative sum over the vocabulary.
    noise = -torch.log(-torch.log(torch.rand_like(log_p).clamp(1e-20, 1.0 - 1e-7)))
    drawn = (log_p + noise).argmax(-1)
    ordered, order = entropy.sort(dim=-1)
    within = (ordered.cumsum(-1) - ordered) <= entropy_bound
    accepted = torch.zeros_like(within).scatter(1, order, within)
    fresh = torch.randint_like(drawn, scaled.shape[-1])
    return torch.where(accepted, drawn, fresh), best, entropy, accepted


@torch.no_grad()
def decode(
    logits_of: Callable[[Tensor, Tensor, Tensor], Tensor], rows: int, canvas: int, vocab: int, how: Decoding,
    device: torch.device, *, adaptive: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Argmax canvases [rows, canvas] and the steps [rows] each took.

    `logits_of(canvas, previous, use_previous)` runs the model. A row that has converged keeps its canvas; without
    `adaptive` every row takes all steps.
    """
    x = torch.randint(vocab, (rows, canvas), device=device)
    previous = torch.zeros(rows, canvas, vocab, device=device, dtype=torch.bfloat16)
    use = torch.zeros(rows, device=device, dtype=torch.bool)
    answer = torch.full((rows, canvas), -1, device=device)
    history = [answer.clone() for _ in range(how.stability_threshold)]
    done = torch.zeros(rows, device=device, dtype=torch.bool)
    steps = torch.zeros(rows, device=device, dtype=torch.long)
    for remaining in range(how.max_denoising_steps, 0, -1):
        scaled = logits_of(x, previous, use) / how.temperature(remaining)
        x, best, entropy, _ = propose(scaled, how.entropy_bound)
        answer = torch.where(done[:, None], answer, best)
        steps += ~done
        stable = torch.ones_like(done)
        for old in history:
            stable &= (old == best).all(-1)
        history = [*history[1:], best] if history else []
        if adaptive:
            done |= stable & (entropy.mean(-1) < how.confidence_threshold)
            if bool(done.all()):
                break
        previous, use = scaled.to(torch.bfloat16), torch.ones_like(use)
    return answer, steps

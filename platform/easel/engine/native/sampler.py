"""One denoising step after the forward: from logits to the next canvas, for several canvases at once.

    z = logits / T_n            T_n falls from t_max to t_min over the steps a canvas may take
    H = entropy of softmax(z)   nats, a position
    accept the positions of lowest entropy while the entropy of those before them stays within the bound
    next canvas = a draw from softmax(z) where accepted, a random token elsewhere; nothing freezes
    argmax(z) is what would be committed

Owns: this arithmetic and what a request may change about it. Refuses to know: when a canvas has converged
(`sequence`), where the draws come from (`noise`), and the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from easel.engine.native.noise import Draws

LEAST_TEMPERATURE = 1e-4
"""Below, a draw is the argmax: chances are to the power of 1 / temperature, of which fp32 holds no more (a GPU's masses
are 0.2 % off, which 2e-5 makes an infinite weight)."""
LEAST_TOP_P = 1e-9
"""Below, nothing would be left in fp32; this much leaves the likeliest token."""


def schedule(t_min: float, t_max: float, step: int, steps: int) -> float:
    """The temperature of denoising step `step` (from 1) of at most `steps`."""
    return t_min + (t_max - t_min) * (steps - step + 1) / steps


@dataclass(frozen=True, slots=True)
class Choice:
    """How one canvas is sampled at one step. Neutral values change nothing."""

    schedule_temperature: float
    """T_n: divides the logits for everything."""
    entropy_bound: float
    """Nats."""
    temperature: float = 1.0
    """Divides once more, for the draw alone. 0: the draw is the argmax."""
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    """These three narrow the draw alone, in this order."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    banned: tuple[int, ...] = ()
    """Never anywhere on the canvas."""
    banned_early: tuple[int, ...] = ()
    """Not on the first `early` positions: stop tokens before min_tokens."""
    early: int = 0
    pinned: tuple[tuple[int, int], ...] = ()
    """(position on the canvas, token): given."""
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Log-probabilities of one canvas: of its argmax [length], and of the best tokens [length, n], best first."""

    chosen: torch.Tensor
    top: torch.Tensor
    top_ids: torch.Tensor


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a step decided for each canvas."""

    canvas: torch.Tensor  # int64 [n, length]: the next step's input
    argmax: torch.Tensor  # int64 [n, length]
    entropy: torch.Tensor  # fp32 [n, length], nats
    accepted: torch.Tensor  # bool [n, length]
    chances: torch.Tensor  # fp32 [n, length, vocab]: softmax(z), for the soft embedding
    logprobs: tuple[Logprobs | None, ...]


def denoise(logits: torch.Tensor, choices: Sequence[Choice], draws: Draws) -> Sampled:
    """One step of `len(choices)` canvases. `logits` fp32 [n, length, vocab] are overwritten."""
    z = logits
    for row, choice in enumerate(choices):
        constrain(z[row], choice)
    temperatures = z.new_tensor([choice.schedule_temperature for choice in choices])
    z = z.div_(temperatures.view(-1, 1, 1))
    argmax = z.argmax(dim=-1)
    logs = torch.log_softmax(z, dim=-1)
    chances = logs.exp()
    entropy = entropies(logs, chances)
    accepted = accept(entropy, entropy.new_tensor([choice.entropy_bound for choice in choices]))
    drawn = torch.stack(
        [draw(logs[row], chances[row], argmax[row], draws.uniform[row], c) for row, c in enumerate(choices)]
    )
    canvas = torch.where(accepted, drawn, draws.random_tokens)
    for row, choice in enumerate(choices):
        pin(canvas[row], choice.pinned)
    kept = tuple(logprobs(logs[row], argmax[row], c.logprobs) for row, c in enumerate(choices))
    return Sampled(canvas, argmax, entropy, accepted, chances, kept)


def entropies(logs: torch.Tensor, chances: torch.Tensor) -> torch.Tensor:
    """Nats, over the last dimension. `chances` are the exponentials of `logs`."""
    # A token that must not be has log-probability -inf, and adds nothing: 0 * the smallest float, not 0 * -inf.
    return -(chances * logs.clamp(min=torch.finfo(logs.dtype).min)).sum(dim=-1)


def constrain(logits: torch.Tensor, choice: Choice) -> None:
    """Apply to `logits` [length, vocab] what the request and the checkpoint rule out or favour, in place."""
    for token, bias in choice.logit_bias:
        logits[:, token] += bias
    if choice.banned:
        logits[:, list(choice.banned)] = -torch.inf
    if choice.early and choice.banned_early:
        logits[: choice.early, list(choice.banned_early)] = -torch.inf
    for position, token in choice.pinned:
        logits[position] = -torch.inf
        logits[position, token] = 0.0


def pin(canvas: torch.Tensor, pinned: tuple[tuple[int, int], ...]) -> None:
    """Put the given tokens on `canvas` [length], in place."""
    for position, token in pinned:
        canvas[position] = token


def accept(entropy: torch.Tensor, bound: torch.Tensor) -> torch.Tensor:
    """Which positions to accept, bool like `entropy` [n, length]: the lowest first, each while the sum of those before
    it is within `bound` [n]. One is always accepted."""
    rising, order = torch.sort(entropy, dim=-1, stable=True)
    before = torch.cumsum(rising, dim=-1) - rising
    return torch.zeros_like(entropy, dtype=torch.bool).scatter_(-1, order, before <= bound.unsqueeze(-1))


def draw(
    logs: torch.Tensor, chances: torch.Tensor, argmax: torch.Tensor, uniform: torch.Tensor, choice: Choice
) -> torch.Tensor:
    """A token for each position, int64 [length], by inverting the cumulative distribution at `uniform` [length].

    `logs` and `chances` [length, vocab] are of softmax(z).
    """
    if choice.temperature == 0.0:
        return argmax
    weights = chances
    if choice.temperature != 1.0:
        best = logs.gather(-1, argmax.unsqueeze(-1))
        weights = ((logs - best) / choice.temperature).exp()
    cumulative = narrow(weights, choice).cumsum(dim=-1)
    total = cumulative[:, -1]
    # Rounding may lift uniform * total up to the total, past the last token that has a chance.
    target = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target.unsqueeze(-1), right=True).squeeze(-1)


def narrow(weights: torch.Tensor, choice: Choice) -> torch.Tensor:
    """`weights` [length, vocab], not normalised, with 0 for what top_k, top_p and min_p leave out."""
    if 0 < choice.top_k < weights.shape[-1]:
        least = weights.topk(choice.top_k, dim=-1).values[:, -1:]
        weights = weights.where(weights >= least, 0.0)
    if choice.top_p < 1.0:
        falling, order = weights.sort(dim=-1, descending=True, stable=True)
        before = falling.cumsum(dim=-1) - falling
        kept = before < choice.top_p * falling.sum(dim=-1, keepdim=True)
        weights = torch.zeros_like(weights).scatter_(-1, order, falling.where(kept, 0.0))
    if choice.min_p > 0.0:
        weights = weights.where(weights >= choice.min_p * weights.amax(dim=-1, keepdim=True), 0.0)
    return weights


def logprobs(logs: torch.Tensor, argmax: torch.Tensor, alternatives: int | None) -> Logprobs | None:
    """Log-probabilities at each position of one canvas; None where nobody asked."""
    if alternatives is None:
        return None
    top = logs.topk(alternatives, dim=-1)
    return Logprobs(logs.gather(-1, argmax.unsqueeze(-1)).squeeze(-1), top.values, top.indices)

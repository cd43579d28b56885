"""The states the model is trained in: a batch of canvases on their way from noise to an answer.

Two kinds of rows. *Standard*: the answer with each token replaced by a uniform random id with probability t ~ U(0, 1),
seen once without and, for half of them, once more with the model's own logits as self-conditioning. *Decoding*: pure
noise, then what the entropy-bound sampler makes of the model's own logits, step by step, so that the model meets its
own mistakes and learns to repair them. The logits of a training step move each row to its next state, so this costs no
extra forward pass. Knows no model and no optimizer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.sudoku.notation import LONG, SHORT
from training.sudoku.packing import Prompts
from training.sudoku.sampler import propose
from training.sudoku.source import Source

DECODING_STARTS = 0.4
"""Share of fresh rows that start a decoding; they live longer, so they are about two thirds of all rows."""


class Rollout:
    """Canvases of `n_short` examples with short prompts and `n_long` with long ones, and where each stands.

    All state is in static tensors, written in place.
    """

    def __init__(self, source: Source, n_short: int, n_long: int, vocab: int) -> None:
        self.source, self.sizes, self.vocab = source, (n_short, n_long), vocab
        self.rows = n = n_short + n_long
        device = source.device
        self.prompts, self.target, self.weight = self._fresh()
        self.canvas = torch.zeros_like(self.target)
        self.previous = torch.zeros(*self.target.shape, vocab, dtype=torch.bfloat16, device=device)
        self.use_previous = torch.zeros(n, dtype=torch.bool, device=device)
        self.age = torch.zeros(n, dtype=torch.long, device=device)
        self.limit = torch.ones_like(self.age)
        self.decoding = torch.zeros_like(self.use_previous)
        self.temperature = torch.ones(n, device=device)
        self.bound = torch.full((n, 1), 0.1, device=device)
        self._start(torch.ones_like(self.use_previous), max_age=2)

    def _fresh(self) -> tuple[Prompts, Tensor, Tensor]:
        short, long = (self.source.draw(n, p) for n, p in zip(self.sizes, (SHORT, LONG), strict=True))
        prompts = Prompts(short.prompt, long.prompt, short.pad, long.pad)
        return prompts, torch.cat((short.target, long.target)), torch.cat((short.weight, long.weight))

    def _start(self, rows: Tensor, max_age: int) -> None:
        """Give the rows of the mask a fresh example and a fresh beginning."""
        n, device = self.rows, rows.device
        prompts, target, weight = self._fresh()
        decoding = torch.rand(n, device=device) < DECODING_STARTS
        noise = torch.where(decoding, 1.0, torch.rand(n, device=device))
        uniform = torch.randint_like(self.target, self.vocab)
        canvas = torch.where(torch.rand(self.target.shape, device=device) < noise[:, None], uniform, target)
        limit = torch.where(
            decoding, torch.randint(2, max_age + 1, (n,), device=device), torch.randint(1, 3, (n,), device=device)
        )
        short, long = rows.split(self.sizes)
        mine = self.prompts
        for mask, old, new in (
            (short, mine.short, prompts.short), (long, mine.long, prompts.long), (rows, self.target, target),
            (rows, self.weight, weight), (rows, self.canvas, canvas),
            (rows, self.bound, 0.05 + 0.25 * torch.rand(n, 1, device=device)),
        ):  # fmt: skip
            old.copy_(torch.where(mask[:, None], new, old))
        for mask, old, new in (
            (short, mine.short_pad, prompts.short_pad), (long, mine.long_pad, prompts.long_pad),
            (rows, self.limit, limit),
            (rows, self.decoding, decoding), (rows, self.age, torch.zeros_like(self.age)),
            (rows, self.temperature, 0.4 + 0.4 * torch.rand(n, device=device)),
        ):  # fmt: skip
            old.copy_(torch.where(mask, new, old))
        self.use_previous.logical_and_(~rows)

    def advance(self, logits: Tensor, max_age: int) -> Tensor:
        """Move every row on by the logits [rows, C, V] of this step; returns the mask of rows with the right argmax."""
        scaled = logits / self.temperature.to(logits.dtype)[:, None, None]
        following, best = propose(scaled, self.bound)[:2]
        right = (best == self.target).all(-1)
        self.canvas.copy_(torch.where(self.decoding[:, None], following, self.canvas))
        self.previous.copy_(scaled)
        self.use_previous.fill_(True)
        self.age += 1
        bored = right & self.decoding & (torch.rand(self.rows, device=logits.device) < 0.5)
        self._start((self.age >= self.limit) | bored, max_age)
        return right

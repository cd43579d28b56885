"""Random draws from a counter: every draw is a function of (seed, choice, canvas, step, position) and of nothing else.

So a request draws the same whatever shares its batch, in whatever order, and after it was preempted or resumed on
another replica. The generator is Philox4x32-10 (Salmon et al., 2011): key = seed, counter = (position, step, canvas,
choice), four 32-bit words out. Integer arithmetic only: the words are the same on every device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
MASK = 0xFFFFFFFF


class DrawKey(NamedTuple):
    """What the draws of one canvas at one step depend on. `step` counts from 1; 0 is the canvas's beginning."""

    seed: int
    choice: int
    canvas: int
    step: int


class Draws(NamedTuple):
    """One of each for every position of every key, [keys, length]."""

    uniform: torch.Tensor
    """fp32 in [0, 1): decides which token is drawn."""
    random_tokens: torch.Tensor
    """int64, uniform over the vocabulary: what stands where nothing was accepted."""


class Noise(Protocol):
    """Where draws come from. Tests put others in its place."""

    def draws(self, keys: Sequence[DrawKey], length: int, vocab: int) -> Draws:
        """Draws for `length` positions of each key."""


def philox(counter: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Philox4x32-10 of `counter` [..., 4] under `key` [..., 2], 32-bit words in int64; returns words like `counter`."""
    # A round multiplies words 0 and 2. Products wrap at 64 bits, of which int64's low and high halves are still right.
    multipliers = torch.tensor(MULTIPLIERS, dtype=torch.int64, device=counter.device)
    weyl = torch.tensor(WEYL, dtype=torch.int64, device=counter.device)
    even, odd = counter[..., 0::2], counter[..., 1::2]
    for _ in range(ROUNDS):
        product = even * multipliers
        high, low = (product >> 32) & MASK, product & MASK
        even, odd = high.flip(-1) ^ odd ^ key, low.flip(-1)
        key = (key + weyl) & MASK
    return torch.stack((even, odd), dim=-1).flatten(-2)


class PhiloxNoise:
    """The noise that is served."""

    def __init__(self, device: str = "cpu") -> None:
        self._device = device

    def draws(self, keys: Sequence[DrawKey], length: int, vocab: int) -> Draws:
        """See `Noise`. Seeds are taken modulo 2**64, vocabularies must be smaller than 2**31."""
        of_key = torch.tensor([(k.step & MASK, k.canvas & MASK, k.choice & MASK) for k in keys], dtype=torch.int64)
        seeds = torch.tensor([(k.seed & MASK, (k.seed >> 32) & MASK) for k in keys], dtype=torch.int64)
        counter = torch.empty(len(keys), length, 4, dtype=torch.int64)
        counter[..., 0] = torch.arange(length)
        counter[..., 1:] = of_key.unsqueeze(1)
        words = philox(counter.to(self._device), seeds.unsqueeze(1).to(self._device))
        # 24 bits are what fp32 holds below 1. Words 1 and 3 are spare.
        return Draws((words[..., 0] >> 8).float() * 2.0**-24, (words[..., 2] * vocab) >> 32)

"""What the host tells the vocabulary end about each canvas: one pinned buffer, one copy, read by every kernel.

Owns: the layout of a canvas's row, and turning a `Choice` and a `DrawKey` into it. Refuses to know: kernels, and why a
canvas is sampled as it is.

A row is 32-bit words: scalars first (integers, or floats by their bits), then the lists.
"""

from __future__ import annotations

import numpy as np
import torch
import triton.language as tl

from easel.engine.native.noise import MASK, DrawKey
from easel.engine.native.sampler import Choice
from easel.protocol import GROUP_ROWS, MOST_BIASED, MOST_STOPS

CANVAS = GROUP_ROWS
"""Positions of a canvas; shorter ones use the first `length` of them."""
MOST_SPREAD = 151.0
"""Most that 2 * softcap / T_n may be: beyond, the masses of a position's tokens do not fit their range (see `head`)."""

# Words of a row. `tl.constexpr` lets kernels read them; `.value` is the number.
ACTIVE = tl.constexpr(0)
LENGTH = tl.constexpr(1)
FRESH = tl.constexpr(2)
INVERSE_TEMPERATURE = tl.constexpr(3)
DRAW_TEMPERATURE = tl.constexpr(4)
TOP_K = tl.constexpr(5)
TOP_P = tl.constexpr(6)
MIN_P = tl.constexpr(7)
ENTROPY_BOUND = tl.constexpr(8)
SEED_LOW = tl.constexpr(9)
SEED_HIGH = tl.constexpr(10)
CHOICE = tl.constexpr(11)
CANVAS_INDEX = tl.constexpr(12)
STEP = tl.constexpr(13)
LOGPROBS = tl.constexpr(14)
EARLY = tl.constexpr(15)
BIASED = tl.constexpr(16)
STOPS = tl.constexpr(17)
PINS = tl.constexpr(18)
BIAS_TOKENS = tl.constexpr(32)
BIAS_VALUES = tl.constexpr(352)
STOP_TOKENS = tl.constexpr(672)
PINNED = tl.constexpr(736)
WORDS = tl.constexpr(992)


class Controls:
    """Rows for `canvases` canvases. Fill rows, then `upload` (which may be inside a captured graph)."""

    def __init__(
        self, canvases: int, vocab: int, softcap: float, banned: tuple[int, ...], device: torch.device | str
    ) -> None:
        self._vocab, self._softcap, self._banned = vocab, softcap, frozenset(banned)
        on_gpu = torch.device(device).type == "cuda"
        self.host = torch.zeros(canvases, WORDS.value, dtype=torch.int32, pin_memory=on_gpu)
        self.device = torch.zeros(canvases, WORDS.value, dtype=torch.int32, device=device)
        self._integers = self.host.numpy()
        self._words = self._integers.view(np.uint32)
        self._floats = self._integers.view(np.float32)

    def idle(self, row: int) -> None:
        """Nothing is computed for this row; its outputs keep what they hold."""
        self._integers[row, ACTIVE.value] = 0

    def fill(self, row: int, choice: Choice, key: DrawKey, length: int = CANVAS, fresh: bool = False) -> None:
        """Sample the canvas of `row` by `choice` with the draws of `key`.

        `length`: positions it has. `fresh`: it is another canvas than the row's before, so nothing to compare with.
        ValueError names what does not fit.
        """
        self._check(choice, length)
        integers, words, floats = self._integers[row], self._words[row], self._floats[row]
        integers[ACTIVE.value] = 1
        integers[LENGTH.value] = length
        integers[FRESH.value] = int(fresh)
        floats[INVERSE_TEMPERATURE.value] = 1.0 / choice.schedule_temperature
        floats[DRAW_TEMPERATURE.value] = choice.temperature
        # As many as the vocabulary narrow nothing, like none.
        integers[TOP_K.value] = choice.top_k if choice.top_k < self._vocab else 0
        floats[TOP_P.value] = choice.top_p
        floats[MIN_P.value] = choice.min_p
        floats[ENTROPY_BOUND.value] = choice.entropy_bound
        words[SEED_LOW.value] = key.seed & MASK
        words[SEED_HIGH.value] = (key.seed >> 32) & MASK
        words[CHOICE.value] = key.choice & MASK
        words[CANVAS_INDEX.value] = key.canvas & MASK
        words[STEP.value] = key.step & MASK
        integers[LOGPROBS.value] = int(choice.logprobs is not None)
        stops = choice.banned_early if choice.early else ()
        integers[EARLY.value] = choice.early if stops else 0
        integers[STOPS.value] = len(stops)
        integers[STOP_TOKENS.value : STOP_TOKENS.value + len(stops)] = stops
        biases: dict[int, float] = {}
        for token, value in choice.logit_bias:
            biases[token] = biases.get(token, 0.0) + value
        integers[BIASED.value] = len(biases)
        integers[BIAS_TOKENS.value : BIAS_TOKENS.value + len(biases)] = list(biases)
        floats[BIAS_VALUES.value : BIAS_VALUES.value + len(biases)] = list(biases.values())
        integers[PINS.value] = len(choice.pinned)
        integers[PINNED.value :] = -1
        for position, token in choice.pinned:
            integers[PINNED.value + position] = token

    def upload(self) -> None:
        """Copy to the device, in stream order. The rows must not change until the copy has been made."""
        self.device.copy_(self.host, non_blocking=True)

    def _check(self, choice: Choice, length: int) -> None:
        if not 0 < length <= CANVAS:
            raise ValueError(f"length: from 1 to {CANVAS}, not {length}")
        if set(choice.banned) != self._banned:
            raise ValueError("banned: tokens are banned for the whole engine, not for one canvas")
        if 2 * self._softcap / choice.schedule_temperature > MOST_SPREAD:
            raise ValueError(f"schedule_temperature: {choice.schedule_temperature} is too low for this engine")
        if len(choice.logit_bias) > MOST_BIASED:
            raise ValueError(f"logit_bias: at most {MOST_BIASED} tokens, not {len(choice.logit_bias)}")
        if len(choice.banned_early) > MOST_STOPS:
            raise ValueError(f"stop_token_ids: at most {MOST_STOPS} tokens, not {len(choice.banned_early)}")
        if any(not 0 <= position < length for position, _ in choice.pinned):
            raise ValueError(f"pinned: positions from 0 to {length - 1}")
        tokens = [t for t, _ in choice.logit_bias] + [t for _, t in choice.pinned] + list(choice.banned_early)
        if tokens and not (min(tokens) >= 0 and max(tokens) < self._vocab):
            raise ValueError(f"logit_bias, pinned, stop_token_ids: tokens from 0 to {self._vocab - 1}")

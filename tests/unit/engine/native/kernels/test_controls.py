"""A canvas's row of controls: what does not fit is refused by name; the draws' words are `noise`'s, bit by bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from easel.engine.native.kernels.controls import Controls
from easel.engine.native.kernels.philox import philox_words
from easel.engine.native.noise import MASK, DrawKey, philox
from easel.engine.native.sampler import Choice


@triton.jit
def _words(out, key, BLOCK: tl.constexpr):
    position = tl.arange(0, BLOCK)
    word, other = philox_words(
        position, tl.load(key), tl.load(key + 1), tl.load(key + 2), tl.load(key + 3), tl.load(key + 4)
    )
    tl.store(out + position, word.to(tl.int64))
    tl.store(out + BLOCK + position, other.to(tl.int64))


@pytest.mark.parametrize(
    ("step", "canvas", "choice", "low", "high"),
    [(0, 0, 0, 0, 0), (48, 3, 1, 7, 0), (1, MASK, 0x80000000, MASK, 0x80000001)],
)
def test_words_are_those_of_the_plain_generator(step: int, canvas: int, choice: int, low: int, high: int) -> None:
    key = torch.tensor([step, canvas, choice, low, high], dtype=torch.int64).to(torch.int32)
    out = torch.zeros(2, 256, dtype=torch.int64)
    _words[(1,)](out, key, BLOCK=256)
    counter = torch.tensor([0, step, canvas, choice]).repeat(256, 1)
    counter[:, 0] = torch.arange(256)
    expected = philox(counter, torch.tensor([low, high]))
    assert torch.equal(out[0], expected[:, 0])
    assert torch.equal(out[1], expected[:, 2])


@pytest.mark.parametrize(
    ("given", "length", "message"),
    [
        ({}, 0, "length: from 1 to 256"),
        ({}, 257, "length: from 1 to 256"),
        ({"banned": ()}, 256, "banned: tokens are banned for the whole engine"),
        ({"schedule_temperature": 0.39}, 256, "schedule_temperature: 0.39 is too low"),
        ({"logit_bias": tuple((i, 1.0) for i in range(301))}, 256, "logit_bias: at most 300"),
        ({"banned_early": tuple(range(65))}, 256, "stop_token_ids: at most 64"),
        ({"pinned": ((9, 1),)}, 9, "pinned: positions from 0 to 8"),
        ({"logit_bias": ((1000, 1.0),)}, 256, "tokens from 0 to 999"),
    ],
)
def test_what_does_not_fit_is_refused(given: dict[str, Any], length: int, message: str) -> None:
    controls = Controls(1, 1000, 30.0, (5,), "cpu")
    choice = Choice(**({"schedule_temperature": 0.4, "entropy_bound": 0.1, "banned": (5,)} | given))
    with pytest.raises(ValueError, match=message):
        controls.fill(0, choice, DrawKey(0, 0, 0, 1), length)

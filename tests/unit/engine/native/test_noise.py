"""Philox against published words, and what makes it fit for us: nothing but the key matters."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from easel.engine.native.noise import DrawKey, PhiloxNoise, philox

# Known answers that Random123 ships with its philox4x32-10: counter, key, words.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
KEYS = st.builds(
    DrawKey,
    seed=st.integers(0, 2**64 - 1),
    choice=st.integers(0, 2**31),
    canvas=st.integers(0, 2**31),
    step=st.integers(0, 1024),
)


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_matches_the_published_words(counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]) -> None:
    assert philox(torch.tensor([counter]), torch.tensor([key]))[0].tolist() == list(words)


@given(keys=st.lists(KEYS, min_size=1, max_size=4), vocab=st.integers(1, 2**20))
def test_draws_depend_on_their_key_alone(keys: list[DrawKey], vocab: int) -> None:
    together = PhiloxNoise().draws(keys, 5, vocab)
    assert 0 <= together.uniform.min() <= together.uniform.max() < 1
    assert 0 <= together.random_tokens.min() <= together.random_tokens.max() < vocab
    for row, key in enumerate(keys):
        alone = PhiloxNoise().draws([key], 9, vocab)
        assert torch.equal(alone.uniform[0, :5], together.uniform[row])
        assert torch.equal(alone.random_tokens[0, :5], together.random_tokens[row])


@pytest.mark.parametrize("field", DrawKey._fields)
def test_every_part_of_the_key_matters(field: str) -> None:
    key = DrawKey(3, 1, 4, 1)
    one, other = (PhiloxNoise().draws([k], 32, 1000) for k in (key, key._replace(**{field: 2})))
    assert (one.uniform != other.uniform).all()


def test_high_half_of_the_seed_matters() -> None:
    one, other = (PhiloxNoise().draws([DrawKey(seed, 0, 0, 0)], 32, 1000) for seed in (5, 5 + 2**32))
    assert (one.uniform != other.uniform).all()


def test_draws_are_spread_evenly() -> None:
    draws = PhiloxNoise().draws([DrawKey(0, 0, canvas, 1) for canvas in range(64)], 256, 16)
    assert abs(draws.uniform.mean().item() - 0.5) < 0.01
    counts = torch.bincount(draws.random_tokens.flatten(), minlength=16)
    assert (counts - 1024).abs().max() < 160  # five standard deviations

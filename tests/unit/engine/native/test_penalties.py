"""Penalties as a bias that holds still for a canvas."""

from __future__ import annotations

import pytest

from easel.engine.native.penalties import biases
from easel.protocol import MOST_BIASED, Sampling


def test_without_penalties_a_requests_own_biases_are_all() -> None:
    assert biases(Sampling(logit_bias=((3, 1.0),)), [3, 3, 4]) == ((3, 1.0),)


def test_what_was_committed_counts_once_for_presence_and_each_time_for_frequency() -> None:
    found = dict(
        biases(Sampling(presence_penalty=0.5, frequency_penalty=0.25, logit_bias=((9, 2.0), (4, 1.0))), [3, 3, 4])
    )
    assert found == pytest.approx({3: -1.0, 4: 0.25, 9: 2.0})
    assert biases(Sampling(presence_penalty=0.5), []) == ()
    assert biases(Sampling(presence_penalty=-1.0), [7]) == ((7, 1.0),), "below zero it invites repetition"


def test_the_most_penalised_are_kept_where_not_all_fit() -> None:
    committed = [token for token in range(400) for _ in range(1 + token // 200)]
    own = tuple((token, -5.0) for token in range(1000, 1100))
    found = dict(biases(Sampling(frequency_penalty=1.0, logit_bias=own), committed))
    assert len(found) == MOST_BIASED
    assert all(found[token] == -5.0 for token, _ in own)
    assert sorted(token for token in found if token < 1000) == list(range(200, 400))

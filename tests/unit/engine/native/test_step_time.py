"""The line through steps already done."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easel.engine.native.step_time import StepTimer


def test_knows_nothing_before_the_first_step() -> None:
    assert StepTimer().model.seconds(3) == 0.0


def test_one_size_gives_the_mean_and_two_a_line() -> None:
    timer = StepTimer()
    timer.took(2.0, 0.5)
    timer.took(2.0, 0.7)
    assert timer.model.seconds(2.0) == pytest.approx(0.6, rel=0.02)
    for groups in (1.0, 4.0, 2.0) * 300:
        timer.took(groups, 0.1 + 0.05 * groups)
    assert (timer.model.base_s, timer.model.per_group_s) == (
        pytest.approx(0.1, rel=1e-3),
        pytest.approx(0.05, rel=1e-3),
    )


@given(samples=st.lists(st.tuples(st.floats(0.01, 100), st.floats(0, 10)), min_size=1, max_size=50))
def test_never_expects_less_than_nothing(samples: list[tuple[float, float]]) -> None:
    timer = StepTimer()
    for groups, seconds in samples:
        timer.took(groups, seconds)
    assert timer.model.base_s >= 0
    assert timer.model.per_group_s >= 0
    assert timer.model.samples == len(samples)


def test_a_step_that_took_a_thousand_times_as_long_is_no_rule() -> None:
    timer = StepTimer()
    for _ in range(20):
        timer.took(6.0, 0.004)
    timer.took(6.0, 6.4)
    assert timer.model.seconds(6.0) < 0.006
    for _ in range(200):
        timer.took(6.0, 6.4)  # but two hundred are
    assert timer.model.seconds(6.0) == pytest.approx(6.4, rel=0.05)


@pytest.mark.parametrize("slow", [1, 3])
def test_first_steps_that_took_long_are_forgotten_at_the_first_that_did_not(slow: int) -> None:
    timer = StepTimer()
    for groups in range(slow):
        timer.took(1.0 + groups, 6.4)
    timer.took(6.0, 0.004)
    assert timer.model.seconds(6.0) == pytest.approx(0.004)
    assert timer.model.samples == slow + 1


def test_a_step_of_another_size_is_no_reason_to_forget() -> None:
    timer = StepTimer()
    for _ in range(50):
        timer.took(16.0, 0.1 + 0.05 * 16)
    timer.took(0.5, 0.1 + 0.05 * 0.5)
    assert timer.model.seconds(16.0) == pytest.approx(0.1 + 0.05 * 16)
    timer.took(64.0, 0.1 + 0.05 * 64)
    assert timer.model.seconds(64.0) == pytest.approx(0.1 + 0.05 * 64)

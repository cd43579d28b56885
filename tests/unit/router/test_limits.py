"""Limits of keys on a clock that the test turns: what goes, what is charged afterwards, and when to come back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easel.errors import RateLimited
from easel.router.limits import Limiter
from easel.settings import KeyLimits
from tests.unit.router.making import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def limiter(clock: FakeClock) -> Limiter:
    return Limiter(clock)


def test_a_key_without_limits_is_never_refused(limiter: Limiter) -> None:
    for _ in range(1000):
        limiter.take("free", KeyLimits(), 10_000).used(10_000, 1000)
    assert limiter.standing("free", KeyLimits()) == []


def test_requests_come_back_at_the_rate_of_the_limit(limiter: Limiter, clock: FakeClock) -> None:
    limits = KeyLimits(requests_per_minute=6)
    for _ in range(6):
        limiter.take("a", limits, 1)
    with pytest.raises(RateLimited, match="requests per minute: limit 6") as refused:
        limiter.take("a", limits, 1)
    assert refused.value.retry_after_s == pytest.approx(10.0)
    limiter.take("b", limits, 1)  # another key has its own
    clock.now += 10.0
    limiter.take("a", limits, 1)


def test_answers_are_charged_when_they_come_and_paid_back(limiter: Limiter, clock: FakeClock) -> None:
    limits = KeyLimits(tokens_per_minute=600, denoising_steps_per_minute=60)
    grant = limiter.take("a", limits, 100)
    grant.used(700, 30)  # 200 below zero
    with pytest.raises(RateLimited, match="tokens per minute: limit 600") as refused:
        limiter.take("a", limits, 10)
    assert refused.value.retry_after_s == pytest.approx(21.0)
    clock.now += 21.0
    limiter.take("a", limits, 10).used(0, 200)
    clock.now += 10.0
    with pytest.raises(RateLimited, match="denoising steps per minute: limit 60"):
        limiter.take("a", limits, 1)


def test_a_prompt_longer_than_the_limit_goes_when_all_of_it_is_there(limiter: Limiter, clock: FakeClock) -> None:
    limits = KeyLimits(tokens_per_minute=100)
    limiter.take("a", limits, 500)
    with pytest.raises(RateLimited) as refused:
        limiter.take("a", limits, 1)
    assert refused.value.retry_after_s == 120.0  # 401 tokens of it take longer, but SDKs wait no more than that
    clock.now += 401 * 0.6
    limiter.take("a", limits, 1)


def test_calls_at_once_are_counted_until_they_end(limiter: Limiter) -> None:
    limits = KeyLimits(max_concurrent=2)
    first = limiter.take("a", limits, 1)
    limiter.take("a", limits, 1)
    with pytest.raises(RateLimited, match="concurrent requests: limit 2"):
        limiter.take("a", limits, 1)
    first.end()
    first.end()
    assert limiter.running("a") == 1
    limiter.take("a", limits, 1)
    assert limiter.running("nobody") == 0


def test_where_a_key_stands_is_told(limiter: Limiter, clock: FakeClock) -> None:
    limits = KeyLimits(requests_per_minute=60, tokens_per_minute=600)
    limiter.take("a", limits, 60)
    requests, tokens = limiter.standing("a", limits)
    assert (requests.name, requests.limit, requests.remaining, requests.reset_s) == ("requests", 60, 59, 1.0)
    assert (tokens.name, tokens.limit, tokens.remaining, tokens.reset_s) == ("tokens", 600, 540, 6.0)


def test_a_limit_that_changes_takes_what_is_left_along(limiter: Limiter) -> None:
    limiter.take("a", KeyLimits(requests_per_minute=10), 1).end()
    (standing,) = limiter.standing("a", KeyLimits(requests_per_minute=100))
    assert (standing.limit, standing.remaining) == (100, 90)
    assert limiter.standing("a", KeyLimits()) == []


def test_a_limit_that_came_later_holds_beside_calls_from_before_it(limiter: Limiter, clock: FakeClock) -> None:
    before, since = KeyLimits(tokens_per_minute=100), KeyLimits(tokens_per_minute=100, denoising_steps_per_minute=60)
    older = limiter.take("a", before, 1)
    limiter.take("a", since, 1).used(1, 90)
    older.used(1, 10)
    with pytest.raises(RateLimited, match="denoising steps per minute") as refused:
        limiter.take("a", since, 1)
    assert refused.value.retry_after_s == pytest.approx(41.0)
    clock.now += 41.0
    limiter.take("a", since, 1)


def test_ingresses_share_a_limit(limiter: Limiter) -> None:
    limits = KeyLimits(requests_per_minute=9, max_concurrent=4)
    limiter.share(3)
    limiter.take("a", limits, 1)
    limiter.take("a", limits, 1)
    with pytest.raises(RateLimited, match="concurrent"):
        limiter.take("a", limits, 1)
    (standing,) = limiter.standing("a", limits)
    assert (standing.limit, standing.remaining) == (9, 3)


def test_keys_that_are_gone_are_forgotten_once_they_rest(limiter: Limiter) -> None:
    limits = KeyLimits(requests_per_minute=2)
    grant = limiter.take("a", limits, 1)
    limiter.keep(set())
    grant.end()
    limiter.keep(set())
    assert limiter.standing("a", limits)[0].remaining == 2


@given(st.lists(st.tuples(st.floats(0.0, 10.0), st.integers(0, 50), st.integers(0, 200)), max_size=60))
def test_over_time_no_more_is_used_than_the_limit_says(calls: list[tuple[float, int, int]]) -> None:
    clock = FakeClock()
    limiter, limits = Limiter(clock), KeyLimits(tokens_per_minute=120)
    began, used, largest = clock.now, 0, 0
    for wait, prompt, answer in calls:
        clock.now += wait
        try:
            grant = limiter.take("a", limits, prompt)
        except RateLimited:
            continue
        grant.used(answer, 1)
        used, largest = used + prompt + answer, max(largest, prompt + answer)
        assert used <= 120 + (clock.now - began) * 2.0 + largest + 1e-6

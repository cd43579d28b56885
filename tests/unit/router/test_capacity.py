"""Throughput, seats and how ingresses share them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easel.protocol import EngineState, StepTimeModel
from easel.router.arrivals import ArrivalRate
from easel.router.capacity import LEAST_STEPS, Capacity, Throughput, efficient_canvases, share, total, work_rate
from tests.unit.router.making import FakeClock, stats


def test_the_efficient_number_is_where_more_canvases_hardly_help() -> None:
    assert efficient_canvases(StepTimeModel(0.0, 0.01, 5), 8) == 1  # twice the canvases take twice the time
    assert efficient_canvases(StepTimeModel(0.01, 0.0, 5), 8) == 8  # the more the better
    assert efficient_canvases(StepTimeModel(0.008, 0.002, 5), 8) == 6
    assert efficient_canvases(StepTimeModel(), 8) == 8


def test_a_rate_is_that_of_all_slots_or_fewer() -> None:
    assert work_rate(stats()) == pytest.approx(8 / 0.024)
    assert work_rate(stats(), 1) == pytest.approx(100.0)
    assert work_rate(stats(), 80) == work_rate(stats())
    assert work_rate(stats(step_time=StepTimeModel())) == 0.0


def test_replicas_add_up_and_those_of_unknown_speed_are_like_the_rest() -> None:
    everyone = [stats(), stats(step_time=StepTimeModel()), stats(state=EngineState.LOADING)]
    whole = total(everyone, surplus=1)
    assert (whole.seats, whole.replicas) == (18, 2)
    assert whole.work_per_s == pytest.approx(2 * 8 / 0.024)
    assert total([]) == Capacity()


@given(
    st.integers(0, 200),
    st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.floats(0, 300), min_size=1, max_size=8),
)
def test_shares_add_up_and_follow_need(seats: int, demands: dict[str, float]) -> None:
    whole = Capacity(seats, 100.0, 3)
    shares = {name: share(whole, demands, name) for name in demands}
    given_out = sum(one.seats for one in shares.values())
    if seats == 0:
        assert given_out == 0
        return
    assert all(one.seats >= 1 for one in shares.values())
    assert seats <= given_out <= max(seats, seats + len(demands) - 1)
    if seats >= len(demands) and given_out == seats:
        assert sum(one.work_per_s for one in shares.values()) == pytest.approx(100.0)
    for name, one in shares.items():  # nobody goes short while another has more than it needs
        if one.seats < demands[name]:
            assert all(other.seats <= max(one.seats + 1, demands[o] + 1, 1) for o, other in shares.items())


def test_an_ingress_that_is_not_listed_yet_counts_itself() -> None:
    whole = Capacity(8, 100.0, 1)
    assert share(whole, {}, "me").seats == 8
    assert share(whole, {"a": 100.0, "b": 100.0}, "me").seats == 1


def test_throughput_is_measured_while_there_is_more_work_than_seats() -> None:
    clock = FakeClock()
    meter = Throughput(clock)
    assert meter.rate(50.0) == 50.0
    assert meter.rate(0.0) == 0.0
    meter.did(1000.0)  # idle: says nothing of what could be done
    meter.busy(True)
    for _ in range(20):
        clock.now += 1.0
        meter.did(10.0)
    assert meter.rate(50.0) == pytest.approx(10.0, rel=0.1)
    assert meter.rate(0.0) == pytest.approx(10.0, rel=0.1)
    meter.busy(False)
    clock.now += 1000.0
    assert meter.rate(50.0) == pytest.approx(10.0, rel=0.1)
    meter.forget()
    assert meter.rate(50.0) == 50.0


def test_the_time_before_the_first_work_is_done_is_not_measured() -> None:
    clock = FakeClock()
    meter = Throughput(clock)
    for _ in range(2):  # from the start, and whenever more work than seats comes anew
        meter.busy(True)
        clock.now += 60.0
        meter.did(0.0)
        clock.now += 60.0
        meter.did(10.0)
        assert meter.rate(50.0) == 50.0
        assert meter.rate(0.0) == 0.0
        meter.busy(False)
    meter.busy(True)
    for _ in range(5):
        meter.did(10.0)
        clock.now += 1.0
        meter.busy(True)  # still
    assert meter.rate(0.0) == pytest.approx(8.0, rel=0.05)


def test_the_rate_of_a_replica_that_has_hardly_begun_is_not_known() -> None:
    for samples in range(LEAST_STEPS):
        assert total([stats(step_time=StepTimeModel(6.4, 0.0, samples))]).work_per_s == 0.0
    assert total([stats(step_time=StepTimeModel(6.4, 0.0, LEAST_STEPS))]).work_per_s == pytest.approx(8 / 6.4)


def test_arrivals_are_a_rate_of_late() -> None:
    clock = FakeClock()
    arrivals = ArrivalRate(clock, memory_s=10.0)
    arrivals.came(30.0)
    assert arrivals.rate() <= 32.0  # one request is no flood
    for _ in range(100):
        clock.now += 1.0
        arrivals.came(20.0)
    assert arrivals.rate() == pytest.approx(20.0, rel=0.1)
    clock.now += 60.0
    assert arrivals.rate() < 0.1

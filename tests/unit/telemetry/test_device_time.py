"""Device time: all shares and the idle time add up to devices times seconds, whatever comes and goes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easel.telemetry.device_time import DeviceTime


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_those_who_are_there_share_evenly() -> None:
    clock = Clock()
    time = DeviceTime[str](2.0, clock)
    clock.now += 1.0
    time.begin("a")
    clock.now += 1.0
    time.begin("b")
    time.begin("b")
    clock.now += 3.0
    time.end("a")
    clock.now += 1.0
    spent, idle = time.settle()
    assert idle == pytest.approx(2.0)
    assert spent == pytest.approx({"a": 2.0 + 2.0, "b": 4.0 + 2.0})
    assert time.settle() == ({"b": 0.0}, 0.0)


events = st.lists(st.tuples(st.sampled_from(["begin", "end", "settle"]), st.sampled_from("abc"), st.floats(0, 10)))


@given(events, st.sampled_from([1.0, 2.0, 8.0]))
def test_nothing_is_lost(events: list[tuple[str, str, float]], devices: float) -> None:
    clock, there = Clock(), dict.fromkeys("abc", 0)
    time = DeviceTime[str](devices, clock)
    total = 0.0
    for what, who, passed in events:
        clock.now += passed
        if what == "begin":
            time.begin(who)
            there[who] += 1
        elif what == "end" and there[who]:
            time.end(who)
            there[who] -= 1
        elif what == "settle":
            spent, idle = time.settle()
            total += sum(spent.values()) + idle
    spent, idle = time.settle()
    assert total + sum(spent.values()) + idle == pytest.approx(devices * (clock.now - 100.0))

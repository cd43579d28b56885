"""Suspects: who is tried again, where, and who never."""

from __future__ import annotations

import dataclasses

from easel.protocol import Sampling
from easel.router.quarantine import Quarantine, Verdict
from tests.unit.router.making import FakeClock, request


def test_once_again_elsewhere_then_never() -> None:
    quarantine = Quarantine(FakeClock())
    asked = request("x", deadline_at=5.0)
    assert not quarantine.refuses(asked)
    assert quarantine.died(asked, "a", emitted=False) is Verdict.RETRY
    assert quarantine.avoid(asked) == {"a"}
    assert not quarantine.refuses(asked)
    assert quarantine.died(asked, "b", emitted=False) is Verdict.QUARANTINE
    same = dataclasses.replace(request("y", deadline_at=9.0), sampling=Sampling(seed=7))
    assert quarantine.refuses(same)
    assert not quarantine.refuses(request("x", prompt=11))


def test_after_part_of_an_answer_there_is_no_second_try_but_a_first_suspicion() -> None:
    quarantine = Quarantine(FakeClock())
    assert quarantine.died(request(), "a", emitted=True) is Verdict.FAIL
    assert quarantine.died(request("again"), "b", emitted=False) is Verdict.QUARANTINE


def test_one_that_is_answered_is_no_suspect_any_more() -> None:
    quarantine = Quarantine(FakeClock())
    quarantine.survived(request())
    quarantine.died(request(), "a", emitted=False)
    quarantine.survived(request())
    assert len(quarantine) == 0
    assert quarantine.died(request(), "b", emitted=False) is Verdict.RETRY


def test_suspects_are_kept_apart() -> None:
    quarantine = Quarantine(FakeClock())
    guilty, innocent, other = request("g", prompt=5), request("i", prompt=6), request("o", prompt=7)
    for one in (guilty, innocent):
        quarantine.died(one, "a", emitted=False)
    quarantine.runs(guilty, "b")
    quarantine.runs(other, "c")
    assert quarantine.avoid(innocent) == {"a", "b"}
    assert quarantine.away(innocent, ["b", "c"]) == ["c"]
    assert quarantine.away(innocent, ["b"]) == []
    assert quarantine.away(other, ["b"]) == ["b"]
    assert quarantine.avoid(other) == frozenset()
    quarantine.left(guilty)
    assert quarantine.away(innocent, ["b"]) == ["b"]


def test_choices_of_a_call_share_one_death() -> None:
    quarantine = Quarantine(FakeClock())
    assert quarantine.died(request("x-0"), "a", emitted=False) is Verdict.RETRY
    assert quarantine.died(request("x-1"), "a", emitted=False) is Verdict.RETRY
    assert quarantine.died(request("x-0"), "b", emitted=False) is Verdict.QUARANTINE


def test_suspicion_ends_with_time_and_the_oldest_goes_first() -> None:
    clock = FakeClock()
    quarantine = Quarantine(clock, keep_s=10.0, most=2)
    for size in (5, 6, 7):
        quarantine.died(request(prompt=size), "a", emitted=False)
    assert len(quarantine) == 2
    clock.now += 11.0
    assert len(quarantine) == 0
    assert quarantine.away(request(prompt=7), ["a"]) == ["a"]

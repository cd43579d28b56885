"""Where a request goes, by what is known of replicas and what was sent since."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from easel.prefixes import prefix_hashes
from easel.protocol import EngineState, StepTimeModel
from easel.router.batching import Batcher
from easel.router.placement import Placement
from easel.settings import RouterSettings
from tests.unit.router.making import FakeClock, request, stats

RATE = 8 / 0.024


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def placement(clock: FakeClock) -> Placement:
    return Placement(RouterSettings(), clock, Random(1), wall=clock)


def best(placement: Placement, *names: str, **more: object) -> str:
    return placement.place(request(**more), names)[0].replica  # type: ignore[arg-type]


def test_as_many_requests_count_by_the_work_they_have_left(placement: Placement) -> None:
    placement.report("long", stats(remaining=400.0, sequences=4))
    placement.report("short", stats(remaining=20.0, sequences=4))
    assert best(placement, "long", "short") == "short"


def test_few_that_stay_are_better_company_than_many_that_go_soon(placement: Placement) -> None:
    placement.report("few", stats(remaining=400.0, sequences=1))
    placement.report("many", stats(remaining=60.0, sequences=6))
    few, many = placement.place(request(), ["few", "many"])
    assert few.replica == "few"
    assert few.work > many.work


def test_of_full_replicas_the_one_whose_slots_come_free_first(placement: Placement) -> None:
    placement.report("long", stats(remaining=800.0, sequences=8))
    placement.report("soon", stats(remaining=80.0, sequences=8, waiting=1))
    first, second = placement.place(request(), ["long", "soon"])
    assert (first.replica, first.free) == ("soon", -1)
    assert 0.0 < first.wait_s < second.wait_s


def test_a_free_slot_comes_before_less_work(placement: Placement) -> None:
    placement.report("full", stats(remaining=9.0, sequences=8))
    placement.report("free", stats(remaining=5000.0, sequences=7))
    assert [place.replica for place in placement.place(request(), ["full", "free"])] == ["free", "full"]


@pytest.mark.parametrize("state", [EngineState.LOADING, EngineState.DRAINING, EngineState.FAILED])
def test_only_those_that_take_requests(placement: Placement, state: EngineState) -> None:
    placement.report("other", stats(state=state))
    assert placement.place(request(), ["other"]) == []
    placement.report("ready", stats(remaining=5000.0, sequences=8))
    assert [place.replica for place in placement.place(request(), ["other", "ready"])] == ["ready"]
    assert placement.capacity.replicas == 1


def test_avoids_some_as_long_as_there_are_others(placement: Placement) -> None:
    placement.report("a", stats())
    placement.report("b", stats(remaining=900.0, sequences=7))
    assert [place.replica for place in placement.place(request(), ["a", "b"], avoid={"a"})] == ["b"]
    assert placement.place(request(), ["a"], avoid={"a"})[0].replica == "a"


def test_statistics_age_by_the_work_that_is_done_meanwhile(placement: Placement, clock: FakeClock) -> None:
    placement.report("old", stats(remaining=600.0, sequences=8))
    clock.now += 1.0
    placement.report("new", stats(remaining=400.0, sequences=8, at=clock.now))
    old, new = sorted(placement.place(request(), ["old", "new"]), key=lambda place: place.replica == "new")
    assert old.work == pytest.approx(600.0 - RATE)
    assert new.work == pytest.approx(400.0)
    clock.now += 100.0
    assert placement.place(request(), ["old"])[0].work == 8.0  # each has a step to do


def test_what_was_sent_since_counts_until_statistics_know_of_it(placement: Placement, clock: FakeClock) -> None:
    for name in ("a", "b"):
        placement.report(name, stats())
    sent = [request(str(i)) for i in range(6)]
    for one in sent:
        clock.now += 0.001
        placement.sent(one, 30.0, placement.place(one, ["a", "b"])[0].replica)
    assert Counter(placement.where(one.id) for one in sent) == {"a": 3, "b": 3}
    clock.now += 0.1
    placement.report("a", stats(remaining=90.0, sequences=3, at=clock.now))
    (place,) = placement.place(request(), ["a"])
    assert (place.free, place.work) == (5, 90.0)


def test_statistics_that_were_long_on_the_way_do_not_hide_what_was_sent(placement: Placement, clock: FakeClock) -> None:
    placement.report("a", stats(at=clock.now - 1.0))
    placement.sent(request("x"), 30.0, "a")
    clock.now += 0.4
    placement.report("a", stats(at=clock.now - 0.5))  # taken before it was sent
    (place,) = placement.place(request(), ["a"])
    assert (place.free, place.work) == (7, 30.0)


def test_what_has_ended_leaves_slot_and_work(placement: Placement, clock: FakeClock) -> None:
    placement.report("a", stats(at=clock.now))
    placement.sent(request("x"), 30.0, "a")
    clock.now += 1.0
    placement.report("a", stats(remaining=25.0, sequences=1, at=clock.now))
    placement.progress("x", 20.0)
    placement.progress("nobody", 20.0)
    placement.ended("x")
    placement.ended("x")
    (place,) = placement.place(request(), ["a"])
    assert (place.free, place.work) == (8, 5.0)
    assert placement.where("x") is None


def test_a_replica_that_is_gone_takes_its_requests_along(placement: Placement) -> None:
    placement.keep(["a", "b"])
    placement.sent(request("x"), 30.0, "a")
    placement.keep(["b", "c"])
    assert placement.where("x") is None
    assert sorted(placement.replicas) == ["b", "c"]
    placement.ended("x")
    assert placement.capacity.seats == 2 * (1 + RouterSettings().surplus_requests)


def test_the_bound_on_steps_is_the_lowest_of_those_that_take_requests(placement: Placement, clock: FakeClock) -> None:
    assert placement.step_bound is None
    placement.report("a", stats(max_denoising_steps=20))
    placement.report("b", stats(max_denoising_steps=5))
    placement.report("silent", stats())
    assert placement.step_bound == 5
    clock.now += 1
    placement.report("b", stats(at=clock.now, state=EngineState.DRAINING, max_denoising_steps=5))
    assert placement.step_bound == 20
    placement.keep([])
    assert placement.step_bound == 20, "the next replica is told the same"
    placement.report("c", stats(at=clock.now))
    assert placement.step_bound is None


def test_a_prefix_is_followed_while_it_saves_more_than_it_costs(placement: Placement) -> None:
    tokens = tuple(range(256 * 8))
    holder = prefix_hashes(tokens)
    # 8 blocks are 4 steps of prefill, about 50 ms; each request beside it costs 2 ms at each of 27 steps.
    placement.report("holder", stats(remaining=15.0, sequences=1, prefix_digest=holder))
    placement.report("other", stats())
    places = placement.place(request(tokens=tokens), ["holder", "other"])
    assert places[0].replica == "holder"
    assert places[0].cached_tokens == 256 * 8
    placement.report("holder", stats(remaining=4000.0, sequences=7, prefix_digest=holder, at=101.0))
    assert best(placement, "holder", "other", tokens=tokens) == "other"


def test_what_was_sent_makes_a_prefix(placement: Placement) -> None:
    tokens = tuple(range(256 * 20))
    for name in ("a", "b"):
        placement.report(name, stats(prefix_digest=(1,)))
    placement.sent(request("x", tokens=tokens), 5.0, "b")
    assert best(placement, "a", "b", tokens=tokens) == "b"


def test_with_many_replicas_two_and_the_holders_are_compared(clock: FakeClock) -> None:
    placement = Placement(RouterSettings(choices_of_two_above=4), clock, Random(3), wall=clock)
    names = [f"r{i}" for i in range(40)]
    tokens = tuple(range(256 * 8))
    for i, name in enumerate(names):
        placement.report(
            name, stats(remaining=4.0 * i, sequences=4, prefix_digest=prefix_hashes(tokens) if i == 39 else ())
        )
    first = Counter(best(placement, *names) for _ in range(400))
    assert len(first) > 20  # nobody is everybody's first choice
    assert first["r38"] < first["r1"]
    compared = {place.replica for place in placement.place(request(tokens=tokens), names)[:3]}
    assert "r39" in compared
    assert len(placement.place(request(), names)) == 40


def test_a_replica_of_unknown_speed_counts_as_the_others(placement: Placement) -> None:
    placement.report("known", stats(remaining=100.0, sequences=4))
    placement.report("new", stats(remaining=50.0, sequences=2, step_time=StepTimeModel()))
    assert best(placement, "known", "new") == "new"


def test_choices_of_a_call_share_a_replica_up_to_the_efficient_number(placement: Placement) -> None:
    for name in ("a", "b", "c"):
        placement.report(name, stats(prefix_digest=(1,), step_time=StepTimeModel(0.008, 0.002, 9)))
    tokens = tuple(range(600))
    call = [(request(f"x{i}", tokens=tokens, group="x", choice=i), 30.0) for i in range(9)]
    bundles = Batcher(placement).bundle(call, ["a", "b", "c"])
    assert sorted(len(bundle.requests) for bundle in bundles) == [3, 6]  # 6 canvases do 90 % of what 8 do
    assert all(bundle.shared_tokens == 512 for bundle in bundles)
    assert all(placement.where(one.id) == bundle.replica for bundle in bundles for one in bundle.requests)


def test_without_prefix_caches_everyone_is_placed_for_himself(placement: Placement) -> None:
    for name in ("a", "b"):
        placement.report(name, stats())
    call = [(request(f"x{i}", prompt=600), 30.0) for i in range(4)]
    bundles = Batcher(placement).bundle(call, ["a", "b"])
    assert [bundle.shared_tokens for bundle in bundles] == [0] * 4
    assert Counter(bundle.replica for bundle in bundles) == {"a": 2, "b": 2}


def test_those_that_share_nothing_go_alone_and_what_nobody_takes_stays(placement: Placement) -> None:
    for name in ("a", "b"):
        placement.report(name, stats(prefix_digest=(1,)))
    different = [(request("x", tokens=(5,) * 512), 9.0), (request("y", tokens=(6,) * 512), 9.0), (request("z"), 9.0)]
    assert [len(bundle.requests) for bundle in Batcher(placement).bundle(different, ["a", "b"])] == [1, 1, 1]
    half = [(request("p", tokens=(5,) * 256 + (6,) * 256), 9.0), (request("q", tokens=(5,) * 512), 9.0)]
    (bundle,) = Batcher(placement).bundle(half, ["a", "b"])
    assert bundle.shared_tokens == 256
    assert Batcher(placement).bundle(half, []) == []


def test_prefixes_name_whole_blocks_with_all_before_them() -> None:
    tokens = tuple(range(1000))
    assert prefix_hashes(tokens) == prefix_hashes(tokens[:768])
    assert prefix_hashes(tokens[:512]) == prefix_hashes(tokens)[:2]
    assert prefix_hashes((7, *tokens[1:]))[1] != prefix_hashes(tokens)[1]
    assert prefix_hashes(tokens[:255]) == ()
    assert len(prefix_hashes(tuple(range(256 * 9)), most=4)) == 4
    assert all(0 <= one < 2**63 for one in prefix_hashes(tokens))
    assert prefix_hashes(tokens, known=prefix_hashes(tokens)[:1]) == prefix_hashes(tokens)
    assert prefix_hashes(tokens, known=(5,))[0] == 5, "what is known is not made again"

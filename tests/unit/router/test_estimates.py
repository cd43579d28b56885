"""What remains of a request, as learned from those before it."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easel.protocol import (
    CanvasCommitted,
    CanvasProgress,
    CanvasStop,
    Event,
    Failed,
    Finished,
    FinishReason,
    Preempted,
    Started,
    Usage,
)
from easel.router.curves import Curve
from easel.router.estimates import RequestWork, WorkEstimator, published
from easel.router.simulation.load import published_steps
from easel.telemetry.names import ESTIMATE_RATIO
from easel.telemetry.recorder import MemoryRecorder
from tests.unit.router.making import request


def canvas(index: int, steps: int, cap: int = 48, step_s: float = 0.01, at: float = 0.0) -> CanvasCommitted:
    stop = CanvasStop.STEP_CAP if steps >= cap else CanvasStop.CONVERGED
    return CanvasCommitted(index, (1,), steps, stop, at, at + steps * step_s)


def finished(work: float, reason: FinishReason = "stop") -> Finished:
    return Finished(reason, Usage(work=work))


def play(estimator: WorkEstimator, steps: list[int], reason: FinishReason = "stop", **asked: object) -> RequestWork:
    tracked = estimator.track(request(**asked))  # type: ignore[arg-type]
    events: list[Event] = [Started(0.0), *(canvas(index, count) for index, count in enumerate(steps))]
    for event in events:
        tracked.saw(event)
    tracked.saw(finished(tracked.done, reason))
    return tracked


def test_begins_with_what_is_published() -> None:
    estimate = WorkEstimator(256).estimate(request(prompt=512))
    assert estimate.steps == pytest.approx(26.7, abs=0.3)
    assert estimate.canvases == 1.0
    assert estimate.work == pytest.approx(2.0 + estimate.steps)


def test_a_tier_with_a_cap_is_expected_to_keep_it() -> None:
    assert WorkEstimator(256).estimate(request(max_steps=8)).steps == 8.0


def test_cached_and_committed_tokens_are_not_counted_again() -> None:
    estimator = WorkEstimator(256)
    whole = estimator.estimate(request(prompt=1024, max_tokens=512))
    assert estimator.estimate(request(prompt=1024, max_tokens=512), 512).work == pytest.approx(whole.work - 2.0)
    resumed = estimator.estimate(request(prompt=1024, max_tokens=512, resume=(1,) * 256))
    assert resumed.canvases == 1.0
    assert resumed.least_steps == 4.0


def test_learns_how_many_steps_a_canvas_takes() -> None:
    estimator = WorkEstimator(256)
    for _ in range(200):
        play(estimator, [12])
    assert estimator.estimate(request()).steps == pytest.approx(12.0, abs=1.0)


def test_learns_after_how_many_canvases_answers_end() -> None:
    estimator = WorkEstimator(256)
    for _ in range(200):
        play(estimator, [20, 20], max_tokens=4096)
    assert estimator.estimate(request(max_tokens=4096)).canvases == pytest.approx(2.0, abs=0.3)


def test_a_limit_that_cuts_answers_off_does_not_look_like_their_end() -> None:
    estimator = WorkEstimator(256)
    for _ in range(300):
        play(estimator, [20] * 4, reason="length", max_tokens=1024)
    assert estimator.estimate(request(max_tokens=1024)).canvases == pytest.approx(4.0, abs=0.1)


def test_tenants_differ_and_a_new_one_borrows() -> None:
    estimator = WorkEstimator(256)
    for _ in range(200):
        play(estimator, [10], tenant="easy")
        play(estimator, [40], tenant="hard")
    steps = {name: estimator.estimate(request(tenant=name)).steps for name in ("easy", "hard", "new")}
    assert steps["easy"] == pytest.approx(10.0, abs=1.5)
    assert steps["hard"] == pytest.approx(40.0, abs=1.5)
    assert steps["easy"] + 5 < steps["new"] < steps["hard"] - 5


def test_remaining_work_falls_with_each_canvas_and_step() -> None:
    estimator = WorkEstimator(256)
    tracked = estimator.track(request(prompt=512, max_tokens=1024))
    left = [tracked.remaining()]
    for event in (Started(0.0, cached_tokens=256), canvas(0, 20), canvas(1, 20), canvas(2, 20)):
        tracked.saw(event)
        left.append(tracked.remaining())
    assert left == sorted(left, reverse=True)
    assert tracked.done == pytest.approx(1.0 + 3 * 20 + 2)
    tracked.saw(CanvasProgress(3, 10, (), (), (), ()))
    assert tracked.remaining() < left[-1]
    tracked.saw(finished(90.0))
    assert (tracked.remaining(), tracked.done) == (0.0, 90.0)


def test_steps_that_no_event_told_of_are_counted_by_time() -> None:
    estimator = WorkEstimator(256)
    play(estimator, [30])
    assert estimator.step_s == pytest.approx(0.01)
    tracked = estimator.track(request())
    tracked.saw(Started(100.0))
    assert tracked.remaining(100.0) > tracked.remaining(100.05) > tracked.remaining(100.3) >= 1.0
    assert tracked.remaining(200.0) >= 1.0  # it has not ended, so there is something to do


def test_one_that_lost_its_cache_has_to_write_it_again() -> None:
    estimator = WorkEstimator(256)
    tracked = estimator.track(request(prompt=512, max_tokens=1024))
    tracked.saw(Started(0.0))
    tracked.saw(canvas(0, 20))
    before = tracked.remaining()
    tracked.saw(Preempted("kv_blocks", 1))
    assert tracked.remaining() == pytest.approx(before + 3.0)


def test_an_answer_that_nobody_reads_to_the_end_has_ended_there() -> None:
    estimator = WorkEstimator(256)
    for _ in range(100):
        tracked = estimator.track(request(max_tokens=4096))
        tracked.saw(Started(0.0))
        tracked.saw(canvas(0, 20))
        tracked.left()
        tracked.left()
        assert tracked.remaining() == 0.0
    assert estimator.estimate(request(max_tokens=4096)).canvases == pytest.approx(1.0, abs=0.3)


def test_one_that_failed_teaches_nothing_about_ends() -> None:
    estimator = WorkEstimator(256)
    before = estimator.estimate(request(max_tokens=4096)).canvases
    tracked = estimator.track(request(max_tokens=4096))
    tracked.saw(Failed("engine_failed", "gone", True))
    assert tracked.remaining() == 0.0
    assert estimator.estimate(request(max_tokens=4096)).canvases == pytest.approx(before)


def test_the_error_is_a_metric_and_small_on_load_as_published() -> None:
    recorder = MemoryRecorder()
    estimator, random = WorkEstimator(256, recorder=recorder, model="m"), Random(1)
    for _ in range(400):
        play(estimator, [published_steps(random) for _ in range(4)], reason="length", max_tokens=1024)
    (ratios,) = (values for (name, _), values in recorder.values.items() if name == ESTIMATE_RATIO.name)
    assert sum(ratios) / len(ratios) == pytest.approx(1.0, abs=0.05)


def test_kinds_are_bounded() -> None:
    estimator = WorkEstimator(256)
    for index in range(2000):
        estimator.estimate(request(tenant=str(index)))
    assert len(estimator._kinds) <= 512


def test_published_chances_make_the_published_mean() -> None:
    alive, mean = 1.0, 0.0
    for chance in published(48):
        mean += alive
        alive *= 1.0 - chance
    assert mean == pytest.approx(26.6, abs=0.2)
    assert alive == pytest.approx(0.21)
    assert len(published(1)) == 1


@given(st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=50), st.integers(1, 40), st.integers(0, 45))
def test_what_is_left_of_a_curve_is_within_its_cap(seen: list[tuple[int, bool]], cap: int, gone: int) -> None:
    parent = Curve(10, prior=[0.1] * 10)
    curve = Curve(10, parent)
    for count, ended in seen:
        curve.learn(count, ended)
    left = curve.left(gone, cap)
    assert left == 0.0 if gone >= cap else 1.0 - 1e-9 <= left <= cap - gone + 1e-9
    assert all(0.0 <= chance <= 1.0 for chance in curve.chances())


def test_a_curve_that_never_ends_goes_to_its_cap() -> None:
    curve = Curve(4, prior=[0.0] * 4)
    assert curve.left(0, 9) == 9.0
    assert curve.left(6, 9) == 3.0

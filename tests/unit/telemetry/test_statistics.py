"""Statistics as metrics: gauges as they are, what was added to totals, each step once."""

from __future__ import annotations

import random

import pytest

from easel.protocol import DenoisedPositions, EngineState, EngineStats, GpuStats, KvPool, StepTimeModel
from easel.telemetry import names
from easel.telemetry.recorder import MemoryRecorder
from easel.telemetry.statistics import StatisticsExport
from easel.telemetry.step_tally import MOST_STEPS, StepTally


@pytest.fixture
def recorder() -> MemoryRecorder:
    return MemoryRecorder()


@pytest.fixture
def export(recorder: MemoryRecorder) -> StatisticsExport:
    return StatisticsExport("easel", recorder)


def last(recorder: MemoryRecorder, metric: names.Metric, **labels: str) -> float:
    return recorder.values[metric.name, tuple(sorted({"model": "easel", **labels}.items()))][-1]


def test_gauges(export: StatisticsExport, recorder: MemoryRecorder) -> None:
    pools = (KvPool("full", 8, 2, 32), KvPool("sliding", 4, 3, 32))
    gpu = GpuStats("H100", 60, 80, 0.9)
    stats = EngineStats(
        EngineState.READY, 50.0, 4, 3, 2, 7.5, StepTimeModel(0.1, 0.2, 5), pools, last_step_at=49.0, gpu=gpu
    )
    export.export(stats, now=50.0)
    assert last(recorder, names.KV_USED) == 0.75
    assert last(recorder, names.KV_BLOCKS_FREE, pool="sliding") == 3
    assert last(recorder, names.KV_BLOCKS, pool="full") == 8
    assert last(recorder, names.ENGINE_STATE, state="ready") == 1
    assert last(recorder, names.ENGINE_STATE, state="failed") == 0
    assert last(recorder, names.TURN_AGE_SECONDS) == 1.0
    assert last(recorder, names.STEP_BASE_SECONDS) == 0.1
    assert last(recorder, names.STEP_GROUP_SECONDS) == 0.2
    assert last(recorder, names.GPU_MEMORY_USED, gpu="H100") == 60
    assert last(recorder, names.GPU_MEMORY, gpu="H100") == 80
    assert last(recorder, names.GPU_UTILISATION, gpu="H100") == 0.9


def test_a_card_whose_driver_says_nothing_has_no_utilisation(
    export: StatisticsExport, recorder: MemoryRecorder
) -> None:
    export.export(EngineStats(EngineState.READY, 0.0, gpu=GpuStats("H100", 60, 80)), now=1.0)
    assert names.GPU_UTILISATION.name not in {name for name, _ in recorder.values}


def test_what_was_added(export: StatisticsExport, recorder: MemoryRecorder) -> None:
    for total in (3.0, 3.0, 10.0):
        positions = DenoisedPositions(int(total) * 256, int(total) * 100, total * 5)
        stats = EngineStats(EngineState.READY, 0.0, counters={names.STEPS.name: total}, denoised={"1": positions})
        export.export(stats, now=1.0)
    assert recorder.total(names.STEPS) == 10
    assert recorder.total(names.DENOISED_POSITIONS, step="1") == 2560
    assert recorder.total(names.ACCEPTED_POSITIONS, step="1") == 1000
    assert recorder.total(names.POSITION_ENTROPY, step="1") == 50


def test_each_step_is_observed_once(export: StatisticsExport, recorder: MemoryRecorder) -> None:
    tally, random_ = StepTally(), random.Random(7)
    for _ in range(40):
        for _ in range(random_.randrange(60)):
            tally.took(0.02, 0.01, 3.0, 2, 4)
        export.export(EngineStats(EngineState.READY, 0.0, steps=tally.steps), now=1.0)
    assert tally.count > 500
    seconds = recorder.values[names.STEP_SECONDS.name, (("model", "easel"),)]
    assert seconds == [0.02] * tally.count
    assert set(recorder.values[names.STEP_RATIO.name, (("model", "easel"),)]) == {2.0}
    assert set(recorder.values[names.OCCUPANCY.name, (("model", "easel"),)]) == {0.5}


def test_a_step_that_nothing_was_expected_of_has_no_ratio(export: StatisticsExport, recorder: MemoryRecorder) -> None:
    tally = StepTally()
    tally.took(0.02, 0.0, 3.0, 2, 4)
    export.export(EngineStats(EngineState.READY, 0.0, steps=tally.steps), now=1.0)
    assert names.STEP_RATIO.name not in {name for name, _ in recorder.values}


def test_the_tally_forgets_old_steps_and_no_sums() -> None:
    tally = StepTally()
    for _ in range(5 * MOST_STEPS + 3):
        tally.took(0.01, 0.01, 1.0, 1, 1)
    tally.canvas(3, [0.5, 1.5, 0.0], [True, False, True])
    tally.canvas(4, [1.0, 0.0, 0.0], [True, True, True])
    assert len(tally.steps) == MOST_STEPS
    assert tally.steps[-1].number == tally.count == 5 * MOST_STEPS + 3
    assert tally.denoised == {"3-4": DenoisedPositions(6, 5, 3.0)}

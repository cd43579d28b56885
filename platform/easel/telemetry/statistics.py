"""An engine's statistics as metrics.

Owns: which number is which metric, and what was added to a total since it was last looked at. Refuses to know: the
engine, and how often this happens.
"""

from __future__ import annotations

from dataclasses import astuple

from easel.protocol import DenoisedPositions, EngineState, EngineStats
from easel.telemetry import names
from easel.telemetry.metric import Metric
from easel.telemetry.recorder import Recorder

TOTALS: tuple[Metric, ...] = (names.STEPS, names.PREEMPTIONS, names.PREFIX_ASKED, names.PREFIX_FOUND)
"""Those that engines give in `EngineStats.counters`."""
BY_STEP: tuple[Metric, ...] = (names.DENOISED_POSITIONS, names.ACCEPTED_POSITIONS, names.POSITION_ENTROPY)
"""In the order of the fields of `DenoisedPositions`."""


class StatisticsExport:
    """One for each replica. `model`: its name in metrics."""

    def __init__(self, model: str, recorder: Recorder) -> None:
        self._model = model
        self._recorder = recorder
        self._counted: dict[str, float] = {}
        self._by_step: dict[str, DenoisedPositions] = {}
        self._last_step = 0

    def export(self, stats: EngineStats, now: float) -> None:
        """Once for each snapshot, oldest first. `now`: Unix time."""
        self._seats(stats, now)
        self._cache(stats)
        self._steps(stats)
        self._gpu(stats)
        for metric in TOTALS:
            if metric.name in stats.counters:
                total = stats.counters[metric.name]
                self._recorder.add(metric, total - self._counted.get(metric.name, 0.0), model=self._model)
                self._counted[metric.name] = total
        for band, total_there in stats.denoised.items():
            before = astuple(self._by_step.get(band, DenoisedPositions()))
            for metric, new, old in zip(BY_STEP, astuple(total_there), before, strict=True):
                self._recorder.add(metric, new - old, model=self._model, step=band)
        self._by_step = dict(stats.denoised)

    def _seats(self, stats: EngineStats, now: float) -> None:
        put, model = self._recorder.set, self._model
        put(names.SLOTS, stats.slots, model=model)
        put(names.SLOTS_BUSY, stats.sequences, model=model)
        put(names.WAITING, stats.waiting, model=model)
        put(names.REMAINING_WORK, stats.remaining_work, model=model)
        for state in EngineState:
            put(names.ENGINE_STATE, float(stats.state is state), model=model, state=str(state))
        if stats.last_step_at > 0.0:
            put(names.TURN_AGE_SECONDS, max(0.0, now - stats.last_step_at), model=model)

    def _cache(self, stats: EngineStats) -> None:
        put, model = self._recorder.set, self._model
        for pool in stats.kv_pools:
            put(names.KV_BLOCKS, pool.blocks, model=model, pool=pool.name)
            put(names.KV_BLOCKS_FREE, pool.free, model=model, pool=pool.name)
        used = [1.0 - pool.free / pool.blocks for pool in stats.kv_pools if pool.blocks]
        if used:
            put(names.KV_USED, max(used), model=model)

    def _steps(self, stats: EngineStats) -> None:
        observe, model = self._recorder.observe, self._model
        if stats.step_time.samples:
            self._recorder.set(names.STEP_BASE_SECONDS, stats.step_time.base_s, model=model)
            self._recorder.set(names.STEP_GROUP_SECONDS, stats.step_time.per_group_s, model=model)
        for step in stats.steps:
            if step.number <= self._last_step:
                continue
            observe(names.STEP_SECONDS, step.seconds, model=model)
            observe(names.STEP_GROUPS, step.groups, model=model)
            observe(names.OCCUPANCY, step.canvases / max(1, step.slots), model=model)
            if step.expected_s > 0.0:
                observe(names.STEP_RATIO, step.seconds / step.expected_s, model=model)
        if stats.steps:
            self._last_step = stats.steps[-1].number

    def _gpu(self, stats: EngineStats) -> None:
        gpu, put = stats.gpu, self._recorder.set
        if gpu is None:
            return
        put(names.GPU_MEMORY, gpu.memory_total, model=self._model, gpu=gpu.name)
        put(names.GPU_MEMORY_USED, gpu.memory_used, model=self._model, gpu=gpu.name)
        if gpu.utilisation is not None:
            put(names.GPU_UTILISATION, gpu.utilisation, model=self._model, gpu=gpu.name)

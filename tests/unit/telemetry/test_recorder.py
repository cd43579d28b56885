"""Recorders that pass on: to several, and with few values for labels that have as many as there are customers."""

from __future__ import annotations

import pytest

from easel.telemetry import names
from easel.telemetry.recorder import Capped, MemoryRecorder, Several


def test_every_measurement_goes_to_all() -> None:
    first, second = MemoryRecorder(), MemoryRecorder()
    both = Several((first, second))
    both.add(names.STEPS, 2, model="m")
    both.set(names.SLOTS, 4, model="m")
    both.observe(names.STEP_SECONDS, 0.5, None, model="m")
    assert first.values == second.values
    assert len(first.values) == 3


def test_the_first_tenants_have_their_names_and_the_rest_is_other() -> None:
    memory = MemoryRecorder()
    capped = Capped(memory, 2)
    for tenant in ("a", "b", "c", "a", "d"):
        capped.add(names.WORK, 1.0, model="m", tenant=tenant, tier="t")
    for key in ("a", "b", "c"):
        capped.add(names.KEY_REQUESTS, key=key, tier="t")
    by_tenant = {
        dict(labels)["tenant"]: sum(v) for (name, labels), v in memory.values.items() if name == names.WORK.name
    }
    assert by_tenant == {"a": 2.0, "b": 1.0, "other": 2.0}
    assert memory.total(names.KEY_REQUESTS, key="other") == 1


def test_every_label_that_grows_with_customers_is_capped() -> None:
    growing = {label for metric in names.METRICS for label in metric.labels} & {"tenant", "key", "owner", "user"}
    assert growing == set(names.CAPPED_LABELS)


def test_the_tests_recorder_refuses_what_the_table_does_not_say() -> None:
    recorder = MemoryRecorder()
    with pytest.raises(ValueError, match="easel_slots"):
        recorder.add(names.SLOTS, model="m")
    with pytest.raises(ValueError, match="easel_slots"):
        recorder.set(names.SLOTS, 1, modle="m")

"""The table: names follow Prometheus' and OpenTelemetry's rules, and say each thing once."""

from __future__ import annotations

import re

import pytest

from easel.telemetry import spans
from easel.telemetry.metric import Metric, step_band
from easel.telemetry.names import ATTRIBUTES, LOG_FIELDS, METRICS, SPANS, Kind

BASE_UNITS = {"seconds", "bytes", "ratio"}


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_metric_is_named_as_prometheus_wants_it(metric: Metric) -> None:
    assert re.fullmatch(r"(easel|gen_ai)_[a-z0-9_]+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
    assert bool(metric.buckets) == (metric.kind is Kind.HISTOGRAM)
    assert list(metric.buckets) == sorted(set(metric.buckets))
    if metric.unit in BASE_UNITS:
        assert metric.name.removesuffix("_total").endswith("_" + metric.unit)
    assert metric.meaning.endswith(".")


def test_no_name_is_there_twice() -> None:
    for found in ([m.name for m in METRICS], [a.name for a in ATTRIBUTES], [s.name for s in SPANS]):
        assert len(found) == len(set(found))
    assert len({field.name for field in LOG_FIELDS}) == len(LOG_FIELDS)


def test_otlp_names_come_back_as_prometheus_names() -> None:
    """What a collector makes of them: dots are underscores, the unit and `_total` are put behind."""
    for metric in METRICS:
        made = metric.otlp_name.replace(".", "_")
        for unit, word in {"s": "seconds", "By": "bytes"}.items():
            made += f"_{word}" if metric.otlp_unit == unit else ""
        made += "_total" if metric.kind is Kind.COUNTER else ""
        assert made == metric.name


def test_spans_carry_known_attributes_only() -> None:
    known = {attribute.name for attribute in ATTRIBUTES}
    used = {name for span in SPANS for name in span.attributes}
    assert used == known
    assert set(SPANS) == {value for value in vars(spans).values() if isinstance(value, spans.SpanName)}


def test_steps_fall_into_few_bands() -> None:
    bands = [step_band(step) for step in range(1, 2000)]
    assert bands[0] == "1"
    assert bands[2] == bands[3] == "3-4"
    assert bands[47] == "25-48"
    assert bands[48] == bands[-1] == "49+"
    assert len(set(bands)) == 9

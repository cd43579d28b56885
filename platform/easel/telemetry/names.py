"""Every metric, span, attribute and log field, once: name, kind, unit, labels, buckets, meaning.

Emitters take their names from here, `docs/metrics.md` is generated from here, dashboards and alerts are checked
against it. The entries stand in `service_metrics`, `engine_metrics`, `spans` and `log_fields`; this is the table of
all. Labels have few values each: no request id, no text of a client's, and of tenants and keys the first
`telemetry.most_tenants` by name, the rest as `other`.
"""

from __future__ import annotations

from easel.telemetry import engine_metrics, service_metrics
from easel.telemetry.engine_metrics import *  # noqa: F403
from easel.telemetry.log_fields import LOG_FIELDS as LOG_FIELDS
from easel.telemetry.log_fields import LogField as LogField
from easel.telemetry.metric import Kind as Kind
from easel.telemetry.metric import Metric as Metric
from easel.telemetry.service_metrics import *  # noqa: F403
from easel.telemetry.spans import ATTRIBUTES as ATTRIBUTES
from easel.telemetry.spans import SPANS as SPANS

CAPPED_LABELS = ("tenant", "key")
"""Labels with as many values as there are customers: capped by `telemetry.most_tenants`."""


def _entries(module: object) -> tuple[Metric, ...]:
    return tuple(value for value in vars(module).values() if isinstance(value, Metric))


METRICS: tuple[Metric, ...] = (*_entries(service_metrics), *_entries(engine_metrics))
"""All metrics, in the order in which they are written down."""

"""What a query of Prometheus names: metrics and labels, held against the table of metrics.

Not a parser: it knows the shapes that our dashboards and rules use, and `promtool` (in the tests beside) checks the
grammar. A name that it cannot place is a mistake in the query or in the table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from easel.telemetry.names import METRICS, Kind, Metric

BY_NAME: dict[str, Metric] = {metric.name: metric for metric in METRICS}
OURS = "ray_"
"""What Ray puts in front of each name."""
EXPORTER = {"application", "deployment", "replica", "instance", "job", "SessionName", "WorkerId", "NodeAddress"}
"""Labels that Ray's exporter and Prometheus add to every series."""
RAYS_OWN: dict[str, set[str]] = {
    "ray_component_cpu_percentage": {"Component"},
    "ray_serve_deployment_replica_starts_total": set(),
    "ray_serve_deployment_status": set(),
}
"""Metrics of Ray itself that are used, with their labels beside the exporter's."""

RULES = Path(__file__).parents[2] / "ops/alerts/easel.rules.yaml"
ALL_RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
]
BY = re.compile(r"\bby \(([^)]*)\)")
RECORDED = {
    rule["record"]: set(re.findall(r"\w+", BY.findall(rule["expr"])[0])) for rule in ALL_RULES if "record" in rule
}
"""The labels of each recording rule: those that it sums by."""

_SERIES = re.compile(r"\b((?:ray_|easel:)[a-zA-Z0-9_:]+)\s*(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"')
_GROUPING = re.compile(r"\b(?:by|on|without|ignoring|group_left|group_right)\s*\(([^)]*)\)")


def metric_of(name: str) -> tuple[Metric, str] | None:
    """The entry of the table and, for a histogram, which part of it (`_bucket`, `_sum`, `_count`)."""
    plain = name.removeprefix(OURS)
    if plain in BY_NAME:
        return BY_NAME[plain], ""
    for part in ("_bucket", "_sum", "_count"):
        found = BY_NAME.get(plain.removesuffix(part))
        if plain.endswith(part) and found is not None and found.kind is Kind.HISTOGRAM:
            return found, part
    return None


def mistakes(query: str, recorded: Mapping[str, set[str]] = MappingProxyType({})) -> list[str]:
    """What it names that is not there. `recorded`: labels of each recording rule, by its name."""
    wrong: list[str] = []
    known: set[str] = set()
    bare = re.sub(r'"[^"]*"', '""', query)
    for name, inside in _SERIES.findall(query):
        if re.sub(r'"[^"]*"', '""', name) not in bare:
            continue  # inside a string
        if name in recorded:
            labels = recorded[name]
        elif name in RAYS_OWN:
            labels = RAYS_OWN[name] | EXPORTER
        elif (found := metric_of(name)) is not None:
            metric, part = found
            labels = {*metric.labels, *EXPORTER, *({"le"} if part == "_bucket" else ())}
            if metric.kind is Kind.HISTOGRAM and not part:
                wrong.append(f"{name} is a histogram: ask for _bucket, _sum or _count")
        else:
            wrong.append(f"no metric {name}")
            continue
        known |= labels
        wrong += [f"{name} has no label {label}" for label in _MATCHER.findall(inside) if label not in labels]
    for group in _GROUPING.findall(bare):
        wrong += [f"nothing has the label {label}" for label in re.findall(r"\w+", group) if label not in known]
    if not known and not wrong:
        wrong.append("it names no metric")
    return wrong

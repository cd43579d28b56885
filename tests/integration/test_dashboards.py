"""Every query of every dashboard returns data from a real Prometheus that scraped a real Easel under load."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from easel.rayserve.local import Local
from ops.dashboards.pages import PAGES
from ops.dashboards.panel import for_prometheus
from ops.observe.busy import busy
from ops.observe.load import Mixed
from ops.observe.prometheus import Line, Prometheus, executable, watching
from ops.observe.watched import ROOT, native, serving
from tests.integration.conftest import wait_until

NEEDS_A_GPU = {"easel-replica: GPU memory", "easel-replica: GPU busy"}
"""The only panels that may be empty."""
SECONDS = 60.0
QUERIES = [
    pytest.param(f"{board.uid}: {panel.title}", query.expr, id=f"{board.uid}: {panel.title}: {query.legend}")
    for board in PAGES.values()
    for panel in board.panels
    for query in panel.queries
]


@dataclass(frozen=True)
class Watched:
    local: Local
    prometheus: Prometheus
    load: Mixed
    began: float


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    if executable() is None:
        pytest.skip("no prometheus on this machine; on Debian: apt install prometheus")
    folder = tmp_path_factory.mktemp("watched")
    (folder / "prometheus").mkdir()
    before = os.environ.get("PYTHONPATH")
    rules = (ROOT / "ops/alerts/easel.rules.yaml").read_text()
    try:
        with (
            serving(native(folder), say=lambda line: None) as local,
            watching(local.session, folder / "prometheus", rules) as prometheus,
        ):
            began = time.time()
            with busy(local, folder, SECONDS) as load:
                yield Watched(local, prometheus, load, began)
    finally:
        if before is None:
            os.environ.pop("PYTHONPATH", None)
        else:
            os.environ["PYTHONPATH"] = before


@pytest.mark.parametrize(("panel", "expr"), QUERIES)
def test_a_query_returns_data(watched: Watched, panel: str, expr: str) -> None:
    def lines() -> list[Line]:
        return watched.prometheus.over(for_prometheus(expr, "20s", "2m"), watched.began, time.time(), 2.0)

    if panel in NEEDS_A_GPU and not lines():
        pytest.skip("needs a GPU")
    wait_until(lines, expr)  # the load goes on


def test_the_load_was_served(watched: Watched) -> None:
    """Data of a service that only refuses would prove little."""
    for kind in ("whole", "stream", "chat"):
        wait_until(lambda kind=kind: watched.load.seen[f"{kind} 200"] > 5, f"{kind} is answered")  # type: ignore[misc]


def test_every_rule_was_evaluated(watched: Watched) -> None:
    groups = watched.prometheus.ask("rules")["groups"]
    assert groups
    assert not [rule for group in groups for rule in group["rules"] if rule["health"] == "err"]

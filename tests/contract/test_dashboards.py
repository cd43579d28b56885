"""Dashboards ask for what there is, and every panel says what it shows, in which unit, and what good looks like.

That every query returns data is tests/integration/test_dashboards.py, on a real Prometheus.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from grafana_foundation_sdk.models import units

from ops.dashboards.pages import PAGES
from ops.dashboards.panel import for_prometheus, to_json
from ops.observe.prometheus import executable
from tests.contract.promql import RECORDED, mistakes

ROOT = Path(__file__).parents[2]
PANELS = {f"{board.uid}: {panel.title}": panel for board in PAGES.values() for panel in board.panels}


@pytest.mark.parametrize("name", PANELS)
def test_a_panel_asks_for_what_there_is(name: str) -> None:
    panel = PANELS[name]
    assert panel.queries
    assert not [(query.expr, wrong) for query in panel.queries if (wrong := mistakes(query.expr, RECORDED))]


@pytest.mark.parametrize("name", PANELS)
def test_a_panel_says_what_it_shows(name: str) -> None:
    panel = PANELS[name]
    assert panel.unit in UNITS
    assert len(panel.good.split()) >= 5
    assert panel.good.endswith(".")
    assert "  " not in panel.good
    assert len({query.legend for query in panel.queries}) == len(panel.queries)
    if panel.runbook:
        assert (ROOT / "ops/runbooks" / f"{panel.runbook}.md").is_file()


def test_titles_are_there_once() -> None:
    assert len(PANELS) == sum(len(board.panels) for board in PAGES.values()) >= 50


@pytest.mark.parametrize("uid", PAGES)
def test_what_grafana_imports_has_all_of_it(uid: str) -> None:
    board, made = PAGES[uid], json.loads(to_json(PAGES[uid]))
    panels = {panel["title"]: panel for panel in made["panels"] if panel["type"] != "row"}
    assert set(panels) == {panel.title for panel in board.panels}
    for panel in board.panels:
        drawn = panels[panel.title]
        assert drawn["description"] == panel.good
        assert drawn["fieldConfig"]["defaults"]["unit"] == panel.unit
        assert [target["expr"] for target in drawn["targets"]] == [query.expr for query in panel.queries]
        assert bool(drawn.get("links")) == bool(panel.runbook)
    boxes = [panel["gridPos"] for panel in made["panels"]]
    assert all(box["x"] + box["w"] <= 24 for box in boxes)
    cells = [(x, y) for box in boxes for x in range(box["x"], box["x"] + box["w"]) for y in [box["y"]]]
    assert len(cells) == len(set(cells)), "panels lie upon each other"


def test_promtool_can_read_every_query(tmp_path: Path) -> None:
    promtool = executable("promtool")
    if promtool is None:
        pytest.skip("no promtool on this machine; on Debian: apt install prometheus")
    rules = [
        {"record": f"query:{re.sub('[^a-z]', '_', name.lower())}:{number}", "expr": for_prometheus(query.expr)}
        for name, panel in PANELS.items()
        for number, query in enumerate(panel.queries)
    ]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    done = subprocess.run([promtool, "check", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout


@pytest.mark.parametrize(
    ("query", "wrong"),
    [
        ("sum(rate(ray_easel_requests_total[5m]))", []),
        ('sum by (le) (rate(ray_easel_queue_wait_seconds_bucket{model=~"$model"}[5m]))', []),
        ("ray_easel_nothing", ["no metric ray_easel_nothing"]),
        (
            "ray_easel_queue_wait_seconds",
            ["ray_easel_queue_wait_seconds is a histogram: ask for _bucket, _sum or _count"],
        ),
        ('ray_easel_slots{tenant="a"}', ["ray_easel_slots has no label tenant"]),
        ("sum by (tenent) (ray_easel_slots)", ["nothing has the label tenent"]),
        ("vector(1)", ["it names no metric"]),
    ],
)
def test_the_check_itself(query: str, wrong: list[str]) -> None:
    assert mistakes(query) == wrong


UNITS = {value for value in vars(units).values() if isinstance(value, str)}
"""Every unit that Grafana knows, by its id."""

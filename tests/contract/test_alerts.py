"""Rules that Prometheus reads, ask for what there is, and fire when they should and only then."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from easel.errors import tree
from ops.dashboards.queries import OUR_FAULT
from ops.observe.prometheus import executable, sooner
from tests.contract.promql import ALL_RULES, BY, EXPORTER, RECORDED, RULES, metric_of, mistakes

ALERTS = Path(__file__).parents[2] / "ops/alerts"
ALARMS = [rule for rule in ALL_RULES if "alert" in rule]
CASES: list[dict[str, Any]] = yaml.safe_load((ALERTS / "easel.tests.yaml").read_text())["tests"]


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    found = executable("promtool")
    if found is None:
        pytest.skip("no promtool on this machine; on Debian: apt install prometheus")
    return subprocess.run([found, *arguments], capture_output=True, text=True, check=False, cwd=ALERTS)


def test_promtool_reads_the_rules() -> None:
    done = promtool("check", "rules", RULES)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(ALL_RULES)} rules found" in done.stdout


@pytest.mark.timeout(600)  # days of rules: half a minute of a core, which may be busy
def test_alerts_fire_when_they_should() -> None:
    done = promtool("test", "rules", "easel.tests.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", sorted({rule["alert"] for rule in ALARMS}))
def test_each_alert_has_a_case_for_both(alert: str) -> None:
    """Each rule of it, where there are several: by severity."""
    asked = [case["exp_alerts"] for test in CASES for case in test["alert_rule_test"] if case["alertname"] == alert]
    fired = {told["exp_labels"]["severity"] for told_of in asked for told in told_of}
    assert fired == {rule["labels"]["severity"] for rule in ALARMS if rule["alert"] == alert}
    assert [] in asked, "no case in which it stays silent"


@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda rule: str(rule.get("alert") or rule.get("record")))
def test_a_rule_asks_for_what_there_is(rule: dict[str, Any]) -> None:
    assert mistakes(rule["expr"], RECORDED) == []


@pytest.mark.parametrize("rule", ALARMS, ids=lambda rule: f"{rule['alert']} {rule['labels']['severity']}")
def test_an_alert_says_what_somebody_woken_at_night_needs(rule: dict[str, Any]) -> None:
    notes = rule["annotations"]
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert "{{" in notes["summary"] or rule["alert"] == "EaselTelemetryGone"
    assert notes["description"].endswith(".")
    assert notes["runbook_url"] == f"ops/runbooks/{rule['alert']}.md"
    told = set(re.findall(r"\$labels\.(\w+)", notes["summary"]))
    grouped = {label for inside in BY.findall(rule["expr"]) for label in re.findall(r"\w+", inside)}
    grouped |= {label for name, labels in RECORDED.items() if name in rule["expr"] for label in labels}
    assert told <= grouped, "it speaks of a label that it does not have"


def test_the_codes_that_count_as_failures_are_those_of_the_service() -> None:
    """Every error with a status from 500 on that a client can meet, and none else."""
    patterns = {found for rule in ALL_RULES for found in re.findall(r'code=~"([^"]+)"', rule["expr"])}
    assert patterns == {OUR_FAULT, f"ok|{OUR_FAULT}"}
    assert "server_is_overloaded" in OUR_FAULT.split("|")
    assert {error.code for error in tree() if error.status < 500}.isdisjoint(OUR_FAULT.split("|"))


def test_time_runs_faster_in_drills() -> None:
    rules = yaml.safe_load(sooner(RULES.read_text(), 10))
    assert [rule["for"] for group in rules["groups"] for rule in group["rules"] if "for" in rule]
    text = yaml.safe_dump(
        {"groups": [{"rules": [{"record": "easel:x:rate5m", "expr": 'rate(a{le="2.0"}[5m]) > 0.5', "for": "10m"}]}]}
    )
    assert yaml.safe_load(sooner(text, 10))["groups"][0]["rules"][0] == {
        "record": "easel:x:rate5m",
        "expr": 'rate(a{le="2.0"}[30s]) > 0.5',
        "for": "60s",
    }


def test_the_labels_of_rays_exporter_are_not_ours() -> None:
    for rule in ALL_RULES:
        for name in re.findall(r"ray_easel_\w+", rule["expr"]):
            found = metric_of(name)
            assert found is not None
            assert not set(found[0].labels) & EXPORTER - {"application", "deployment", "replica"}

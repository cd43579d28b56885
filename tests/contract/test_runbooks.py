"""Every alert has a runbook, every runbook an alert and a drill, links lead somewhere, and commands ask for what is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ops.observe import runbooks
from ops.observe.drills import DRILLS
from tests.contract.promql import ALL_RULES, RECORDED, mistakes

ALERTS = sorted({rule["alert"] for rule in ALL_RULES if "alert" in rule})
QUERY = re.compile(r"promtool query instant \$PROMETHEUS '([^']+)'")
README = (runbooks.FOLDER / "README.md").read_text()
VARIABLES = set(re.findall(r"^\| `([A-Z_]+)`", README, re.MULTILINE))


def test_alerts_and_runbooks_and_drills_go_together() -> None:
    assert runbooks.all_alerts() == ALERTS
    assert sorted(alert for drill in DRILLS for alert in drill.alerts) == ALERTS
    assert sorted(re.findall(r"^\| \[(\w+)\]", README, re.MULTILINE)) == ALERTS


@pytest.mark.parametrize("alert", ALERTS)
def test_severities_in_the_table_are_those_of_the_rules(alert: str) -> None:
    severities = sorted({rule["labels"]["severity"] for rule in ALL_RULES if rule.get("alert") == alert})
    assert f"| [{alert}]({alert}.md) | {', '.join(severities)} |" in README


@pytest.mark.parametrize("alert", ALERTS)
def test_a_runbook_has_all_that_one_needs(alert: str) -> None:
    page = runbooks.read(alert)
    assert tuple(page.sections) == runbooks.SECTIONS
    assert all(len(text.split()) >= 10 for text in page.sections.values())
    assert len(page.commands("Diagnosis")) >= 3
    assert page.commands("Verify")


@pytest.mark.parametrize("alert", ALERTS)
def test_commands_ask_for_what_there_is(alert: str) -> None:
    page = runbooks.read(alert)
    commands = [*page.commands("Diagnosis"), *page.commands("Verify")]
    for command in commands:
        assert command.startswith(("promtool query instant ", "curl -sS ", "grep -h")), command
        assert set(re.findall(r"\$([A-Z_]+)", command)) <= VARIABLES
        for query in QUERY.findall(command):
            if query != "up":
                assert mistakes(query, RECORDED) == [], command
    assert any(QUERY.search(command) for command in commands)


@pytest.mark.parametrize("page", sorted(runbooks.FOLDER.glob("*.md")), ids=lambda path: str(path.stem))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target

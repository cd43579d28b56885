"""Figures can be traced: each results file says when, how and on what, and documents name files that are there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "ops" / "benches" / "results"
NAME = re.compile(r"\b20\d\d-\d\d-\d\d-[\w*-]+\.(?:json|md)")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("ops/**/*.md"), *ROOT.glob("ops/**/*.py")])


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.name)
def test_a_results_file_says_when_how_and_on_what(path: Path) -> None:
    found = json.loads(path.read_text())
    for one in found["runs"] if path.name == "2026-11-24-deadlines.json" else [found]:
        assert one["date"].startswith("20")
        assert one.get("command") or one["what"]
        assert one.get("machine") or one.get("gpu") or one["device"]


def test_every_results_file_that_a_page_names_is_there() -> None:
    named = {(path.name, name) for path in PAGES for name in NAME.findall(path.read_text())}
    assert len(named) > 30
    assert not [one for one in named if not list(RESULTS.glob(one[1]))]

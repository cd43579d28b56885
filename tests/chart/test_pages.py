"""Every `helm install` and `helm upgrade` that a page or a file of values shows renders, as it stands there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.chart.helm import ROOT, VERSIONS, run

PAGES = [
    *sorted((ROOT / "docs/operators").glob("*.md")),
    ROOT / "docs/chart.md",
    ROOT / "helm/easel/README.md",
    ROOT / "ops/images/README.md",
    *sorted((ROOT / "deployments").glob("*/values.yaml")),
]
STANDS_FOR = {"REGISTRY": "registry.example"}


def commands() -> list[tuple[str, str]]:
    """(page, command) of this chart's. Continued lines are joined, comments of YAML taken off."""
    found = []
    for page in PAGES:
        text = re.sub(r"^#\s*", "", page.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
        lines = [line.strip() for line in text.splitlines()]
        mine = [line for line in lines if re.match(r"helm (install|upgrade) \S+ helm/easel", line)]
        found += [(str(page.relative_to(ROOT)), line.split("     ")[0]) for line in mine]
    return found


def test_there_are_some() -> None:
    pages = {page for page, _ in commands()}
    assert {"docs/operators/install.md", "docs/operators/upgrade.md", "helm/easel/README.md"} <= pages
    assert {str(path.relative_to(ROOT)) for path in PAGES if path.suffix == ".yaml"} <= pages


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("page", "line"), commands())
def test_it_renders(page: str, line: str, version: str, tmp_path: Path) -> None:
    for word, value in STANDS_FOR.items():
        line = line.replace(word, value)
    _, _, release, chart, *options = shlex.split(line)
    # What the pages have the reader write.
    (tmp_path / "values.yaml").write_text("keys: {existingSecret: easel-keys}\n")
    (tmp_path / "keys.yaml").write_text('keys: {entries: [{id: me, sha256: "' + "0" * 64 + '"}]}\n')
    written = {name: str(tmp_path / name) for name in ("values.yaml", "keys.yaml")}
    options = [written.get(option, option) for option in options if not option.startswith("--dry-run")]
    assert "kind: RayService" in run(version, "template", release, chart, *options)

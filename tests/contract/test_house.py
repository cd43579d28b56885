"""The house keeps its shape: layers, light imports, sizes, and a standard library that nobody shadows."""

from __future__ import annotations

import ast
import platform
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from easel.telemetry import names

ROOT = Path(__file__).parents[2]
MOST_LINES = 450


def tracked(pattern: str) -> list[Path]:
    done = subprocess.run(["git", "ls-files", pattern], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / line for line in done.stdout.splitlines() if (ROOT / line).exists()]


def test_the_standard_librarys_platform_is_not_shadowed() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()
    code = "import platform; print(platform.python_implementation())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == platform.python_implementation()


def test_layers_are_kept() -> None:
    script = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([script, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import easel.cli", {"ray", "torch", "fastapi", "transformers", "numpy"}),
        ("import easel.engine.factory, easel.engine.fake", {"ray", "torch", "numpy"}),
        ("import easel.engine.native.scheduler", {"ray", "torch", "numpy"}),
        ("import easel.rayserve", {"ray", "torch"}),
    ],
)
def test_imports_stay_light(statement: str, absent: set[str]) -> None:
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not absent & {name.split(".")[0] for name in done.stdout.split()}


def test_files_hold_one_noun_each() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in tracked("*.py")}
    assert lengths
    assert not {path: lines for path, lines in lengths.items() if lines > MOST_LINES}
    assert not [path for path in lengths if Path(path).stem in {"utils", "util", "common", "helpers", "misc"}]


def test_every_module_says_what_it_owns() -> None:
    silent = [path for path in tracked("platform/*.py") if not ast.get_docstring(ast.parse(path.read_text()))]
    assert not silent


def test_what_the_project_asks_for_is_pinned() -> None:
    """CI installs the same versions as every developer: each direct dependency has its line in constraints.txt."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    base = [*project["dependencies"], *extras["serve"]]
    for file, asked in {
        "constraints.txt": [*base, *extras["dev"], *extras["reference"]],
        "constraints-vllm.txt": [*base, *extras["vllm"]],
    }.items():
        names = {item.split("[")[0].split(">")[0].split("=")[0].strip().lower() for item in asked}
        pins = {line.split("==")[0].lower() for line in (ROOT / file).read_text().splitlines() if "==" in line}
        assert names <= pins, (file, names - pins)


def test_every_metric_in_the_table_is_emitted_somewhere() -> None:
    code = "\n".join(path.read_text() for path in tracked("platform/*.py") if path.name != "names.py")
    silent = [
        name
        for name, value in vars(names).items()
        if isinstance(value, names.Metric) and not re.search(rf"\b{name}\b", code)
    ]
    assert not silent

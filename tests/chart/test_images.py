"""The Dockerfiles: by hadolint where it is installed, and by what the chart and KubeRay rest on."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from ops.chart.pods import SECURE_POD
from tests.chart.helm import ROOT

FILES = sorted((ROOT / "ops/images").glob("*.Dockerfile"))


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def text(request: pytest.FixtureRequest) -> str:
    return request.param.read_text()


def instructions(text: str) -> list[str]:
    """One string each: comments gone, continued lines joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return "\n".join(lines).replace("\\\n", " ").splitlines()


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_hadolint_has_nothing_to_say(file: Path) -> None:
    binary = Path(sys.executable).with_name("hadolint")
    if not binary.exists():
        pytest.skip("no hadolint for this machine: it comes with the extra `dev` on Linux, x86-64")
    done = subprocess.run([binary, file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_bases_and_indexes_are_build_arguments(text: str) -> None:
    assert {line for line in instructions(text) if line.startswith("FROM")} == {
        "FROM ${BASE_IMAGE} AS build",
        "FROM ${BASE_IMAGE}",
    }
    assert "ARG PIP_INDEX_URL\n" in text, "without a default: pip's own then"
    assert "ARG APT_MIRROR\n" in text
    assert not re.search(r"https?://", text), "no host is named"


def test_it_runs_as_the_user_that_the_chart_says(text: str) -> None:
    user, group = SECURE_POD["runAsUser"], SECURE_POD["runAsGroup"]
    final = instructions(text.rpartition("FROM ")[2])
    assert [line for line in final if line.startswith("USER")] == [f"USER {user}:{group}"]
    assert f"--uid {user} " in text
    assert f"--gid {group} " in text
    position = final.index(f"USER {user}:{group}")
    assert not [line for line in final[position:] if line.startswith(("RUN", "COPY"))]


def test_probes_find_their_tools(text: str) -> None:
    install = next(line for line in instructions(text) if "apt-get install" in line)
    assert {"bash", "wget"} <= set(install.split())
    assert "--no-install-recommends" in install
    assert "rm -rf /var/lib/apt/lists/*" in install
    assert "/etc/profile.d/easel.sh" in install, "login shells find ray"


def test_versions_are_those_of_everybody(text: str) -> None:
    assert "PIP_CONSTRAINT=/src/constraints.txt" in text or "PIP_CONSTRAINT=/src/${CONSTRAINTS}" in text
    assert "ARG CONSTRAINTS=constraints.txt\n" in text or "CONSTRAINTS" not in text.replace("PIP_CONSTRAINT", "")
    for line in instructions(text):
        assert not line.startswith("ADD")
        if line.startswith("COPY") and "--from" not in line:
            assert set(line.split()[1:-1]) <= {
                "constraints.txt",
                "constraints-vllm.txt",
                "ops/images/head.txt",
                "pyproject.toml",
                "README.md",
                "LICENSE",
                "platform",
            }
        if line.startswith("COPY platform"):
            assert line == "COPY platform platform", "not below it: a folder called platform must not shadow a module"


def test_what_is_copied_is_in_the_context() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        name
        for file in FILES
        for line in instructions(file.read_text())
        if line.startswith("COPY") and "--from" not in line
        for name in line.split()[1:-1]
    }
    assert copied == kept


def test_the_head_has_all_but_the_engine() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    listed = [line for line in (ROOT / "ops/images/head.txt").read_text().splitlines() if not line.startswith("#")]
    assert listed == [item for item in extras["serve"] if not item.startswith(("torch", "safetensors"))]

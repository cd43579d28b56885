"""Real Helm for the chart's tests: both versions, as `make chart` puts them into the environment.

Owns: finding and running them, and reading what they render. Refuses to know: what is in the chart.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm/easel"
VERSIONS = ("3.17.2", "4.3.1")
OPEN = {"serve": {"app": {"api": {"open_to_all": True}}}}
"""The least that installs."""

Object = dict[str, Any]


class Refused(Exception):
    """Helm did not render; the text is what it said."""


class Rendered(list[Object]):
    """The objects of a release."""

    def of(self, kind: str) -> list[Object]:
        return [item for item in self if item["kind"] == kind]

    def one(self, kind: str, name: str | None = None) -> Object:
        found = [item for item in self.of(kind) if name in (None, item["metadata"]["name"])]
        assert len(found) == 1, f"{len(found)} objects of kind {kind} and name {name}"
        return found[0]

    @property
    def service(self) -> Object:
        return self.one("RayService")

    @property
    def cluster(self) -> Object:
        spec: Object = self.service["spec"]["rayClusterConfig"]
        return spec

    @property
    def serve(self) -> Object:
        config: Object = yaml.safe_load(self.service["spec"]["serveConfigV2"])
        return config

    def without_scripts(self) -> list[Object]:
        """For comparison with what is written down: scripts, rules and dashboards have files of their own."""
        left = []
        for item in self:
            if item["kind"] == "ConfigMap" and "data" in item:
                item = {**item, "data": dict.fromkeys(item["data"], "...")}
            if item["kind"] == "PrometheusRule":
                item = {**item, "spec": "..."}
            left.append(item)
        return left

    @property
    def templates(self) -> dict[str, Object]:
        """Pod templates by what makes pods of them."""
        found = {"head": self.cluster["headGroupSpec"]["template"]}
        found |= {group["groupName"]: group["template"] for group in self.cluster["workerGroupSpecs"]}
        found |= {job["metadata"]["name"]: job["spec"]["template"] for job in self.of("Job")}
        return found | {pod["metadata"]["name"]: pod for pod in self.of("Pod")}


@functools.cache
def binary(version: str) -> Path:
    """Skips the test where there is none."""
    path = Path(sys.prefix) / "share/helm" / version / "helm"
    if not path.exists():
        pytest.skip(f"no Helm {version} in {path.parent}: `make chart` fetches it")
    try:
        subprocess.run([path, "version"], capture_output=True, check=True, timeout=60)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"Helm {version} does not run here: {error}")
    return path


def run(version: str, *arguments: str | Path) -> str:
    """Standard output. Raises `Refused`."""
    done = subprocess.run(
        [binary(version), *arguments], capture_output=True, text=True, check=False, timeout=100, cwd=ROOT
    )
    if done.returncode:
        raise Refused(done.stderr + done.stdout)
    return done.stdout


def render(
    values: Object | None = None,
    *arguments: str,
    version: str = VERSIONS[0],
    release: str = "easel",
    files: tuple[Path, ...] = (),
    chart: Path = CHART,
) -> Rendered:
    """What is installed with these values, laid upon those of `files`. Raises `Refused`."""
    options = [option for file in files for option in ("--values", str(file))]
    return Rendered(_render(version, release, json.dumps(values or {}), (*options, *arguments), chart))


@functools.cache
def _render(version: str, release: str, values: str, arguments: tuple[str, ...], chart: Path) -> list[Object]:
    done = subprocess.run(
        [binary(version), "template", release, chart, "--namespace", "models", *arguments, "--values", "-"],
        input=values,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    if done.returncode:
        raise Refused(done.stderr)
    return [item for item in yaml.load_all(done.stdout, Loader=yaml.CSafeLoader) if item]

"""What is rendered: with both versions of Helm, for every case, valid for the oldest and newest Kubernetes."""

from __future__ import annotations

import os
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tests.chart.cases import CASES, ENVIRONMENTS
from tests.chart.helm import CHART, OPEN, VERSIONS, Refused, render, run
from tests.chart.kinds import check_custom, is_custom

KUBERNETES = ("1.30", "1.37")
GOLDEN = Path(__file__).with_name("golden")


@pytest.mark.parametrize("name", CASES)
def test_helm_3_and_helm_4_render_the_same(name: str) -> None:
    old, new = (render(CASES[name], version=version) for version in VERSIONS)
    assert old == new
    assert len(old) > 2


@pytest.mark.parametrize("name", CASES)
def test_objects_are_valid(name: str) -> None:
    objects = render(CASES[name])
    for item in objects:
        if is_custom(item):
            check_custom(item)
        else:
            for version in KUBERNETES:
                kubernetes_validate.validate(item, version, strict=True)
    for name, template in objects.templates.items():
        pod = {"apiVersion": "v1", "kind": "Pod", **template}
        pod["metadata"] = {**template["metadata"], "name": name}
        for version in KUBERNETES:
            kubernetes_validate.validate(pod, version, strict=True)


@pytest.mark.parametrize("name", CASES)
def test_objects_are_named_once_and_labelled(name: str) -> None:
    objects = render(CASES[name])
    names = [(item["kind"], item["metadata"]["name"]) for item in objects]
    assert len(set(names)) == len(names)
    for item in objects:
        if item["kind"] == "ConfigMap" and item["metadata"]["name"] == "easel-x":
            continue  # of extraObjects: theirs
        labels = item["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == "easel"
        assert labels["app.kubernetes.io/instance"] == "easel"
        assert labels["app.kubernetes.io/part-of"] == "easel"
        assert labels["app.kubernetes.io/component"] in {"service", "cache", "keys", "monitoring", "network", "test"}
        assert len(item["metadata"]["name"]) <= 63
        assert ("namespace" in item["metadata"]) == (item["kind"] != "PriorityClass")


@pytest.mark.parametrize("version", VERSIONS)
def test_the_chart_passes_helms_own_check(version: str, tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump(OPEN))
    assert "0 chart(s) failed" in run(version, "lint", "--strict", CHART, "--values", values)


@pytest.mark.parametrize("name", ["open", *ENVIRONMENTS])
def test_golden(name: str) -> None:
    """A change of what is installed shows in review. EASEL_REWRITE_GOLDEN=1 writes them anew."""
    file = GOLDEN / f"{name.rpartition('/')[2]}.yaml"
    found = render(CASES[name])
    if os.environ.get("EASEL_REWRITE_GOLDEN"):
        file.write_text(yaml.safe_dump_all(found.without_scripts(), sort_keys=False, width=120))
    assert found.without_scripts() == list(yaml.load_all(file.read_text(), Loader=yaml.CSafeLoader))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_release_without_any_value_is_refused(version: str) -> None:
    with pytest.raises(Refused, match="anybody in the cluster could use the API"):
        render(version=version)


def test_the_application_version_is_easels() -> None:
    from easel import __version__

    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == __version__

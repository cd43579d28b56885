"""What the chart makes is what `easel kube` looks for: labels, annotations, token, timeouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from easel.kube import checks, objects
from easel.kube.doctor import gpus_wanted

GOLDEN = Path(__file__).parents[2] / "chart" / "golden"
Object = dict[str, Any]


def rendered(name: str) -> list[Object]:
    return [item for item in yaml.safe_load_all((GOLDEN / f"{name}.yaml").read_text()) if item]


@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDEN.glob("*.yaml")))
def test_a_release_is_found_and_has_nothing_against_it(name: str) -> None:
    items = rendered(name)
    (item,) = [item for item in items if item["kind"] == "RayService"]
    service = objects.service(item)
    assert f"app.kubernetes.io/name={service.labels['app.kubernetes.io/name']}" == objects.EASEL_LABELS
    assert service.release
    assert service.ray_version
    found = [finding for finding in checks.release(service, "") if "is not ready" not in finding.what]
    assert not found, found
    one, every = gpus_wanted(service)
    assert every >= one
    routes = [route for route in items if route["kind"] == "HTTPRoute"]
    told = [f.what for f in checks.gateway({"httproutes"}, None, routes, False) if "leaves the time" in f.what]
    assert not told
    by_part = [i for i in items if i["kind"] in ("PersistentVolumeClaim", "PodMonitor")]
    assert all(i["metadata"]["labels"]["app.kubernetes.io/part-of"] == "easel" for i in by_part)


def test_gpus_of_a_release_are_counted() -> None:
    counted = {path.stem: gpus_wanted(objects.service(item)) for path in GOLDEN.glob("*.yaml")
               for item in rendered(path.stem) if item["kind"] == "RayService"}  # fmt: skip
    assert any(one >= 1 for one, _ in counted.values()), counted

"""Values: every one has a type, a meaning and an effect; what is wrong is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from easel.api.keys import KeyFile
from easel.capabilities import TABLE
from easel.settings import ConfigurationError, load
from ops.chart.carried import environment_values, environments, merged, settings_of
from ops.chart.pages import SERVE_DEFAULTS
from ops.chart.values import Values
from tests.chart.cases import CASES, SWITCHES
from tests.chart.helm import CHART, OPEN, ROOT, VERSIONS, Refused, render
from tests.chart.kinds import check_custom

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a number in the environment": ({"env": [{"name": "A", "value": 1}]}, "env"),
    "a variable without a name": ({"head": {"env": [{"value": "1"}]}}, "env"),
    "a timeout of nothing": ({"upgrade": {"initializingTimeout": "0s"}}, "initializingTimeout"),
    "a block that is taken away": ({"ingress": None}, "ingress"),
    "a list that is taken away": ({"env": None}, "env"),
    "a value that is taken away": ({"networkPolicy": {"clients": None}}, "clients"),
    "a misspelt block": ({"autoscaller": {}}, "autoscaller"),
    "a misspelt value": ({"head": {"cpu": 1}}, "cpu"),
    "a misspelt value of a group": ({"workers": {"cpu": {"gpus": 1}}}, "gpus"),
    "a misspelt setting": ({"serve": {"app": {"api": {"heartbeats": 1}}}}, "heartbeats"),
    "a setting of this machine": ({"serve": {"local": {"port": 1}}}, "local"),
    "a setting that is the chart's": ({"serve": {"app": {"api": {"keys_file": "/x"}}}}, "keys_file"),
    "a text for a number": ({"serve": {"deployments": {"engine": {"replicas": "2"}}}}, "replicas"),
    "a number for a text": ({"rayVersion": 2.6}, "rayVersion"),
    "too many": ({"workers": {"cpu": {"gpu": {"count": 65}}}}, "count"),
    "no such proxy": ({"proxy": "nginx"}, "proxy"),
    "no such engine": ({"serve": {"app": {"models": {"m": {"engine": {"kind": "magic"}}}}}}, "kind"),
    "a quantity of nothing": ({"head": {"memory": "4 GB"}}, "memory"),
    "a branch for a commit": ({"modelCache": {"download": {"revision": "main"}}}, "revision"),
    "a key in clear": ({"keys": {"entries": [{"id": "a", "key": "secret"}]}}, "key"),
    "a hash that is none": ({"keys": {"entries": [{"id": "a", "sha256": "abc"}]}}, "sha256"),
    "a switch of three states": ({"monitoring": {"rules": {"enabled": "auto"}}}, "enabled"),
    "a name that no model has": ({"serve": {"app": {"models": {"m": {"names": ["a b"]}}}}}, "names"),
    "a group in capitals": ({"workers": {"H100": {}}}, "H100"),
    "an address without a port": ({"gcsFaultTolerance": {"redis": {"address": "redis"}}}, "address"),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", WRONG)
def test_is_refused_by_name(name: str, version: str) -> None:
    values, field = WRONG[name]
    with pytest.raises(Refused) as refused:
        render(merged(OPEN, values), version=version)
    assert field in str(refused.value)
    assert "schema" in str(refused.value)


def test_the_schema_is_draft_07_which_helm_3_reads() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert schema["$schema"] == "http://json-schema.org/draft-07/schema#"
    text = json.dumps(schema)
    assert "$defs" not in text
    assert "prefixItems" not in text
    loose = [
        name
        for name, part in schema["definitions"].items()
        if "properties" in part and part.get("additionalProperties") is not False
    ]
    assert not loose


def leaves(node: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if isinstance(node, dict) and node and path[:1] != ("serve",):
        return [leaf for key, value in node.items() for leaf in leaves(value, (*path, key))]
    return [path]


def test_values_are_what_the_types_say() -> None:
    written = yaml.safe_load((CHART / "values.yaml").read_text())
    said = Values().model_dump(mode="json", by_alias=True)
    assert written.pop("serve") == SERVE_DEFAULTS
    said.pop("serve")
    assert written == said


def test_every_value_has_a_meaning() -> None:
    readme = (CHART / "README.md").read_text()
    for path in leaves(yaml.safe_load((CHART / "values.yaml").read_text())):
        name = ".".join(path).replace("workers.cpu", "workers.GROUP")
        row = [line for line in readme.splitlines() if line.startswith("| `") and name.startswith(line.split("`")[1])]
        assert row, f"{name} is not in the README"
        assert all(line.rstrip("| ").count("|") >= 3 for line in row), f"{name} has no meaning"


def test_every_value_is_read_by_a_template() -> None:
    """A value that nothing reads would be ignored without a word."""
    code = "\n".join(path.read_text() for path in (CHART / "templates").rglob("*") if path.is_file())
    elsewhere = {"global"}  # Helm's own
    whole = {"serve", "podSecurityContext", "securityContext", "incremental", "labels"}
    for path in leaves(yaml.safe_load((CHART / "values.yaml").read_text())):
        if path[0] in elsewhere or set(path) & whole:
            continue
        assert f".{path[-1]}" in code, ".".join(path)


@pytest.mark.parametrize("name", [name for name in SWITCHES if name not in ("open", "extra")])
def test_every_switch_switches_something(name: str) -> None:
    assert render(CASES[name]) != render(OPEN)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", [name for name, _ in environments()])
def test_overlays_are_laid_as_helm_lays_files(name: str, version: str) -> None:
    files = dict(environments())[name]
    assert render(files=tuple(files), version=version) == render(environment_values(files))
    for file in files:
        assert str(file.relative_to(ROOT)) in file.read_text() or file.parent.name != name, "says how to install it"


@pytest.mark.parametrize("name", [name for name, _ in environments()])
def test_environments_hold_settings_that_easel_takes(name: str) -> None:
    settings = settings_of(environment_values(dict(environments())[name]))
    engine = settings.deployments.engine
    assert engine.max_ongoing_requests >= settings.app.model.engine.slots + settings.app.router.surplus_requests
    for tier in settings.app.model.tiers.values():
        for limit in tier.limits:
            field = {"max_denoising_steps": "max_steps"}.get(limit, limit)
            assert TABLE[field][settings.app.model.engine.kind].works, f"{limit}: every such request would get 400"
    if name != "local":
        assert settings.app.api.keys_file == "/etc/easel/keys/keys.yaml"
        assert not settings.app.api.open_to_all


def test_a_laptops_cluster_serves_what_the_laptop_serves() -> None:
    here, there = load(ROOT / "deployments/local/easel.yaml"), settings_of(CASES["deployments/local"])
    assert (there.app.models, there.app.playground, there.deployments) == (
        here.app.models,
        here.app.playground,
        here.deployments,
    )


def test_what_the_schema_lets_through_easel_refuses_too() -> None:
    for values in (WRONG["a misspelt setting"][0], WRONG["no such engine"][0]):
        with pytest.raises(ConfigurationError):
            settings_of(values)


def test_the_key_file_is_one_that_easel_reads() -> None:
    secret = render(CASES["keys-entries"]).one("Secret")
    file = KeyFile.model_validate(yaml.safe_load(secret["stringData"]["keys.yaml"]))
    assert [(key.id, key.weight, key.requests_per_minute) for key in file.keys] == [("team", 2.0, 600)]
    pod = render(CASES["keys-entries"]).templates["cpu"]["spec"]
    assert {"name": "keys", "secret": {"secretName": secret["metadata"]["name"], "defaultMode": 0o440}} in pod[
        "volumes"
    ]
    other = render(CASES["keys-secret"])
    assert other.serve["applications"][0]["args"]["api"]["keys_file"] == "/etc/easel/keys/mine.yaml"
    assert not other.of("Secret")


def test_a_key_of_a_mirror_and_a_digest() -> None:
    objects = render(CASES["image"])
    images = {place: pod["spec"]["containers"][0]["image"] for place, pod in objects.templates.items()}
    assert images["cpu"] == "mirror.example/x/easel@sha256:" + "0" * 64
    assert images["head"] == "mirror.example/x/head:small"
    assert objects.templates["head"]["spec"]["imagePullSecrets"] == [{"name": "pull"}]


def test_the_rays_are_the_same() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert Values().ray_version == pins["ray"]
    assert CASES["open"].get("rayVersion") is None


RULES = """
groups:
  - name: easel
    interval: 30s
    rules:
      - record: easel:bad
        expr: sum by (release) (rate(ray_easel_requests_total{code=~"5.."}[5m]))
      - alert: EaselBad
        expr: easel:bad > 0
        for: 5m
        labels: {severity: page}
        annotations: {summary: "{{ $labels.release }} fails {{ $value | humanizePercentage }}"}
"""
DASHBOARD = '{\n  "title": "{{release}}",\n  "uid": "easel"\n}\n'


def test_rules_and_dashboards_are_carried_as_they_are(tmp_path: Path) -> None:
    """What a dashboard or an alert says in braces is for Grafana and Prometheus, not for Helm."""
    chart = tmp_path / "easel"
    shutil.copytree(CHART, chart)
    for folder, name, text in (("alerts", "one.rules.yaml", RULES), ("dashboards", "one.json", DASHBOARD)):
        (chart / "files" / folder).mkdir(exist_ok=True)
        (chart / "files" / folder / name).write_text(text)
    for version in VERSIONS:
        objects = render(CASES["monitoring"], chart=chart, version=version)
        rule = objects.one("PrometheusRule", "easel-one")
        check_custom(rule)
        assert rule["spec"] == yaml.safe_load(RULES)
        assert rule["metadata"]["labels"]["release"] == "prom"
        board = objects.one("ConfigMap", "easel-dashboard-one")
        assert board["data"]["one.json"].strip() == DASHBOARD.strip()
        assert board["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert board["metadata"]["annotations"] == {"folder": "Easel"}
        known = ("--api-versions", "monitoring.coreos.com/v1/PrometheusRule")
        assert render(OPEN, *known, chart=chart, version=version).of("PrometheusRule")
        assert not render(OPEN, chart=chart, version=version).of("PrometheusRule")

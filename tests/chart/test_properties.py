"""Whatever the values: they are refused with a sentence, or what is rendered is what KubeRay and Kubernetes take.

In-process, by the code of Helm itself (helm-python-sdk), so that some hundred sets of values take seconds. It cannot be
told what a cluster knows, and it is one version of Helm: both stay with the command line in the other files.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.chart.carried import merged
from tests.chart import kuberay
from tests.chart.cases import CASES
from tests.chart.helm import CHART, OPEN, Refused, Rendered, render
from tests.chart.kinds import check_custom, is_custom
from tests.chart.test_pods import containers, violations

helm = pytest.importorskip("helm_python", reason="helm-python-sdk is not there: `make chart` fetches it")


@functools.cache
def chart() -> Any:
    return helm.Chart.load(str(CHART))


def rendered(values: dict[str, Any]) -> Rendered:
    """Raises `Refused` where the schema or a guard says no, and nothing else."""
    try:
        files = chart().render(values, name="easel", namespace="models")
    except helm.HelmValuesError as error:
        raise Refused(str(error)) from None
    except helm.HelmRenderError as error:
        text = str(error)
        assert text.startswith("execution error at (easel/templates/rayservice.yaml:1:4): \n\n- "), text
        raise Refused(text) from None
    documents = [text for name, text in files.items() if not name.endswith("NOTES.txt")]
    return Rendered(item for text in documents for item in yaml.load_all(text, Loader=yaml.CSafeLoader) if item)


def by_name(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(objects, key=lambda item: (item["kind"], item["metadata"]["name"]))


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_helm_of_the_command_line(name: str) -> None:
    assert by_name(rendered(CASES[name])) == by_name(render(CASES[name]))


@pytest.mark.parametrize("name", CASES)
def test_kuberay_takes_it(name: str) -> None:
    assert kuberay.refusals(render(CASES[name]).service) == []


names = ("A", "HOME", "RAY_SERVE_ENABLE_HA_PROXY", "RAY_enable_autoscaler_v2", "REDIS_USERNAME", "RAY_REDIS_ADDRESS")
env = st.lists(st.fixed_dictionaries({"name": st.sampled_from(names), "value": st.just("1")}), min_size=1, max_size=2)
params = st.dictionaries(
    st.sampled_from(["verbose", "dashboard-host", "num-cpus", "labels", "redis-password", "redis-username"]),
    st.just("x"),
    min_size=1,
    max_size=1,
)
labels = st.dictionaries(
    st.sampled_from(["team", "ray.io/group", "app.kubernetes.io/component"]), st.just("x"), min_size=1
)
counts = st.integers(0, 4)
cards = st.sampled_from([0, 1, 2])
cores = st.sampled_from([0.5, 1, 2, 9])
PLACES = ("head", "workers.cpu", "workers.h100", "workers." + "g" * 30)
GROUPS = PLACES[1:]
CHANGES: dict[str, st.SearchStrategy[Any]] = {
    "fullnameOverride": st.text("ab1-", min_size=1, max_size=20) | st.integers(40, 50).map(lambda length: "e" * length),
    "env": env,
    "labels": labels,
    **{f"{place}.env": env for place in PLACES},
    **{f"{place}.rayStartParams": params for place in PLACES},
    **{f"{place}.labels": labels for place in PLACES},
    **{f"{place}.cpus": st.integers(1, 8) for place in PLACES},
    **{f"{group}.minReplicas": counts for group in GROUPS},
    **{f"{group}.maxReplicas": st.integers(1, 6) for group in GROUPS},
    **{f"{group}.replicas": counts for group in GROUPS},
    **{f"{group}.idleTimeoutSeconds": st.just(60) for group in GROUPS},
    **{f"{group}.minAvailable": counts for group in GROUPS},
    **{f"{group}.gpu.count": cards for group in GROUPS},
    "autoscaler.enabled": st.booleans(),
    "rayVersion": st.sampled_from(["2.60.0", "2.52.0", "2.51.9", "1.99.0"]),
    "auth.mode": st.sampled_from(["token", "disabled"]),
    "upgrade.strategy": st.sampled_from(["NewCluster", "NewClusterWithIncrementalUpgrade", "None"]),
    "upgrade.incremental.gatewayClassName": st.sampled_from(["", "istio"]),
    "upgrade.incremental.stepSizePercent": st.integers(0, 110),
    "upgrade.incremental.maxSurgePercent": st.integers(0, 110),
    "upgrade.incremental.intervalSeconds": st.integers(0, 2),
    "upgrade.deletionDelaySeconds": st.integers(-1, 5),
    "upgrade.initializingTimeout": st.sampled_from(["45m", "0s", "1h30m", "0h1m", "5"]),
    "gcsFaultTolerance.redis.address": st.sampled_from(["", "redis:6379", "rediss://redis:6380", "redis"]),
    "gcsFaultTolerance.redis.username": st.just("u"),
    "gcsFaultTolerance.redis.password.secretName": st.just("r"),
    "gcsFaultTolerance.redis.namespace": st.just("n"),
    **{f"serve.deployments.{tier}.replicas": st.integers(1, 3) for tier in ("ingress", "engine")},
    **{f"serve.deployments.{tier}.cpus": cores for tier in ("ingress", "engine")},
    **{f"serve.deployments.{tier}.gpus": cards for tier in ("ingress", "engine")},
    "serve.deployments.engine.autoscaling": st.fixed_dictionaries(
        {"max_replicas": st.integers(1, 5)}, optional={"min_replicas": counts}
    ),
    "proxy": st.sampled_from(["haproxy", "serve"]),
    "serviceAccount.create": st.booleans(),
    "serviceAccount.name": st.integers(40, 50).map(lambda length: "a" * length),
    "suspend": st.booleans(),
}
"""What may be said, by where. Few at a time, so that each is alone to blame now and then."""


def nested(path: str, value: Any) -> dict[str, Any]:
    for part in reversed(path.split(".")):
        value = {part: value}
    return dict(value)


changes = st.lists(st.sampled_from(sorted(CHANGES)), min_size=1, max_size=3, unique=True).flatmap(
    lambda paths: st.fixed_dictionaries({path: CHANGES[path] for path in paths})
)
INCREMENTAL = {"strategy": "NewClusterWithIncrementalUpgrade", "incremental": {"gatewayClassName": "istio"}}
SOUND = (
    OPEN,
    merged(OPEN, {"workers": {"cpu": {"maxReplicas": 3}, "h100": {"gpu": {"count": 1}, "cpus": 8}}}),
    merged(OPEN, {"upgrade": INCREMENTAL, "autoscaler": {"enabled": True}}),
)


@pytest.mark.timeout(400)
def test_values_are_refused_or_lead_to_what_runs() -> None:
    seen = {True: 0, False: 0}

    @settings(max_examples=600)
    @given(st.sampled_from(SOUND), changes)
    def holds(values: dict[str, Any], changed: dict[str, Any]) -> None:
        for path, value in changed.items():
            values = merged(values, nested(path, value))
        try:
            objects = rendered(values)
        except Refused:
            seen[False] += 1
            return
        seen[True] += 1
        assert kuberay.refusals(objects.service) == []
        assert len({(item["kind"], item["metadata"]["name"]) for item in objects}) == len(objects)
        assert all(len(item["metadata"]["name"]) <= 63 for item in objects)
        for item in objects:
            if is_custom(item):
                check_custom(item)
        for place, template in objects.templates.items():
            assert violations(template) == []
            component = {"head": "head"}.get(place, "test" if "test" in place else "worker")
            assert template["metadata"]["labels"]["app.kubernetes.io/component"] == component, "policies go by it"
            for container in containers(template):
                given_env = [item["name"] for item in container.get("env", [])]
                assert len(set(given_env)) == len(given_env)
        assert fits(objects)

    holds()
    assert min(seen.values()) > 150, f"one of the two is hardly looked at: {seen}"


def fits(objects: Rendered) -> bool:
    """Whether all pods that may be there have the cores and GPUs of all replicas that may be there."""
    pods = [
        (int(group["rayStartParams"]["num-cpus"]), int(group["rayStartParams"]["num-gpus"]), count)
        for group in objects.cluster["workerGroupSpecs"]
        for count in [group["maxReplicas" if objects.cluster["enableInTreeAutoscaling"] else "replicas"]]
    ]
    cpus = gpus = 0.0
    for tier in objects.serve["applications"][0]["deployments"]:
        most = tier.get("autoscaling_config", {}).get("max_replicas") or tier["num_replicas"]
        asks = tier["ray_actor_options"]
        cpus, gpus = cpus + most * asks["num_cpus"], gpus + most * asks["num_gpus"]
        if not any(own >= asks["num_cpus"] and cards >= asks["num_gpus"] for own, cards, _ in pods):
            return False
    return cpus <= sum(own * count for own, _, count in pods) and gpus <= sum(cards * n for _, cards, n in pods)

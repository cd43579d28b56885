"""What would never run, or run unguarded, is refused with a sentence that says what to change."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ops.chart.carried import merged
from tests.chart.cases import CHECKPOINT, DOWNLOAD, HASH, SWITCHES
from tests.chart.helm import OPEN, VERSIONS, Refused, render

ENTRY = {"id": "a", "sha256": HASH}
CACHE = {**CHECKPOINT, "modelCache": {"enabled": True}}


def engine(**fields: Any) -> dict[str, Any]:
    return {"serve": {"deployments": {"engine": fields}}}


def model(**fields: Any) -> dict[str, Any]:
    return {"serve": {"app": {"models": {"m": fields}}}}


def incremental(**fields: Any) -> dict[str, Any]:
    return merged(SWITCHES["incremental"], fields)


GUARDS: dict[str, tuple[dict[str, Any], str]] = {
    "no keys": ({"serve": {"app": {"api": {"open_to_all": False}}}}, "set keys.existingSecret"),
    "two sources of keys": ({"keys": {"existingSecret": "a", "entries": [ENTRY]}}, "give one of existingSecret"),
    "a store without a key": ({"keys": {"externalSecret": {"enabled": True}}}, "storeName and remoteKey"),
    "two models": ({"serve": {"app": {"models": {"a": {}, "b": {}}}}}, "exactly one model"),
    "cut streams": (engine(graceful_shutdown_timeout_s=10), "would cut streams; raise it"),
    "bounds of replicas": (engine(autoscaling={"min_replicas": 3}), "min_replicas (3) is above max_replicas (1)"),
    "blocks": (model(engine={"kv_block_tokens": 48}), "does not divide 256"),
    "a hidden GPU": (model(engine={"device": "cuda"}), "engine.device is cuda and serve.deployments.engine.gpus is 0"),
    "no room": (engine(cpus=3), "asks for 3 cpus and 0 gpus, and no pod of any group"),
    "no GPU": (engine(gpus=1), "raise workers.GROUP.cpus or workers.GROUP.gpu.count"),
    "not enough GPUs": (
        {**engine(gpus=1, replicas=2), "workers": {"g": {"gpu": {"count": 1}}}},
        "2 replicas of 1 gpus do not fit into the 1 places",
    ),
    "a GPU for each, too few": (
        {**engine(gpus=2, autoscaling={"max_replicas": 3}), "workers": {"g": {"gpu": {"count": 3}, "maxReplicas": 2}}},
        "3 replicas of 2 gpus do not fit into the 2 places",
    ),
    "not enough cores": (engine(replicas=2), "2 engine replicas of 1 need 2.5 cpus, and all pods of workers together"),
    "not enough cores while nothing adds pods": (
        {**engine(replicas=2), "workers": {"cpu": {"maxReplicas": 2}}, "autoscaler": {"enabled": False}},
        "together have 2;",
    ),
    "vLLM's cache": (
        {**engine(gpus=1), **model(engine={"kind": "vllm", "kv_tokens": 4096})},
        "engine.kv_tokens means nothing to the vllm engine",
    ),
    "vLLM without a GPU": (model(engine={"kind": "vllm"}), "runs on GPUs alone: set serve.deployments.engine.gpus"),
    "no group": ({"workers": {"cpu": None}}, "there is no group"),
    "a relative checkpoint": (model(checkpoint="models/x"), "a path from /"),
    "no cache": (model(checkpoint="/models/x"), "modelCache.enabled is false"),
    "nowhere to download to": ({"modelCache": {"download": {"enabled": True}}}, "there is nowhere to put it"),
    "what to download": (merged(CACHE, {"modelCache": {"download": {"enabled": True}}}), "set all three"),
    "another checkpoint": (
        merged(CACHE, {"modelCache": {"download": {**DOWNLOAD, "folder": "other"}}}),
        "fills /models/other, but serve.app.models.m.checkpoint is /models/model-1",
    ),
    "an empty volume": (merged(CACHE, {"modelCache": {"kind": "ephemeral"}}), "an ephemeral volume starts empty"),
    "a long name": ({"fullnameOverride": "e" * 48}, "has 48 characters, and KubeRay takes 47"),
    "a name of digits": ({"fullnameOverride": "1e"}, "has to begin with a letter"),
    "bounds of pods": ({"workers": {"cpu": {"minReplicas": 2}}}, "minReplicas (2) is above maxReplicas (1)"),
    "pods out of bounds": ({"workers": {"cpu": {"replicas": 0}}}, "replicas (0) is not between minReplicas (1)"),
    "idle without autoscaler": ({"workers": {"cpu": {"idleTimeoutSeconds": 9}}}, "while the autoscaler is off"),
    "cores twice": ({"workers": {"cpu": {"rayStartParams": {"num-cpus": "4"}}}}, "the chart sets it from cpus"),
    "KubeRay's own parameter": (
        {"head": {"rayStartParams": {"labels": "a=b"}}},
        "head.rayStartParams.labels is KubeRay",
    ),
    "KubeRay's own variable": ({"env": [{"name": "RAY_AUTH_MODE", "value": "disabled"}]}, "RAY_AUTH_MODE is KubeRay's"),
    "a variable twice": (
        {"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]},
        "env: A stands there twice",
    ),
    "Ray's address": ({"head": {"env": [{"name": "RAY_ADDRESS", "value": "x"}]}}, "RAY_ADDRESS is KubeRay's"),
    "a label of ours": ({"labels": {"app.kubernetes.io/version": "2"}}, "labels: app.kubernetes.io/version is"),
    "a label that policies go by": (
        {"workers": {"cpu": {"labels": {"app.kubernetes.io/component": "x"}}}},
        "workers.cpu.labels: app.kubernetes.io/component is",
    ),
    "a label that KubeRay ignores": ({"head": {"labels": {"ray.io/group": "x"}}}, "head.labels: ray.io/group is"),
    "a volume of ours": (
        {"workers": {"cpu": {"volumes": [{"name": "tmp", "emptyDir": {}}]}}},
        "workers.cpu.volumes: tmp is",
    ),
    "an account that KubeRay cuts": (
        {"fullnameOverride": "e" * 46, "autoscaler": {"enabled": True}},
        "has 51 characters, and KubeRay cuts",
    ),
    "one state for two clusters": (
        {"gcsFaultTolerance": {"redis": {"address": "redis:6379", "namespace": "n"}}},
        "would write over each other's state",
    ),
    "a group called head": ({"workers": {"head": {}}}, "that name is the head's"),
    "an old Ray": ({"rayVersion": "2.51.0"}, "needs Ray 2.52"),
    "no class of gateway": (
        incremental(upgrade={"incremental": {"gatewayClassName": ""}}),
        "upgrade.incremental.gatewayClassName",
    ),
    "steps without autoscaler": (incremental(autoscaler={"enabled": False}), "set autoscaler.enabled=true"),
    "steps too large": (incremental(upgrade={"incremental": {"maxSurgePercent": 5}}), "is above maxSurgePercent (5)"),
    "a route to nothing": (merged(SWITCHES["incremental"], SWITCHES["http-route"]), "has no Service easel-serve-svc"),
    "a Service that is ignored": (incremental(service={"type": "LoadBalancer"}), "KubeRay ignores it"),
    "no address": ({"gcsFaultTolerance": {"redis": {"username": "u"}}}, "there is no address"),
    "a collector that nothing reaches": (
        {"serve": {"app": {"telemetry": {"otlp_endpoint": "http://otel:4318"}}}},
        "name the collector in networkPolicy.telemetry",
    ),
    "no Gateway": ({"httpRoute": {"enabled": True}}, "routes nothing; name one"),
    "no KubeRay": ({"kuberay": {"check": True}}, "Install KubeRay 1.6 or newer first"),
}


@pytest.mark.parametrize("name", GUARDS)
def test_is_refused(name: str) -> None:
    values, sentence = GUARDS[name]
    with pytest.raises(Refused) as refused:
        render(merged(OPEN, values))
    assert sentence in str(refused.value)


def test_helm_4_says_the_same() -> None:
    values = merged(OPEN, merged(GUARDS["no room"][0], GUARDS["bounds of pods"][0]))
    for version in VERSIONS:
        with pytest.raises(Refused) as refused:
            render(values, version=version)
        # All that is wrong at once.
        assert GUARDS["no room"][1] in str(refused.value)
        assert GUARDS["bounds of pods"][1] in str(refused.value)


@pytest.mark.parametrize(
    ("endpoint", "policy", "passes"),
    [
        ("http://collector:4318", {}, False),
        ("http://collector:4318", {"telemetry": [{"namespaceSelector": {}}]}, True),
        ("http://collector:9", {"telemetry": [{"namespaceSelector": {}}]}, False),
        ("https://otel.example/v1", {"telemetry": [{"namespaceSelector": {}}], "telemetryPorts": [443]}, True),
        ("http://collector:9", {"extraEgress": [{"to": [{"namespaceSelector": {}}]}]}, True),
        ("http://collector:4318", {"enabled": False}, True),
    ],
)
def test_a_collector_that_no_policy_lets_replicas_reach(endpoint: str, policy: dict[str, Any], passes: bool) -> None:
    asked = {"serve": {"app": {"telemetry": {"otlp_endpoint": endpoint}}}, "networkPolicy": policy}
    if passes:
        render(merged(OPEN, asked))
    else:
        with pytest.raises(Refused, match="name the collector in networkPolicy") as refused:
            render(merged(OPEN, asked))
        assert str(refused.value).count("otlp_endpoint") == 1, "said twice"


CLUSTER = ("--api-versions", "apiregistration.k8s.io/v1")
KUBERAY = ("--api-versions", "ray.io/v1/RayService")


@pytest.mark.parametrize("version", VERSIONS)
def test_kuberay_is_looked_for_where_there_is_a_cluster(version: str) -> None:
    with pytest.raises(Refused, match="does not know RayService"):
        render(OPEN, *CLUSTER, version=version)
    render(OPEN, *CLUSTER, *KUBERAY, version=version)
    render(merged(OPEN, {"kuberay": {"check": False}}), *CLUSTER, version=version)
    # GitOps renders where no cluster can be asked.
    render(OPEN, version=version)
    render(merged(OPEN, {"kuberay": {"check": True}}), *KUBERAY, version=version)


@pytest.mark.parametrize("version", VERSIONS)
def test_monitoring_is_made_where_the_cluster_knows_it(version: str) -> None:
    known = ("--api-versions", "monitoring.coreos.com/v1/PodMonitor")
    assert not render(OPEN, version=version).of("PodMonitor")
    monitors = render(OPEN, *known, version=version).of("PodMonitor")
    assert len(monitors) == 2
    for endpoint in (one for monitor in monitors for one in monitor["spec"]["podMetricsEndpoints"]):
        [named] = endpoint["metricRelabelings"]
        metric = re.sub(
            f"^{named['regex']}$", named["replacement"].replace("$1", r"\1"), "ray_vllm_num_requests_running"
        )
        assert metric == "vllm:num_requests_running"
    off = merged(OPEN, {"monitoring": {"podMonitors": {"enabled": False}}})
    assert not render(off, *known, version=version).of("PodMonitor")


@pytest.mark.parametrize("name", ["http-route", "monitoring", "keys-external"])
def test_what_is_asked_for_and_cannot_be_is_refused(name: str) -> None:
    with pytest.raises(Refused, match="or switch it off"):
        render(merged(OPEN, SWITCHES[name]), *CLUSTER, *KUBERAY)

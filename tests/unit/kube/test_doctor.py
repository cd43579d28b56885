"""What `doctor` finds: each area with its fix, and the roles for what could not be seen."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from easel.kube import checks, objects
from easel.kube.checks import Finding
from easel.kube.connection import Connection
from easel.kube.doctor import address_of, examine
from easel.kube.failures import Unreachable
from easel.kube.rights import Right
from tests.unit.kube import cluster
from tests.unit.kube.server import ApiServer

Object = dict[str, Any]


def levels(found: Any, area: str | None = None) -> list[str]:
    return [finding.level for finding in found if area in (None, finding.area)]


def only(found: Any, level: str) -> Finding:
    (finding,) = [finding for finding in found if finding.level == level]
    return finding


def route(**changes: Any) -> Object:
    accepted = [{"type": kind, "status": "True"} for kind in ("Accepted", "ResolvedRefs")]
    rule = {"timeouts": {"request": "0s", "backendRequest": "0s"}}
    return {
        "metadata": {"name": "chat-easel", "namespace": "prod"},
        "spec": {"hostnames": ["chat.example.com"], "rules": [rule], **changes},
        "status": {"parents": [{"conditions": accepted}]},
    }


def fit(server: ApiServer) -> None:
    """Everything that Easel rests on."""
    server.serve_group("gateway.networking.k8s.io", "v1", "gatewayclasses", "gateways", "httproutes")
    server.serve_group("monitoring.coreos.com", "v1", "podmonitors", "prometheusrules")
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    server.objects["", "namespaces"] = [{"metadata": {"name": "prod", "labels": labels}}]
    server.put("apps", "deployments", cluster.operator())
    server.put("", "nodes", cluster.node("cpu-a", 0), cluster.node("gpu-a", 8), cluster.node("gpu-b", 8))
    mine = {"app.kubernetes.io/part-of": "easel"}
    claim = {"metadata": {"name": "models", "namespace": "prod", "labels": mine}, "status": {"phase": "Bound"}}
    server.put("", "persistentvolumeclaims", {**claim, "spec": {"accessModes": ["ReadWriteMany"]}})
    default = {"storageclass.kubernetes.io/is-default-class": "true"}
    server.put("storage.k8s.io", "storageclasses", {"metadata": {"name": "fast", "annotations": default}})
    server.objects["", "resourcequotas"] = []
    server.put("monitoring.coreos.com", "podmonitors", {"metadata": {"name": "m", "namespace": "prod", "labels": mine}})
    dns = {"kubernetes.io/service-name": "kube-dns"}
    ends = [{"conditions": {"ready": True}}, {"conditions": {}}]
    slices = {"metadata": {"name": "d", "namespace": "kube-system", "labels": dns}, "endpoints": ends}
    server.put("discovery.k8s.io", "endpointslices", slices)
    accepted = {"conditions": [{"type": "Accepted", "status": "True"}]}
    server.put("gateway.networking.k8s.io", "gatewayclasses", {"metadata": {"name": "edge"}, "status": accepted})
    server.put("gateway.networking.k8s.io", "httproutes", route())


def test_a_fit_cluster_has_nothing_to_say_against_it(server: ApiServer, connection: Connection) -> None:
    fit(server)
    report = examine(connection, "prod", None, resolve=lambda name: "192.0.2.7")
    assert report.worst == "ok", [finding for finding in report.findings if finding.level != "ok"]
    assert {finding.area for finding in report.findings} == {
        "cluster", "namespace", "KubeRay", "GPUs", "storage", "quota", "monitoring", "DNS", "gateway", "release"
    }  # fmt: skip
    assert not report.missing
    told = "\n".join(finding.what for finding in report.findings)
    assert "16 GPUs on 2 nodes (NVIDIA-H100-80GB-HBM3), 15 free, at most 8 on one node" in told
    assert "the operator is v1.7.0" in told
    assert "chat.example.com is 192.0.2.7" in told


def test_an_empty_cluster_is_told_what_to_install(server: ApiServer, connection: Connection) -> None:
    server.groups.clear()
    server.kinds.clear()
    server.objects.clear()
    report = examine(connection, "prod", None)
    errors = {finding.area: finding for finding in report.findings if finding.level == "error"}
    assert "install KubeRay" in errors["KubeRay"].fix
    assert "kubectl create namespace prod" in errors["namespace"].fix
    assert all(finding.fix for finding in report.findings if finding.level in ("error", "warning"))


def test_what_may_not_be_seen_is_unknown_with_the_rights_for_it(server: ApiServer, connection: Connection) -> None:
    """Somebody who has rights in the namespace alone, which is what most have."""
    fit(server)
    server.may = lambda verb, group, resource, namespace: namespace == "prod" and resource != "resourcequotas"
    report = examine(connection, "prod", None, resolve=lambda name: None)
    assert set(report.missing) == {
        Right("get", "", "namespaces"),
        Right("list", "", "nodes"),
        Right("list", "", "pods"),
        Right("list", "", "resourcequotas", "prod"),
        Right("list", "apps", "deployments"),
        Right("list", "discovery.k8s.io", "endpointslices", "kube-system"),
        Right("list", "gateway.networking.k8s.io", "gatewayclasses"),
        Right("list", "storage.k8s.io", "storageclasses"),
    }
    unknown = {finding.area for finding in report.findings if finding.level == "unknown"}
    assert unknown == {"namespace", "GPUs", "storage", "quota", "DNS", "gateway"}
    told = [finding.what for finding in report.findings if finding.area == "KubeRay"]
    assert "the operator is v1.7.0 (as it marked a cluster that it made)" in told


def test_somebody_without_any_right_still_hears_what_can_be_said(server: ApiServer, connection: Connection) -> None:
    server.may = lambda verb, group, resource, namespace: False
    report = examine(connection, "prod", None)
    release = next(finding for finding in report.findings if finding.area == "release")
    assert "it takes list rayservices.ray.io in namespace prod" in release.what
    assert report.worst == "unknown"


def test_without_an_api_server_there_is_no_report(server: ApiServer, connection: Connection) -> None:
    server.stop()
    with pytest.raises(Unreachable):
        examine(connection, "prod", None)


def test_an_operator_of_another_name_has_left_its_mark(server: ApiServer, connection: Connection) -> None:
    """As where OpenShift brings it, or where it runs outside the cluster."""
    fit(server)
    server.objects["apps", "deployments"] = []
    report = examine(connection, "prod", None, resolve=lambda name: "192.0.2.7")
    told = {finding.what: finding for finding in report.findings if finding.area == "KubeRay"}
    assert "the operator is v1.7.0 (as it marked a cluster that it made)" in told
    assert report.worst == "warning"
    server.objects["ray.io", "rayclusters"] = []
    assert examine(connection, "prod", None, resolve=lambda name: "192.0.2.7").worst == "error"


@pytest.mark.parametrize(
    ("tag", "level"),
    [("v1.7.0", "ok"), ("v1.10.2", "ok"), ("v1.6.2", "note"), ("v1.5.1", "error"), ("nightly", "unknown")],
)
def test_versions_of_the_operator(tag: str, level: str) -> None:
    found = list(checks.custom_resources({"rayservices", "rayclusters"}, [cluster.operator(tag)], ""))
    assert levels(found) == ["ok", level]


def test_operators_that_are_down_absent_or_two() -> None:
    kinds = {"rayservices", "rayclusters"}
    down = only(checks.custom_resources(kinds, [cluster.operator(ready=0)], ""), "error")
    assert "kubectl -n kuberay describe deployment kuberay-operator" in down.fix
    assert "nobody acts" in only(checks.custom_resources(kinds, [], ""), "error").what
    two = only(checks.custom_resources(kinds, [cluster.operator(), cluster.operator()], ""), "warning")
    assert "2 operators" in two.what
    half = only(checks.custom_resources({"rayclusters"}, None, ""), "error")
    assert half.what == "the API server does not know rayservices"


def test_gpu_nodes() -> None:
    full = cluster.pod("w")
    full["spec"]["nodeName"] = "gpu-a"
    none = only(checks.gpus([cluster.node("cpu", 0)], [], wanted=1), "error")
    assert "device plugin" in none.fix
    assert levels(checks.gpus([cluster.node("cpu", 0)], [], wanted=0)) == ["note"]
    old = only(checks.gpus([cluster.node("gpu-a", 8, "535.183.01")], [], 1), "error")
    assert "535.183.01" in old.what
    silent = only(checks.gpus([cluster.node("gpu-a", 8, "")], [], 1), "note")
    assert "gpu-feature-discovery" in silent.fix
    room = only(checks.gpus([cluster.node("gpu-a", 1)], [full], 1), "warning")
    assert "an upgrade to a new cluster would stall" in room.what
    cordoned = checks.gpus([cluster.node("gpu-a", 8, unschedulable=True), cluster.node("gpu-b", 8)], [], 1)
    assert "kubectl uncordon gpu-a" in only(cordoned, "warning").fix
    done = {**full, "status": {"phase": "Succeeded"}}
    assert levels(checks.gpus([cluster.node("gpu-a", 1)], [done], 1)) == ["ok"]


def test_storage_that_two_clusters_cannot_share() -> None:
    claim = {
        "metadata": {"name": "models"},
        "spec": {"accessModes": ["ReadWriteOnce"]},
        "status": {"phase": "Pending"},
    }
    found = list(checks.storage([{"metadata": {"name": "slow"}}], [claim]))
    assert levels(found) == ["note", "warning", "warning"]
    assert "ReadWriteMany" in found[2].fix


def test_quotas() -> None:
    def quota(used: str) -> Object:
        hard = {"requests.nvidia.com/gpu": "4", "pods": "10"}
        used_of = {"requests.nvidia.com/gpu": used, "pods": "3"}
        return {"metadata": {"name": "gpus"}, "status": {"hard": hard, "used": used_of}}

    assert levels(checks.quotas([], 2)) == ["ok"]
    assert levels(checks.quotas([quota("2")], 2)) == ["ok"]
    assert "leaves 1 GPUs" in only(checks.quotas([quota("3")], 2), "warning").what
    used_up = [finding.what for finding in checks.quotas([quota("4")], 2)]
    assert used_up[0] == "gpus is used up: requests.nvidia.com/gpu 4 of 4"


def test_monitoring_and_dns() -> None:
    assert levels(checks.monitoring(set(), None)) == ["note"]
    assert levels(checks.monitoring({"podmonitors"}, [])) == ["warning"]
    assert levels(checks.dns([{"endpoints": [{"conditions": {"ready": False}}]}])) == ["error"]
    [elsewhere] = checks.dns([])
    assert (elsewhere.level, "networkPolicy.dns" in elsewhere.fix) == ("warning", True), "OpenShift names it otherwise"
    assert levels(checks.host_names({"a.example.com": None})) == ["warning"]


def test_routes() -> None:
    kinds = {"httproutes", "gatewayclasses"}
    assert levels(checks.gateway(set(), None, None, incremental=False)) == ["note"]
    assert levels(checks.gateway(set(), None, None, incremental=True)) == ["error"]
    assert levels(checks.gateway(kinds, [], [route()], False)) == ["warning"]
    orphan = {**route(), "status": {}}
    assert "no gateway has taken it" in only(checks.gateway(kinds, None, [orphan], False), "warning").what
    refused = route()
    message = "backend not found"
    refused["status"]["parents"][0]["conditions"][1] |= {"status": "False", "message": message}
    assert only(checks.gateway(kinds, None, [refused], False), "error").fix == message
    cut = only(checks.gateway(kinds, None, [route(rules=[{}])], False), "warning")
    assert "cuts a stream" in cut.what


def test_the_release_itself() -> None:
    item = cluster.written("rayservice")
    del item["spec"]["rayClusterConfig"]["authOptions"]
    assert "runs code" in only(checks.release(objects.service(item), ""), "warning").what
    item["metadata"]["name"] = "n" * 48
    assert "over 47" in only(checks.release(objects.service(item), ""), "error").what
    item = cluster.written("rayservice")
    item["spec"]["rayClusterConfig"]["rayVersion"] = "2.51.0"
    assert "knows no tokens" in only(checks.release(objects.service(item), ""), "error").what
    cluster.condition(item, "Ready", "False", "ZeroServeEndpoints", "Number of serve endpoints dropped to 0")
    assert "dropped to 0" in next(iter(checks.release(objects.service(item), ""))).what


@pytest.mark.parametrize(("version", "level"), [("v1.33.2", "ok"), ("v1.27.9-gke.1", "error"), ("dev", "unknown")])
def test_versions_of_kubernetes(version: str, level: str) -> None:
    assert levels(checks.kubernetes_version(version)) == [level]


def test_a_resolver_that_does_not_answer_is_not_waited_for(
    server: ApiServer, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(server)
    monkeypatch.setattr("easel.kube.doctor.RESOLVE_S", 0.01)
    examined = threading.Event()

    def slow(name: str) -> str:
        assert examined.wait(60)
        return "192.0.2.7"

    try:
        report = examine(connection, "prod", None, resolve=slow)
    finally:
        examined.set()
    assert "does not resolve" in only([f for f in report.findings if f.area == "DNS"], "warning").what
    assert address_of("localhost") in ("127.0.0.1", "::1")
    assert address_of("nowhere.invalid") is None

"""What is read out of objects that real API servers and KubeRay wrote (`recorded/README.md` says whose), and shown."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from easel.cli import app
from easel.kube import checks, objects, specs, upgrade
from easel.kube.connection import Connection
from easel.kube.doctor import examine
from easel.kube.objects import Application, Condition, Pod, Service, Side, timestamp
from tests.unit.kube import cluster
from tests.unit.kube.server import ApiServer

Object = dict[str, Any]
Run = Callable[..., Result]

HERE = Path(__file__).parent / "recorded"
FILES = sorted(HERE.glob("*.yaml"))
ACTIVE, PENDING = "chat-easel-7kq2x", "chat-easel-p2wv8"


def recorded(name: str) -> Object:
    return dict(yaml.safe_load((HERE / f"{name}.yaml").read_text()))


def at(text: str) -> float:
    told = timestamp(text)
    assert told is not None
    return told


def side(**differs: Any) -> Side:
    """Of which nothing is known but what is given."""
    nothing = {
        "applications": (), "target_capacity": None, "traffic": None, "moved_at": None, "workers_ready": 0,
        "workers_desired": 0, "state": "", "reason": "", "head_ready": None, "failure": "",
    }  # fmt: skip
    return Side(**{**nothing, **differs})


def service(item: Object) -> Service:
    return objects.service(item)


@pytest.fixture
def easel(kubeconfig: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["kube", *arguments, "--kubeconfig", str(kubeconfig), "--timeout", "5"])

    return run


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_says_whose_it_is_and_is_what_json_can_hold(file: Path) -> None:
    head = file.read_text().split("apiVersion:")[0]
    assert "# Written by: " in head
    assert "Looked at on 2026-11-27" in head
    assert file.stem in (HERE / "README.md").read_text()
    assert json.loads(json.dumps(recorded(file.stem))) == recorded(file.stem), "no times and no keys but text"


def test_a_cluster_that_is_ready() -> None:
    item = recorded("raycluster-ready")
    (one,) = [objects.beside(service(named("try")), [item]).active]
    assert one == side(cluster="try", workers_ready=1, workers_desired=1, state="ready", head_ready=True)


def test_a_cluster_of_an_old_operator_is_ready_while_its_pods_wait() -> None:
    (one,) = [objects.beside(service(named(ACTIVE)), [recorded("raycluster-old-ready")]).active]
    assert one == side(cluster=ACTIVE, workers_desired=2, state="ready")


def test_quantities_that_are_numbers_in_one_object_and_text_in_another_are_one_specification() -> None:
    """A server gives `cpu: 1` back as it was applied, whatever KubeRay made of it."""
    spec = recorded("raycluster-ready")["spec"]
    other = copy.deepcopy(spec)
    other["headGroupSpec"]["template"]["spec"]["containers"][0]["resources"]["limits"] = {
        "cpu": "1000m",
        "memory": "2000M",
    }
    assert specs.same_cluster(spec, other)
    other["headGroupSpec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"] = "2Gi"
    assert not specs.same_cluster(spec, other)


def test_a_service_that_serves() -> None:
    told = service(recorded("rayservice-ready"))
    name = "chat-easel-raycluster-7kq2x"
    deployments = (("Reader", "HEALTHY", ""), ("Writer", "HEALTHY", ""))
    assert told.active == side(
        cluster=name, workers_desired=1, applications=(Application("text_app", "RUNNING", "", deployments),)
    )
    assert told.pending is None, "four zeros and an empty head are no cluster"
    assert (told.endpoints, told.generation, told.observed_generation) == (1, 1, 1)
    assert (told.strategy, told.incremental, told.interval_s, told.suspended) == ("NewCluster", False, None, False)
    assert told.changed_at == at("2026-11-20T08:00:00Z"), "without managedFields, when it was made"
    assert told.conditions == {
        "Ready": Condition(
            "True",
            "NonZeroServeEndpoints",
            "Number of serve endpoints is greater than 0",
            at("2026-11-20T08:09:43Z"),
        ),
        "UpgradeInProgress": Condition(
            "False",
            "NoPendingCluster",
            "Active Ray cluster exists and no pending Ray cluster",
            at("2026-11-20T08:07:03Z"),
        ),
    }
    assert upgrade.read(told, (), (), at("2026-11-24T04:00:00Z")) == upgrade.Upgrade(
        "none", "done", f"{name} serves, 1 pod behind the service."
    )


def test_a_side_without_a_name_is_no_cluster_whatever_else_it_has() -> None:
    told = service(recorded("rayservice-switching"))
    deployments = (("Reader", "HEALTHY", ""), ("Writer", "HEALTHY", ""))
    assert told.active is None
    assert told.pending == side(
        cluster="chat-easel-raycluster-7kq2x", applications=(Application("text_app", "RUNNING", "", deployments),)
    )
    assert (told.conditions, told.endpoints) == ({}, 0)


def test_a_service_that_has_not_served_yet() -> None:
    told = service(recorded("rayservice-starting"))
    assert told.active is None
    assert told.pending == side(cluster=PENDING, workers_desired=1, head_ready=True)
    ready = told.condition("Ready")
    assert ready == Condition("False", "Initializing", "RayService is initializing", at("2026-11-24T04:00:24Z"))
    assert upgrade.read(told, (), (), at("2026-11-24T04:01:00Z")) == upgrade.Upgrade(
        "start",
        "running",
        f"{PENDING} is coming up.",
        (f"workers of {PENDING}: 0 of 1 are ready",),
        since=at("2026-11-24T04:00:20Z"),
    )


def test_what_a_cluster_says_of_itself_goes_before_the_copy_of_it() -> None:
    """KubeRay 1.7 copied nothing of the pending cluster's failure into the RayService."""
    told = service(recorded("rayservice-upgrading"))
    assert told.pending == side(cluster=PENDING)
    both = objects.beside(told, [recorded("raycluster-crashing")])
    assert both.pending == side(cluster=PENDING, head_ready=False)
    assert both.active == told.active
    assert both.active
    assert (both.active.head_ready, both.active.state) == (True, "ready")


def test_workers_are_counted_where_they_are_seen() -> None:
    """The copy had none, and may have old numbers."""
    told = service(recorded("rayservice-starting"))
    assert told.pending
    pods = [objects.pod(cluster.pod(name, of=PENDING)) for name in ("a", "b")]
    assert objects.workers(told.pending, pods) == (2, 2)
    assert objects.workers(told.pending, []) == (0, 1)
    leaving = cluster.pod("c", of=PENDING)
    leaving["metadata"]["deletionTimestamp"] = "2026-11-24T04:05:00Z"
    assert objects.workers(told.pending, [*pods, objects.pod(leaving)]) == (2, 2)
    assert upgrade.read(told, pods, (), at("2026-11-24T04:01:00Z")).waits_for == (f"Serve to start on {PENDING}",)


def test_a_head_that_died_is_not_up_because_the_copy_says_so() -> None:
    told = service(recorded("rayservice-starting"))
    head = objects.pod(recorded("pod-head-restarted") | {"metadata": recorded("pod-unschedulable")["metadata"]})
    assert (head.ready, head.cluster) == (False, PENDING)
    waits = upgrade.read(told, [head], (), at("2026-11-24T04:07:20Z")).waits_for
    assert waits == (f"the head of {PENDING}",)


def test_why_no_pod_can_be_made_is_known_without_events() -> None:
    """By the condition `ReplicaFailure`, after KubeRay's source: nobody has published one."""
    cannot = 'pods "chat-easel-p2wv8-head-x2k4j" is forbidden: exceeded quota: gpus'
    item = recorded("raycluster-crashing")
    failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreateHeadPod"}
    item["status"]["conditions"].append({**failure, "message": f"FailedCreateHeadPod\n{cannot}"})
    told = objects.beside(service(recorded("rayservice-upgrading")), [item])
    assert told.pending
    assert told.pending.failure == cannot
    seen = upgrade.read(told, (), (), at("2026-11-24T04:02:00Z"))
    assert (seen.state, seen.waits_for) == ("stalled", (f"{cannot} (KubeRay cannot make a pod)",))
    said = upgrade.read(told, (), ("Failed to create head Pod: quota",), at("2026-11-24T04:02:00Z"))
    assert said.waits_for == ("Failed to create head Pod: quota (KubeRay cannot make a pod)",), "once"


PODS = {
    "pod-head-restarted": Pod(
        name="chat-easel-7kq2x-head-4fzbn", cluster=ACTIVE, node_type="head", group="headgroup", phase="Running",
        ready=False, restarts=1, node="node-a", gpus=0, created=timestamp("2026-11-24T04:06:40Z"), unschedulable="",
        unschedulable_since=None, stuck="", metrics_port=8080, containers=("ray-head",), deleting=False,
    ),
    "pod-head-crashing": Pod(
        name="chat-easel-p2wv8-head-x2k4j", cluster=PENDING, node_type="head", group="headgroup", phase="Running",
        ready=False, restarts=4, node="node-a", gpus=0, created=None, unschedulable="", unschedulable_since=None,
        stuck="CrashLoopBackOff: back-off 20s restarting failed container", metrics_port=8080,
        containers=("ray-head",), deleting=False,
    ),
    "pod-unschedulable": Pod(
        name="chat-easel-p2wv8-head-x2k4j", cluster=PENDING, node_type="head", group="headgroup", phase="Pending",
        ready=False, restarts=0, node="", gpus=0, created=None,
        unschedulable="0/4 nodes are available: 1 Insufficient nvidia.com/gpu, 1 node(s) had untolerated taint "
        "{node-role.kubernetes.io/master: }, 2 node(s) didn't match Pod's node affinity/selector. preemption: 0/4 "
        "nodes are available: 1 No preemption victims found for incoming pod, 3 Preemption is not helpful "
        "for scheduling..",
        unschedulable_since=timestamp("2026-11-24T03:55:11Z"), stuck="", metrics_port=8080, containers=("ray-head",),
        deleting=False,
    ),
    "pod-image-pull": Pod(
        name="chat-web-66cfffb669-7lq2x", cluster="", node_type="", group="", phase="Pending", ready=False, restarts=0,
        node="node-a", gpus=0, created=timestamp("2026-11-24T04:06:55Z"), unschedulable="", unschedulable_since=None,
        stuck='ImagePullBackOff: Back-off pulling image "registry.example/easel:0.9.9"', metrics_port=8080,
        containers=("web",), deleting=False,
    ),
    "pod-crash-loop": Pod(
        name="once", cluster="", node_type="", group="", phase="Running", ready=False, restarts=3, node="node-a",
        gpus=0, created=timestamp("2026-11-24T04:00:36Z"), unschedulable="", unschedulable_since=None,
        stuck="CrashLoopBackOff: Back-off 40s restarting failed container=main "
        "pod=once_prod(0d0d0b52-1b1d-4c2f-8a37-2f2f4a5f7c23)", metrics_port=8080, containers=("main",), deleting=False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(PODS))
def test_pods(name: str) -> None:
    assert objects.pod(recorded(name)) == PODS[name]


def test_every_pod_of_the_folder_is_held() -> None:
    assert {file.stem for file in FILES if recorded(file.stem)["kind"] == "Pod"} == set(PODS)


def test_a_node_with_a_virtual_gpu_and_an_old_driver() -> None:
    item = recorded("node-gpu")
    assert checks.node_gpus(item) == 1
    old, room = checks.gpus([item], [], wanted=1)
    assert (old.level, old.what) == ("error", "gpu-a has driver 550.90.07: too old for CUDA 13")
    assert (room.level, room.what) == ("ok", "1 GPUs on 1 nodes (NVIDIA-A16-4Q), 1 free, at most 1 on one node")


def test_an_upgrade_that_crashes_as_status_shows_it(server: ApiServer, easel: Run) -> None:
    server.objects["ray.io", "rayservices"] = [recorded("rayservice-upgrading")]
    server.objects["ray.io", "rayclusters"] = [recorded("raycluster-crashing")]
    server.objects["", "pods"] = [recorded("pod-head-restarted"), recorded("pod-head-crashing")]
    result = easel("status", "chat-easel")
    screen = " ".join(result.output.split())
    for told in (
        "prod/chat-easel ready",
        "1 pods behind it; Ray 2.55.0",
        f"active {ACTIVE}: 0 of 0 workers ready easel running (Engine healthy)",
        f"pending {PENDING}: 0 of 0 workers ready",
        f"new cluster: failed {PENDING} is coming up; {ACTIVE} serves until it is ready.",
        f"waits for {PENDING}-head-x2k4j, which cannot start: CrashLoopBackOff: back-off 20s restarting failed",
        f"{ACTIVE}-head-4fzbn head Running 1 0",
        f"{PENDING}-head-x2k4j head (pending) CrashLoopBackOff 4 0",
    ):
        assert told in screen, (told, result.output)
    told = json.loads(easel("status", "chat-easel", "--json").output)
    assert told["service"]["pending"]["head_ready"] is False


def test_the_same_where_neither_pods_nor_clusters_may_be_seen(server: ApiServer, easel: Run) -> None:
    server.objects["ray.io", "rayservices"] = [recorded("rayservice-upgrading")]
    server.may = lambda verb, group, resource, namespace: resource == "rayservices"
    screen = " ".join(easel("status", "chat-easel").output.split())
    assert f"waits for the head of {PENDING}" in screen
    assert "get rayclusters" in screen
    assert "list pods" in screen


def test_a_cluster_that_is_named_and_not_made_yet_is_nothing_to_complain_about(server: ApiServer, easel: Run) -> None:
    """KubeRay writes the name first."""
    server.objects["ray.io", "rayservices"] = [recorded("rayservice-upgrading")]
    server.objects["ray.io", "rayclusters"] = []
    server.objects["", "pods"] = []
    result = easel("status", "chat-easel")
    assert "Left out" not in result.output
    assert f"the head of {PENDING}" in result.output


def test_doctor_of_recorded_objects(server: ApiServer, connection: Connection) -> None:
    server.objects["ray.io", "rayservices"] = [recorded("rayservice-ready")]
    server.put("", "nodes", recorded("node-gpu"))
    server.objects["", "pods"] = [recorded(name) for name in PODS]
    told = {(f.area, f.level): f.what for f in examine(connection, "prod", "chat-easel").findings}
    assert told["release", "ok"] == "chat-easel is ready: 1 pods behind the service"
    assert told["release", "warning"] == "Ray asks for no token: whoever reaches its ports runs code as Easel"
    assert told["GPUs", "error"] == "gpu-a has driver 550.90.07: too old for CUDA 13"


def test_the_operator_as_kuberays_kustomization_labels_it(server: ApiServer, connection: Connection) -> None:
    """After ray-operator/config/manager/manager.yaml: there all parts have one name. The image has a digest too, as
    `kubectl set image` left it in skyhook-io/radar's demonstration."""
    server.objects["ray.io", "rayclusters"] = []
    labels = {"app.kubernetes.io/name": "kuberay", "app.kubernetes.io/component": "kuberay-operator"}
    item = cluster.operator("v1.7.0@sha256:00aa")
    item["metadata"]["labels"] = item["spec"]["template"]["metadata"]["labels"] = labels
    other = cluster.operator("v1.6.0")
    other["metadata"] |= {
        "name": "kuberay-apiserver",
        "labels": {**labels, "app.kubernetes.io/component": "kuberay-apiserver"},
    }
    server.put("apps", "deployments", other, item)
    found = [f for f in examine(connection, "prod", None).findings if f.area == "KubeRay"]
    assert [f.level for f in found] == ["ok", "ok", "warning"]
    assert found[1].what == "the operator is v1.7.0 (kuberay/kuberay-operator)"
    assert "labels its pods app.kubernetes.io/name=kuberay: the chart's policy keeps them out" in found[2].what
    assert "networkPolicy.operator" in found[2].fix
    server.objects["apps", "deployments"] = [other]
    alone = [f for f in examine(connection, "prod", None).findings if f.area == "KubeRay"]
    assert [f.level for f in alone] == ["ok", "error"], "the API server of KubeRay acts on nothing"


def named(name: str) -> Object:
    """A service whose active cluster is `name`, and says nothing of it."""
    item = recorded("rayservice-ready")
    item["status"]["activeServiceStatus"] = {"rayClusterName": name}
    return item

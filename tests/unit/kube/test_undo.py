"""Going back: who has to do it, what is written, and that nothing that serves is lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from easel.kube import objects, specs, undo
from easel.kube.connection import Connection
from easel.kube.failures import KubeError
from tests.unit.kube import cluster
from tests.unit.kube.cluster import ACTIVE, PENDING, upgrading
from tests.unit.kube.server import ApiServer

Object = dict[str, Any]

OLD = cluster.written("rayservice")["spec"]["rayClusterConfig"]


def nobodys(item: Object) -> Object:
    """Applied by hand: neither Helm nor Git owns it."""
    item["metadata"]["annotations"] = {}
    del item["metadata"]["labels"]["app.kubernetes.io/managed-by"]
    return item


def replace(server: ApiServer, item: Object) -> Object:
    server.objects["ray.io", "rayservices"] = [item]
    return item


def never(command: Sequence[str]) -> int:
    raise AssertionError(f"nothing is to be run: {command}")


def test_what_git_owns_is_refused_by_name() -> None:
    item = upgrading()
    item["metadata"]["annotations"]["argocd.argoproj.io/tracking-id"] = "apps:ray.io/RayService:prod/chat-easel"
    plan = undo.plan(objects.service(item), OLD)
    assert plan.by == "refused"
    assert "Argo CD" in plan.says[0]
    assert "Revert the commit" in plan.says[0]
    del item["metadata"]["annotations"]["argocd.argoproj.io/tracking-id"]
    item["metadata"]["labels"]["helm.toolkit.fluxcd.io/name"] = "chat"
    assert "Flux" in undo.plan(objects.service(item), OLD).says[0]


def test_helms_release_goes_back_by_helm() -> None:
    service = objects.service(upgrading())
    plan = undo.plan(service, OLD, helm_options=("--kube-context", "test"))
    assert plan.by == "helm"
    assert plan.command == ("helm", "rollback", "chat", "--namespace", "prod", "--kube-context", "test")
    assert plan.drops_pending
    assert undo.plan(service, OLD, revision=4).command[:4] == ("helm", "rollback", "chat", "4")


def test_helm_is_asked_also_where_a_configuration_was_taken_up_in_place() -> None:
    plan = undo.plan(objects.service(cluster.written("rayservice")), None)
    assert plan.by == "helm"
    assert not plan.drops_pending


def test_without_helm_a_configuration_that_was_taken_up_is_kept_nowhere() -> None:
    plan = undo.plan(objects.service(nobodys(cluster.written("rayservice"))), None)
    assert plan.by == "nothing"
    assert "apply the configuration that you want" in plan.says[0]
    assert undo.plan(objects.service(nobodys(upgrading())), OLD, revision=2).by == "refused"


@pytest.mark.parametrize(
    ("item", "drops"),
    [
        (upgrading(), True),
        (upgrading(applicationStatuses={"easel": {"status": "DEPLOYING"}}), True),
        (upgrading(applicationStatuses={"easel": {"status": "RUNNING"}}), False),
        (upgrading("NewClusterWithIncrementalUpgrade"), False),
        (cluster.written("rayservice"), False),
    ],
)
def test_only_a_new_cluster_that_does_not_serve_is_given_up(item: Object, drops: bool) -> None:
    assert undo.drops_pending(objects.service(item)) == drops


def test_the_old_specification_comes_back_with_the_counts_of_today() -> None:
    wanted = upgrading()["spec"]["rayClusterConfig"]
    wanted["workerGroupSpecs"][0] |= {"minReplicas": 0, "maxReplicas": 9}
    running = cluster.cluster(ACTIVE, OLD)["spec"]
    running["workerGroupSpecs"][0] |= {"replicas": 4, "scaleStrategy": {"workersToDelete": ["w-1"]}}
    back = specs.restored(wanted, running)
    (group,) = back["workerGroupSpecs"]
    assert group["template"]["spec"]["containers"][0]["image"].endswith(":0.1.0")
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (2, 0, 9)
    assert "scaleStrategy" not in group
    assert specs.same_cluster(back, running)
    assert not specs.same_cluster(wanted, running)


def test_what_has_been_through_kuberays_types_is_the_same_cluster() -> None:
    """Go leaves out what is empty, and writes quantities its own way."""
    running = cluster.cluster(ACTIVE, OLD)["spec"]
    container = running["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    container["resources"]["limits"] = {"cpu": "12000m", "memory": "98304Mi", "nvidia.com/gpu": 1}
    running["workerGroupSpecs"][0] |= {"rayStartParams": None, "numOfHosts": 0}
    running["headGroupSpec"]["template"]["metadata"] = {"creationTimestamp": None}
    assert specs.same_cluster(OLD, running)
    container["resources"]["limits"]["memory"] = "64Gi"
    assert not specs.same_cluster(OLD, running)


def test_a_stalled_upgrade_of_nobodys_is_undone_also_when_the_operator_puts_another_waiting_cluster(
    server: ApiServer, connection: Connection
) -> None:
    item = replace(server, nobodys(upgrading()))
    puts = iter(["chat-easel-aaaaa", "chat-easel-bbbbb"])

    def operator(subresource: str, item: Object) -> None:
        """As KubeRay 1.7: another waiting cluster in place of the one before, as long as the status names one."""
        if subresource == "" and item["status"]["pendingServiceStatus"]:
            item["status"]["pendingServiceStatus"] = {"rayClusterName": next(puts)}

    server.operator = operator
    service = objects.service(item)
    plan = undo.plan(service, OLD)
    assert plan.by == "patch"
    undo.carry_out(connection, service, plan, never, sleep=lambda seconds: None)
    assert item["spec"]["rayClusterConfig"] == {
        **OLD,
        "workerGroupSpecs": item["spec"]["rayClusterConfig"]["workerGroupSpecs"],
    }
    assert specs.same_cluster(item["spec"]["rayClusterConfig"], OLD)
    assert item["status"]["pendingServiceStatus"] == {}
    assert item["status"]["activeServiceStatus"]["rayClusterName"] == ACTIVE


def test_a_change_in_between_is_not_written_over(server: ApiServer, connection: Connection) -> None:
    item = replace(server, nobodys(upgrading()))
    service = objects.service(item)
    plan = undo.plan(service, OLD)
    item["metadata"]["generation"] += 1
    with pytest.raises(KubeError):
        undo.carry_out(connection, service, plan, never)
    assert item["status"]["pendingServiceStatus"]["rayClusterName"] == PENDING


def test_helm_does_its_part_first_and_the_waiting_cluster_is_dropped_then(
    server: ApiServer, connection: Connection
) -> None:
    item = replace(server, upgrading())
    service = objects.service(item)

    def helm(command: Sequence[str]) -> int:
        item["spec"]["rayClusterConfig"] = OLD
        return 0

    undo.carry_out(connection, service, undo.plan(service, OLD), helm, sleep=lambda seconds: None)
    assert item["status"]["pendingServiceStatus"] == {}


def test_where_helm_went_elsewhere_the_waiting_cluster_is_left_alone(server: ApiServer, connection: Connection) -> None:
    item = replace(server, upgrading())
    service = objects.service(item)
    with pytest.raises(KubeError, match="still differs"):
        undo.carry_out(connection, service, undo.plan(service, OLD), lambda command: 0, sleep=lambda seconds: None)
    assert item["status"]["pendingServiceStatus"]["rayClusterName"] == PENDING


def test_where_helm_fails_nothing_else_is_done(server: ApiServer, connection: Connection) -> None:
    item = replace(server, upgrading())
    service = objects.service(item)
    with pytest.raises(KubeError, match="exit code 1; nothing else was done"):
        undo.carry_out(connection, service, undo.plan(service, OLD), lambda command: 1)
    assert not [line for line in server.asked if line.startswith("patch")]


def test_a_cluster_that_comes_up_meanwhile_takes_over(server: ApiServer, connection: Connection) -> None:
    item = replace(server, upgrading())
    service = objects.service(item)

    def helm(command: Sequence[str]) -> int:
        item["spec"]["rayClusterConfig"] = OLD
        item["status"]["pendingServiceStatus"]["applicationStatuses"] = {"easel": {"status": "RUNNING"}}
        return 0

    with pytest.raises(KubeError, match="takes over"):
        undo.carry_out(connection, service, undo.plan(service, OLD), helm, sleep=lambda seconds: None)
    assert item["status"]["pendingServiceStatus"]["rayClusterName"] == PENDING


def test_an_operator_that_never_gives_in_is_told(server: ApiServer, connection: Connection) -> None:
    item = replace(server, upgrading())
    service = objects.service(item)
    item["spec"]["rayClusterConfig"] = OLD

    def stubborn(subresource: str, item: Object) -> None:
        item["status"]["pendingServiceStatus"] = {"rayClusterName": "chat-easel-again"}

    server.operator = stubborn
    with pytest.raises(KubeError, match="after 10 tries"):
        undo.carry_out(connection, service, undo.plan(service, OLD), lambda command: 0, sleep=lambda seconds: None)

"""What an upgrade is said to be: its kind, how it stands, what it waits for, and the way out of a stalled one."""

from __future__ import annotations

from typing import Any

import pytest

from easel.kube import objects
from easel.kube.upgrade import Upgrade, read
from tests.unit.kube import cluster
from tests.unit.kube.cluster import condition, upgrading

Object = dict[str, Any]


def seen(service: Object, *pods: Object, events: tuple[str, ...] = ()) -> Upgrade:
    return read(objects.service(service), [objects.pod(pod) for pod in pods], events, cluster.NOW)


def test_nothing_is_under_way() -> None:
    upgrade = seen(cluster.written("rayservice"), cluster.pod("w"))
    assert (upgrade.kind, upgrade.state, upgrade.waits_for) == ("none", "done", ())
    assert cluster.ACTIVE in upgrade.summary


def test_a_new_configuration_is_taken_up_in_place() -> None:
    service = cluster.written("rayservice")
    application = service["status"]["activeServiceStatus"]["applicationStatuses"]["easel"]
    application["status"] = "DEPLOYING"
    application["serveDeploymentStatuses"]["engine"] = {"status": "UPDATING", "message": "1 of 2 replicas\nmore"}
    upgrade = seen(service)
    assert (upgrade.kind, upgrade.state) == ("in place", "running")
    assert upgrade.waits_for == ("application easel: DEPLOYING", "deployment engine: UPDATING: 1 of 2 replicas")


def test_scaling_is_no_upgrade() -> None:
    service = cluster.written("rayservice")
    application = service["status"]["activeServiceStatus"]["applicationStatuses"]["easel"]
    application["serveDeploymentStatuses"]["engine"] = {"status": "UPSCALING"}
    assert seen(service).state == "done"


def test_a_configuration_that_serve_could_not_take_up() -> None:
    service = cluster.written("rayservice")
    application = service["status"]["activeServiceStatus"]["applicationStatuses"]["easel"]
    application |= {"status": "DEPLOY_FAILED", "message": "ModuleNotFoundError: no module named 'easel'"}
    upgrade = seen(service)
    assert (upgrade.kind, upgrade.state) == ("in place", "failed")
    assert "ModuleNotFoundError" in upgrade.waits_for[0]
    assert any("rollout undo" in way for way in upgrade.escapes)


def test_nothing_is_behind_the_service() -> None:
    service = cluster.written("rayservice")
    del service["status"]["numServeEndpoints"]
    upgrade = seen(service, cluster.unscheduled("w", cluster.ACTIVE))
    assert upgrade.state == "running"
    assert "a node for w (1 GPU)" in upgrade.waits_for[0]


def test_the_first_cluster_comes_up() -> None:
    service = cluster.written("rayservice")
    service["status"]["pendingServiceStatus"] = service["status"].pop("activeServiceStatus")
    service["status"]["pendingServiceStatus"]["applicationStatuses"]["easel"]["status"] = "DEPLOYING"
    upgrade = seen(service)
    assert (upgrade.kind, upgrade.state, upgrade.waits_for) == ("start", "running", ("application easel: DEPLOYING",))


def test_a_new_cluster_comes_up_beside_the_old() -> None:
    upgrade = seen(upgrading(since_s=20), cluster.pod("w"))
    assert (upgrade.kind, upgrade.state, upgrade.since) == ("new cluster", "running", cluster.NOW - 20)
    assert upgrade.waits_for == (f"the head of {cluster.PENDING}",)
    assert not upgrade.escapes


def test_a_new_cluster_whose_head_is_there_waits_for_workers_then_for_serve_then_for_traffic() -> None:
    head = {"type": "HeadPodReady", "status": "True", "reason": "HeadPodRunningAndReady"}
    status: Object = {"conditions": [head], "desiredWorkerReplicas": 2, "readyWorkerReplicas": 1}
    workers = seen(upgrading(rayClusterStatus=status))
    assert workers.waits_for == (f"workers of {cluster.PENDING}: 1 of 2 are ready",)
    status["readyWorkerReplicas"] = 2
    assert seen(upgrading(rayClusterStatus=status)).waits_for == (f"Serve to start on {cluster.PENDING}",)
    running = {"easel": {"status": "RUNNING", "serveDeploymentStatuses": {"engine": {"status": "HEALTHY"}}}}
    ready = seen(upgrading(rayClusterStatus=status, applicationStatuses=running))
    assert ready.waits_for == ("traffic to be switched",)


def test_without_room_for_two_a_new_cluster_is_stalled_and_the_ways_out_are_told() -> None:
    """What KubeRay 1.7 was seen to do: it waits for ever, and the old specification alone does not end it."""
    upgrade = seen(upgrading(), cluster.unscheduled("w"))
    assert (upgrade.kind, upgrade.state) == ("new cluster", "stalled")
    assert upgrade.waits_for == (f"a node for w (1 GPU): {cluster.NO_GPU}",)
    ways = " ".join(upgrade.escapes)
    assert "free GPUs" in ways
    assert "easel kube rollout undo" in ways
    assert "Applying the old spec alone does not end it" in ways


def test_a_pod_may_wait_some_minutes_for_a_node_that_is_being_added() -> None:
    upgrade = seen(upgrading(), cluster.unscheduled("w", since_s=90))
    assert (upgrade.state, upgrade.escapes) == ("running", ())


def test_a_pod_of_the_old_cluster_that_waits_does_not_stall_the_new_one() -> None:
    assert seen(upgrading(), cluster.unscheduled("w", cluster.ACTIVE)).state == "running"


def test_quota_and_pod_security_stall_at_once() -> None:
    message = cluster.written("event")["message"]
    upgrade = seen(upgrading(since_s=20), events=(message,))
    assert upgrade.state == "stalled"
    assert "exceeded quota" in upgrade.waits_for[0]


@pytest.mark.parametrize("reason", ["ImagePullBackOff", "CrashLoopBackOff", "CreateContainerConfigError"])
def test_a_new_cluster_that_cannot_start_has_failed(reason: str) -> None:
    upgrade = seen(upgrading(), cluster.stuck("w", reason, "why"))
    assert upgrade.state == "failed"
    assert upgrade.waits_for == (f"w, which cannot start: {reason}: why",)
    assert any("easel kube logs --pending" in way for way in upgrade.escapes)


def test_the_first_failure_to_pull_an_image_may_pass() -> None:
    assert seen(upgrading(), cluster.stuck("w", "ErrImagePull", "timeout")).state == "running"


def test_a_new_cluster_whose_application_fails() -> None:
    failed = {"easel": {"status": "DEPLOY_FAILED", "message": "CUDA out of memory"}}
    upgrade = seen(upgrading(applicationStatuses=failed), cluster.pod("h", cluster.PENDING, "head"))
    assert upgrade.state == "failed"
    assert "CUDA out of memory" in " ".join(upgrade.waits_for)


RUNNING = {"easel": {"status": "RUNNING"}}
READY = {"conditions": [{"type": "HeadPodReady", "status": "True"}]}


def incremental(moved_s: float) -> Object:
    shares = {"targetCapacity": 50, "trafficRoutedPercent": 25, "lastTrafficMigratedTime": cluster.before(moved_s)}
    more = {"applicationStatuses": RUNNING, "rayClusterStatus": READY}
    service = upgrading("NewClusterWithIncrementalUpgrade", **shares, **more)
    service["status"]["activeServiceStatus"] |= {"targetCapacity": 100, "trafficRoutedPercent": 75}
    return service


def test_traffic_moves_in_steps() -> None:
    upgrade = seen(incremental(moved_s=20))
    assert (upgrade.kind, upgrade.state) == ("incremental", "running")
    assert upgrade.waits_for == (f"the next step: {cluster.PENDING} has 25 % of the traffic",)
    assert upgrade.steps == ((cluster.ACTIVE, 100, 75), (cluster.PENDING, 50, 25))


def test_traffic_that_does_not_move_is_stalled() -> None:
    upgrade = seen(incremental(moved_s=900))
    assert upgrade.state == "stalled"
    assert any("maxSurgePercent" in way for way in upgrade.escapes)


@pytest.mark.parametrize(("moved_s", "state"), [(20, "running"), (900, "stalled")])
def test_an_incremental_upgrade_goes_back_in_steps(moved_s: float, state: str) -> None:
    service = incremental(moved_s)
    condition(service, "RollbackInProgress", "True", "TargetClusterChanged", since_s=moved_s + 60)
    upgrade = seen(service)
    assert (upgrade.kind, upgrade.state) == ("rollback", state)
    assert upgrade.waits_for == (f"traffic back on {cluster.ACTIVE}: it has 75 %",)


def test_a_spec_that_the_operator_refuses() -> None:
    service = cluster.written("rayservice")
    condition(service, "Ready", "False", "ValidationFailed", "maxSurgePercent must be between 0 and 100")
    upgrade = seen(service)
    assert upgrade.state == "failed"
    assert "maxSurgePercent must be" in upgrade.summary


def test_a_start_that_was_given_up_for_good() -> None:
    service = cluster.written("rayservice")
    condition(service, "Ready", "False", "InitializingTimeout", "failed to become ready")
    upgrade = seen(service)
    assert upgrade.state == "failed"
    assert "kubectl -n prod delete rayservice chat-easel" in upgrade.escapes[0]


@pytest.mark.parametrize(("age_s", "state"), [(5, "running"), (300, "stalled")])
def test_a_change_that_the_operator_has_not_seen(age_s: float, state: str) -> None:
    service = cluster.written("rayservice")
    service["metadata"]["generation"] = 4
    service["metadata"]["managedFields"][0]["time"] = cluster.before(age_s)
    upgrade = seen(service)
    assert upgrade.state == state
    assert upgrade.waits_for == ("the operator to see generation 4; it has seen 3",)
    assert bool(upgrade.escapes) == (state == "stalled")


def test_a_suspended_service_is_left_in_peace() -> None:
    service = cluster.written("rayservice")
    service["spec"]["suspend"] = True
    assert seen(service).state == "suspended"


def test_a_service_that_nobody_has_begun_with() -> None:
    service = cluster.written("rayservice")
    service["status"] = {"observedGeneration": 3}
    assert (seen(service).kind, seen(service).state) == ("start", "running")

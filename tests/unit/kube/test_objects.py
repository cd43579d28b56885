"""What is read out of the objects of KubeRay and Kubernetes, and out of the pods' metrics."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easel.kube import objects, scrape
from easel.telemetry import names
from tests.unit.kube import cluster


def test_a_service_that_serves() -> None:
    service = objects.service(cluster.written("rayservice"))
    assert (service.namespace, service.name, service.release) == ("prod", "chat-easel", "chat")
    assert (service.generation, service.observed_generation, service.endpoints) == (3, 3, 2)
    assert (service.strategy, service.incremental, service.ray_version) == ("NewCluster", False, "2.60.0")
    assert service.changed_at == cluster.NOW - 600  # when Helm wrote it, not when the operator noted its status
    ready = service.condition("Ready")
    assert ready
    assert ready.true
    assert service.pending is None
    assert service.active
    assert service.active.cluster == cluster.ACTIVE
    assert (service.active.workers_ready, service.active.workers_desired, service.active.head_ready) == (2, 2, True)
    (application,) = service.active.applications
    assert (application.name, application.status) == ("easel", "RUNNING")
    assert application.deployments == (("engine", "HEALTHY", ""), ("ingress", "HEALTHY", ""))


def test_both_clusters_of_an_incremental_upgrade() -> None:
    shares = {"targetCapacity": 50, "trafficRoutedPercent": 25, "lastTrafficMigratedTime": cluster.before(20)}
    service = objects.service(cluster.upgrading("NewClusterWithIncrementalUpgrade", **shares))
    assert (service.incremental, service.interval_s) == (True, 30)
    assert service.pending
    assert (service.pending.target_capacity, service.pending.traffic) == (50, 25)
    assert service.pending.moved_at == cluster.NOW - 20
    assert service.pending.head_ready is None


def test_a_worker() -> None:
    pod = objects.pod(cluster.written("pod"))
    assert (pod.cluster, pod.node_type, pod.group, pod.node) == (cluster.ACTIVE, "worker", "h100", "gpu-a")
    assert (pod.phase, pod.ready, pod.restarts, pod.gpus) == ("Running", True, 1, 1)
    assert (pod.metrics_port, pod.containers) == (8080, ("ray-worker",))
    assert (pod.unschedulable, pod.stuck, pod.deleting) == ("", "", False)


def test_pods_that_wait() -> None:
    waits = objects.pod(cluster.unscheduled("w"))
    assert "Insufficient nvidia.com/gpu" in waits.unschedulable
    assert waits.unschedulable_since == cluster.NOW - 600
    image = objects.pod(cluster.stuck("w", "ImagePullBackOff", "Back-off pulling image"))
    assert image.stuck == "ImagePullBackOff: Back-off pulling image"
    assert objects.pod(cluster.stuck("w", "ContainerCreating", "")).stuck == ""


@pytest.mark.parametrize(
    ("text", "value"),
    [("8", 8), ("500m", 0.5), ("80Gi", 80 * 2**30), ("1k", 1000), ("1e3", 1000), (2, 2), (None, 0), ("many", 0)],
)
def test_quantities(text: object, value: float) -> None:
    assert objects.quantity(text) == value


def test_slices_of_gpus_count() -> None:
    limits = {"nvidia.com/mig-1g.10gb": "2", "cpu": "4"}
    assert objects.pod_gpus({"spec": {"containers": [{"resources": {"limits": limits}}, {}]}}) == 2


json = st.recursive(
    st.none() | st.booleans() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = ["metadata", "spec", "status", "labels", "conditions", "containers", "rayClusterConfig", "activeServiceStatus"]


@given(st.dictionaries(st.sampled_from(KEYS), json | st.dictionaries(st.sampled_from(KEYS), json)))
def test_objects_that_are_odd_are_read_all_the_same(item: dict[str, Any]) -> None:
    """Another version may leave anything out, or change its type: then it is as if it were not there."""
    assert objects.service(item).name is not None
    assert objects.pod(item).name is not None


METRICS = f"""# HELP ray_{names.SLOTS.name} Seats
# TYPE ray_{names.SLOTS.name} gauge
ray_{names.SLOTS.name}{{model="easel",ReplicaId="a b\\"c",SessionName="s"}} 8.0
ray_{names.SLOTS_BUSY.name}{{model="easel"}} 5.0
ray_{names.QUEUED.name}{{model="easel"}} 3
ray_{names.QUEUED_WORK.name}{{model="easel"}} 61.5
ray_{names.TARGET_REPLICAS.name}{{application="easel"}} 2
ray_node_gpus_utilization{{GpuIndex="0",GpuDeviceName="NVIDIA H100"}} 87.0
ray_node_gram_used{{GpuIndex="0"}} 40000
ray_node_gram_available{{GpuIndex="0"}} 41559
a line that is none
ray_broken{{}} nothing
"""


def test_load_is_added_up_over_pods() -> None:
    load = scrape.load([("one", METRICS), ("two", METRICS.replace('GpuIndex="0"', 'GpuIndex="1"'))])
    assert (load.engines, load.slots, load.slots_busy) == (2, 16, 10)
    assert (load.queued_requests, load.queued_work, load.target_replicas) == (6, 123, 2)
    assert [gpu[0] for gpu in load.gpus] == ["one/0", "two/1"]
    assert load.gpus[0][1:] == (87, 40e9, 81.559e9)


def test_what_nobody_exports_is_unknown_and_not_zero() -> None:
    load = scrape.load([("one", "")])
    assert load.engines is None
    assert load.queued_work is None
    assert load.gpus == ()

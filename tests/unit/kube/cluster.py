"""Clusters to look at: the written objects, and what differs from them in each situation."""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from easel.kube.objects import timestamp

Object = dict[str, Any]

HERE = Path(__file__).parent / "written"
ACTIVE, PENDING = "chat-easel-7kq2x", "chat-easel-p2wv8"
NOW = timestamp("2026-11-24T04:10:00Z") or 0.0
NOTHING_ASKED = {"desiredCPU": "0", "desiredGPU": "0", "desiredMemory": "0", "desiredTPU": "0", "head": {}}
"""A rayClusterStatus of which nothing is known has these all the same."""
NO_GPU = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu. preemption: 0/3 nodes are available."


def written(name: str) -> Object:
    return dict(yaml.safe_load((HERE / f"{name}.yaml").read_text()))


def before(seconds: float) -> str:
    """As Kubernetes writes the time so long before `NOW`."""
    return datetime.fromtimestamp(NOW - seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def condition(item: Object, kind: str, status: str, reason: str, message: str = "", since_s: float = 60) -> None:
    conditions = item["status"]["conditions"]
    conditions[:] = [c for c in conditions if c["type"] != kind]
    told = {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": before(since_s)}
    conditions.append(told)


def upgrading(strategy: str = "NewCluster", since_s: float = 600, **pending: Any) -> Object:
    """Both clusters exist."""
    item = written("rayservice")
    item["spec"]["upgradeStrategy"] = {"type": strategy}
    if strategy == "NewClusterWithIncrementalUpgrade":
        item["spec"]["upgradeStrategy"]["clusterUpgradeOptions"] = {
            "gatewayClassName": "edge",
            "intervalSeconds": 30,
            "maxSurgePercent": 50,
            "stepSizePercent": 25,
        }
    groups = item["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    groups[0]["template"]["spec"]["containers"][0]["image"] = "registry.example/easel:0.2.0"
    told = "Both active and pending Ray clusters exist"
    condition(item, "UpgradeInProgress", "True", "BothActivePendingClustersExist", told, since_s)
    cluster = {"desiredWorkerReplicas": 2, **NOTHING_ASKED}
    item["status"]["pendingServiceStatus"] = {"rayClusterName": PENDING, "rayClusterStatus": cluster, **pending}
    return item


def cluster(name: str, spec: Object) -> Object:
    annotations = {"ray.io/kuberay-version": "v1.7.0"}
    labels = {"ray.io/originated-from-cr-name": "chat-easel", "ray.io/originated-from-crd": "RayService"}
    metadata = {"name": name, "namespace": "prod", "resourceVersion": "1", "annotations": annotations, "labels": labels}
    return {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": metadata, "spec": copy.deepcopy(spec)}


def pod(name: str, of: str = ACTIVE, node_type: str = "worker") -> Object:
    item = written("pod")
    item["metadata"]["name"] = name
    item["metadata"]["labels"] |= {"ray.io/cluster": of, "ray.io/node-type": node_type}
    if node_type == "head":
        item["metadata"]["labels"]["ray.io/group"] = "headgroup"
        item["spec"]["containers"][0] |= {"name": "ray-head", "resources": {}}
    return item


def unscheduled(name: str, of: str = PENDING, since_s: float = 600) -> Object:
    item = pod(name, of)
    del item["spec"]["nodeName"]
    waits = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": NO_GPU,
        "lastProbeTime": None,
    }
    item["status"] = {"phase": "Pending", "conditions": [{**waits, "lastTransitionTime": before(since_s)}]}
    return item


def stuck(name: str, reason: str, message: str, of: str = PENDING) -> Object:
    item = pod(name, of)
    state = {"waiting": {"reason": reason, "message": message}}
    item["status"]["phase"] = "Pending"
    for ready in item["status"]["conditions"]:
        if ready["type"] in ("Ready", "ContainersReady"):
            ready |= {"status": "False", "reason": "ContainersNotReady"}
    told = {"name": "ray-worker", "ready": False, "restartCount": 0, "started": False, "imageID": "", "lastState": {}}
    item["status"]["containerStatuses"] = [{**told, "state": state}]
    return item


def node(name: str, gpus: int, driver: str = "580.65.06", **spec: Any) -> Object:
    labels = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    if driver:
        labels["nvidia.com/cuda.driver-version.full"] = driver
    status = {"allocatable": {"cpu": "32", "memory": "256Gi"}, "conditions": [{"type": "Ready", "status": "True"}]}
    if gpus:
        status["allocatable"]["nvidia.com/gpu"] = str(gpus)
    return {"metadata": {"name": name, "labels": labels}, "spec": spec, "status": status}


def operator(tag: str = "v1.7.0", ready: int = 1) -> Object:
    labels = {"app.kubernetes.io/name": "kuberay-operator"}
    containers = [{"name": "kuberay-operator", "image": f"quay.example:5000/kuberay/operator:{tag}"}]
    return {
        "metadata": {"name": "kuberay-operator", "namespace": "kuberay", "labels": labels},
        "spec": {"template": {"metadata": {"labels": labels}, "spec": {"containers": containers}}},
        "status": {"availableReplicas": ready},
    }

"""What the API server tells about a RayService and its pods, as plain values.

Owns: reading the objects of KubeRay 1.7 and of Kubernetes, where any field may be missing, into frozen values.
Refuses to know: what they mean together (`upgrade`), and how they were fetched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any

Object = Mapping[str, Any]

GPU = "nvidia.com/gpu"
RELEASE_LABEL = "app.kubernetes.io/instance"
EASEL_LABELS = "app.kubernetes.io/name=easel"
CLUSTER_LABEL = "ray.io/cluster"
NODE_TYPE_LABEL = "ray.io/node-type"
GROUP_LABEL = "ray.io/group"
SERVICE_LABEL = "ray.io/originated-from-cr-name"


@dataclass(frozen=True)
class Condition:
    status: str
    """`True`, `False` or `Unknown`."""
    reason: str
    message: str
    since: float | None
    """Unix time of the last change."""

    @property
    def true(self) -> bool:
        return self.status == "True"


@dataclass(frozen=True)
class Application:
    """A Serve application, as its cluster's dashboard told the operator."""

    name: str
    status: str
    message: str
    deployments: tuple[tuple[str, str, str], ...]
    """Name, status and message of each."""


@dataclass(frozen=True)
class Side:
    """One of the two clusters that a RayService may have: the active, or the pending."""

    cluster: str
    applications: tuple[Application, ...]
    target_capacity: int | None
    traffic: int | None
    """Percent that the route sends here. None where the upgrade is not incremental."""
    moved_at: float | None
    workers_ready: int
    workers_desired: int
    state: str
    reason: str
    head_ready: bool | None
    """None where the operator has not said."""
    failure: str
    """Why the operator cannot make or delete a pod (condition `ReplicaFailure`), or empty."""


@dataclass(frozen=True)
class Service:
    """A RayService."""

    namespace: str
    name: str
    release: str
    generation: int
    observed_generation: int
    changed_at: float | None
    """When its spec or metadata was last written, as far as managedFields know."""
    strategy: str
    interval_s: int | None
    suspended: bool
    conditions: Mapping[str, Condition]
    active: Side | None
    pending: Side | None
    endpoints: int
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    cluster_config: Object
    ray_version: str

    def condition(self, kind: str) -> Condition | None:
        return self.conditions.get(kind)

    @property
    def incremental(self) -> bool:
        return self.strategy == "NewClusterWithIncrementalUpgrade"


@dataclass(frozen=True)
class Pod:
    name: str
    cluster: str
    node_type: str
    group: str
    phase: str
    ready: bool
    restarts: int
    node: str
    gpus: int
    created: float | None
    unschedulable: str
    """The scheduler's reason, or empty."""
    unschedulable_since: float | None
    stuck: str
    """Why a container cannot start, such as `ImagePullBackOff: ...`, or empty."""
    metrics_port: int
    containers: tuple[str, ...]
    """By name; the first runs Ray."""
    deleting: bool


def service(item: Object) -> Service:
    """From a RayService object."""
    metadata, spec, status = _map(item, "metadata"), _map(item, "spec"), _map(item, "status")
    labels = {str(key): str(value) for key, value in _map(metadata, "labels").items()}
    strategy = _map(spec, "upgradeStrategy")
    options = _map(strategy, "clusterUpgradeOptions")
    config = _map(spec, "rayClusterConfig")
    conditions = {str(c.get("type")): _condition(c) for c in _items(status, "conditions")}
    return Service(
        namespace=str(metadata.get("namespace", "")),
        name=str(metadata.get("name", "")),
        release=labels.get(RELEASE_LABEL, ""),
        generation=int(metadata.get("generation") or 0),
        observed_generation=int(status.get("observedGeneration") or 0),
        changed_at=_last_write(metadata),
        strategy=str(strategy.get("type") or "NewCluster"),
        interval_s=None if options.get("intervalSeconds") is None else int(options["intervalSeconds"]),
        suspended=bool(spec.get("suspend") or config.get("suspend")),
        conditions=conditions,
        active=_side(_map(status, "activeServiceStatus")),
        pending=_side(_map(status, "pendingServiceStatus")),
        endpoints=int(status.get("numServeEndpoints") or 0),
        labels=labels,
        annotations={str(key): str(value) for key, value in _map(metadata, "annotations").items()},
        cluster_config=config,
        ray_version=str(config.get("rayVersion") or ""),
    )


def beside(told: Service, clusters: Sequence[Object]) -> Service:
    """The same, with what its RayClusters say of themselves.

    KubeRay's copy in the RayService stays behind: it is written only where something else of the status changes too, so
    that a cluster which comes up may have no workers, no head and no failure there for as long as it does not serve."""
    known = {str(_map(item, "metadata").get("name")): _map(item, "status") for item in clusters}
    return replace(told, active=_fresh(told.active, known), pending=_fresh(told.pending, known))


def workers(side: Side, pods: Sequence[Pod]) -> tuple[int, int]:
    """Ready and wanted: counted where pods are seen, else as the operator says."""
    mine = [pod for pod in pods if pod.cluster == side.cluster and not pod.deleting]
    seen = [pod for pod in mine if pod.node_type == "worker"]
    ready = sum(pod.ready for pod in seen) if mine else side.workers_ready
    return ready, max(side.workers_desired, len(seen))


def pod(item: Object) -> Pod:
    """From a Pod object."""
    metadata, spec, status = _map(item, "metadata"), _map(item, "spec"), _map(item, "status")
    labels = _map(metadata, "labels")
    conditions = {str(c.get("type")): _condition(c) for c in _items(status, "conditions")}
    scheduled, ready = conditions.get("PodScheduled"), conditions.get("Ready")
    waits = scheduled is not None and scheduled.status == "False"
    containers = _items(status, "containerStatuses")
    return Pod(
        name=str(metadata.get("name", "")),
        cluster=str(labels.get(CLUSTER_LABEL, "")),
        node_type=str(labels.get(NODE_TYPE_LABEL, "")),
        group=str(labels.get(GROUP_LABEL, "")),
        phase=str(status.get("phase") or "Unknown"),
        ready=ready is not None and ready.true,
        restarts=sum(int(c.get("restartCount") or 0) for c in containers),
        node=str(spec.get("nodeName") or ""),
        gpus=pod_gpus(item),
        created=timestamp(metadata.get("creationTimestamp")),
        unschedulable=scheduled.message if scheduled is not None and waits else "",
        unschedulable_since=scheduled.since if scheduled is not None and waits else None,
        stuck=_stuck([*_items(status, "initContainerStatuses"), *containers]),
        metrics_port=_metrics_port(spec),
        containers=tuple(str(c.get("name", "")) for c in _items(spec, "containers")),
        deleting=metadata.get("deletionTimestamp") is not None,
    )


def pod_gpus(item: Object) -> int:
    """GPUs that a pod holds on to."""
    spec = _map(item, "spec")
    return sum(_gpus(_map(_map(c, "resources"), "limits")) for c in _items(spec, "containers"))


def timestamp(value: Any) -> float | None:
    """Unix time of Kubernetes' RFC 3339, or None where there is none."""
    if not isinstance(value, str) or not value:
        return None
    try:
        return datetime.fromisoformat(value).timestamp()
    except ValueError:
        return None


SUFFIXES = {
    "": 1,
    "m": Decimal("0.001"),
    **{s: 1000 ** (i + 1) for i, s in enumerate(("k", "M", "G", "T", "P", "E"))},
    **{s: 1024 ** (i + 1) for i, s in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"))},
}


def quantity(value: Any) -> float:
    """A number of Kubernetes' `quantity`, such as `500m` or `80Gi`; 0 for what is none."""
    text = str(value if value is not None else "0").strip()
    number = text.rstrip("kKMGTPEim")
    try:
        return float(Decimal(number) * SUFFIXES[text[len(number) :]])
    except (InvalidOperation, KeyError):
        return 0.0


def _gpus(resources: Object) -> int:
    """GPUs of any vendor's name, slices (MIG) among them."""
    return int(sum(quantity(value) for name, value in resources.items() if is_gpu(str(name))))


def is_gpu(resource: str) -> bool:
    return resource == GPU or resource.startswith("nvidia.com/mig-")


def _side(status: Object) -> Side | None:
    name = str(status.get("rayClusterName") or "")
    if not name:
        return None
    return Side(
        cluster=name,
        applications=tuple(
            _application(str(key), value)
            for key, value in _map(status, "applicationStatuses").items()
            if isinstance(value, Mapping)
        ),
        target_capacity=_percent(status.get("targetCapacity")),
        traffic=_percent(status.get("trafficRoutedPercent")),
        moved_at=timestamp(status.get("lastTrafficMigratedTime")),
        **_cluster(_map(status, "rayClusterStatus")),
    )


def _fresh(side: Side | None, known: Mapping[str, Object]) -> Side | None:
    status = known.get(side.cluster) if side is not None else None
    return replace(side, **_cluster(status)) if side is not None and status else side


def _cluster(status: Object) -> dict[str, Any]:
    """What a side has of its cluster's status."""
    conditions = {str(c.get("type")): _condition(c) for c in _items(status, "conditions")}
    head, failure = conditions.get("HeadPodReady"), conditions.get("ReplicaFailure")
    return {
        "workers_ready": int(status.get("readyWorkerReplicas") or 0),
        "workers_desired": int(status.get("desiredWorkerReplicas") or 0),
        "state": str(status.get("state") or ""),
        "reason": str(status.get("reason") or ""),
        "head_ready": None if head is None else head.true,
        "failure": _failure(failure) if failure is not None and failure.true else "",
    }


def _failure(condition: Condition) -> str:
    """KubeRay joins the reason and the error by a new line."""
    told = [line for line in condition.message.splitlines() if line.strip() and line.strip() != condition.reason]
    return " ".join(told) or condition.reason


def _application(name: str, status: Object) -> Application:
    deployments = _map(status, "serveDeploymentStatuses")
    return Application(
        name,
        str(status.get("status") or ""),
        str(status.get("message") or ""),
        tuple(
            (str(key), str(value.get("status") or ""), str(value.get("message") or ""))
            for key, value in deployments.items()
            if isinstance(value, Mapping)
        ),
    )


def _percent(value: Any) -> int | None:
    return None if value is None else int(value)


def _condition(item: Object) -> Condition:
    return Condition(
        str(item.get("status") or "Unknown"),
        str(item.get("reason") or ""),
        str(item.get("message") or ""),
        timestamp(item.get("lastTransitionTime")),
    )


def _last_write(metadata: Object) -> float | None:
    """Not of the status, which the operator writes all the time."""
    times = [timestamp(e.get("time")) for e in _items(metadata, "managedFields") if e.get("subresource") != "status"]
    known = [time for time in times if time is not None]
    return max(known) if known else timestamp(metadata.get("creationTimestamp"))


def _stuck(containers: list[Object]) -> str:
    for container in containers:
        waiting = _map(_map(container, "state"), "waiting")
        reason = str(waiting.get("reason") or "")
        if reason and reason not in ("ContainerCreating", "PodInitializing"):
            message = str(waiting.get("message") or "")
            return f"{reason}: {message}" if message else reason
    return ""


def _metrics_port(spec: Object) -> int:
    for container in _items(spec, "containers"):
        for port in _items(container, "ports"):
            if port.get("name") == "metrics":
                return int(port.get("containerPort") or 8080)
    return 8080


def _map(item: Object, key: str) -> Object:
    value = item.get(key)
    return value if isinstance(value, Mapping) else {}


def _items(item: Object, key: str) -> list[Object]:
    value = item.get(key)
    return [part for part in value if isinstance(part, Mapping)] if isinstance(value, list) else []

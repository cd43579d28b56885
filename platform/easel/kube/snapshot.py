"""One look at a release: everything that `status` and `rollout` show, and which rights were missing for the rest.

Owns: finding the release, which calls are made, and going on without what may not be seen. Refuses to know: what it
means (`upgrade`), how it looks (`drawing`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from easel.kube import objects, scrape, specs, upgrade
from easel.kube.connection import Connection
from easel.kube.failures import KubeError, Missing, NotAllowed
from easel.kube.resources import EVENTS, NAMESPACES, PODS, RAY_CLUSTERS, RAY_SERVICES
from easel.kube.rights import Right

T = TypeVar("T")

CANNOT_MAKE = ("FailedToCreateHeadPod", "FailedToCreateWorkerPod", "FailedToCreateRayCluster", "FailedCreate")
"""Reasons of events by which KubeRay says that the API server refused a pod: quota, pod security, a wrong template."""

RECENT_S = 600.0


@dataclass(frozen=True)
class Snapshot:
    at: float
    context: str
    service: objects.Service
    pods: tuple[objects.Pod, ...] | None
    """None: they may not be seen."""
    upgrade: upgrade.Upgrade
    load: scrape.Load | None
    """None: not asked for, or no pod's metrics could be read."""
    missing: tuple[Right, ...]
    """Rights without which parts are left out."""
    unread: tuple[str, ...]
    """What could not be read for other reasons."""


def find(connection: Connection, namespace: str, release: str | None) -> objects.Service:
    """The RayService of a release: by the chart's labels, or by its own name. Raises `Missing` with what there is."""
    try:
        if release is not None:
            return _named(connection, namespace, release)
        found = connection.find(RAY_SERVICES, namespace, labels=objects.EASEL_LABELS)
    except Missing as error:
        raise _absent(connection, namespace, error) from None
    if len(found) == 1:
        return objects.service(found[0])
    if not found:
        raise _absent(connection, namespace, None)
    names = ", ".join(sorted(objects.service(item).release or objects.service(item).name for item in found))
    raise Missing(f"several releases in namespace {namespace}: {names}; name one")


def _named(connection: Connection, namespace: str, release: str) -> objects.Service:
    labels = f"{objects.EASEL_LABELS},{objects.RELEASE_LABEL}={release}"
    try:
        found = connection.find(RAY_SERVICES, namespace, labels=labels)
    except NotAllowed:
        found = []  # whoever may only get it has to name it
    if found:
        return objects.service(found[0])
    try:
        return objects.service(connection.get(RAY_SERVICES, namespace, release))
    except Missing:
        there = [objects.service(item) for item in connection.find(RAY_SERVICES, namespace)]
        spoken = ", ".join(sorted(item.release or item.name for item in there)) or "none"
        raise Missing(f"no release {release!r} in namespace {namespace}; RayServices there: {spoken}") from None


def _absent(connection: Connection, namespace: str, error: Missing | None) -> Missing:
    """Why nothing was found: no KubeRay, no namespace, or nothing in it."""
    if RAY_SERVICES.plural not in _served(connection):
        return Missing(
            f"{connection.host} does not know RayServices: KubeRay is not installed there, or this is another cluster "
            f"than you mean (context {connection.context})"
        )
    if error is not None and "RayServices there" in error.message:
        return error
    try:
        connection.get(NAMESPACES, None, namespace)
    except Missing:
        return Missing(f"no namespace {namespace!r} in {connection.host} (context {connection.context})")
    except KubeError:
        pass  # who may not see namespaces is told about the release alone
    return Missing(
        f"no Easel in namespace {namespace} (no RayService with {objects.EASEL_LABELS}); "
        "name the namespace with -n, or a RayService that was not installed by the chart by its name"
    )


def _served(connection: Connection) -> set[str]:
    """Kinds of KubeRay; where even that may not be asked, it is taken to be there."""
    try:
        return connection.kinds(RAY_SERVICES.group, RAY_SERVICES.version)
    except KubeError:
        return {RAY_SERVICES.plural}


def take(connection: Connection, namespace: str, release: str | None, with_load: bool = False) -> Snapshot:
    """Looks once. Only the RayService itself has to be visible."""
    service = find(connection, namespace, release)
    looking = _Looking()
    clusters = _ray_clusters(connection, service, looking)
    service = objects.beside(service, clusters)
    raw = looking.maybe(
        lambda: (
            connection.find(PODS, namespace, labels=f"{objects.CLUSTER_LABEL} in ({','.join(_clusters(service))})")
            if _clusters(service)
            else []
        )
    )
    pods = None if raw is None else tuple(sorted((objects.pod(item) for item in raw), key=lambda pod: pod.name))
    now = time.time()
    warnings = _warnings(connection, service, looking, now) if service.pending is not None else ()
    load = _load(connection, service, pods, looking) if with_load and pods else None
    spec = _spec_of(service.active, clusters) if service.strategy == "None" else None
    outdated = spec is not None and not specs.same_cluster(service.cluster_config, spec)
    return Snapshot(
        at=now,
        context=connection.context,
        service=service,
        pods=pods,
        upgrade=upgrade.read(service, pods or (), warnings, now, outdated),
        load=load,
        missing=tuple(sorted(looking.missing)),
        unread=tuple(looking.unread),
    )


def active_spec(connection: Connection, service: objects.Service) -> objects.Object | None:
    """What the cluster that serves was made from."""
    if service.active is None:
        return None
    return _spec_of(service.active, [connection.get(RAY_CLUSTERS, service.namespace, service.active.cluster)])


def _spec_of(side: objects.Side | None, clusters: Sequence[objects.Object]) -> objects.Object | None:
    for cluster in clusters:
        spec = cluster.get("spec")
        if side is not None and cluster["metadata"]["name"] == side.cluster and isinstance(spec, dict):
            return spec
    return None


def _ray_clusters(connection: Connection, service: objects.Service, looking: _Looking) -> list[objects.Object]:
    """Those that are there: KubeRay names one before it makes it."""

    def one(name: str) -> list[objects.Object]:
        try:
            return [connection.get(RAY_CLUSTERS, service.namespace, name)]
        except Missing:
            return []

    found: list[objects.Object] = []
    for name in _clusters(service):
        found += looking.maybe(lambda name=name: one(name)) or []  # type: ignore[misc]
    return found


class _Looking:
    """Notes what may not be seen, and goes on."""

    def __init__(self) -> None:
        self.missing: set[Right] = set()
        self.unread: list[str] = []

    def maybe(self, call: Callable[[], T]) -> T | None:
        try:
            return call()
        except NotAllowed as error:
            self.missing.add(error.right)
        except KubeError as error:
            self.unread.append(error.message)
        return None


def _clusters(service: objects.Service) -> list[str]:
    return [side.cluster for side in (service.active, service.pending) if side is not None]


def _warnings(connection: Connection, service: objects.Service, looking: _Looking, now: float) -> tuple[str, ...]:
    """Why the operator could not make pods of the cluster that comes up, each reason once, as of the last minutes."""
    assert service.pending is not None
    fields = f"involvedObject.name={service.pending.cluster},type=Warning"
    found = looking.maybe(lambda: connection.find(EVENTS, service.namespace, fields=fields)) or []
    told: dict[str, None] = {}
    for event in found:
        last = objects.timestamp(event.get("lastTimestamp")) or objects.timestamp(event.get("eventTime"))
        if event.get("reason") in CANNOT_MAKE and (last is None or now - last < RECENT_S):
            told.setdefault(str(event.get("message") or event.get("reason")).strip())
    return tuple(told)


def _load(
    connection: Connection, service: objects.Service, pods: tuple[objects.Pod, ...] | None, looking: _Looking
) -> scrape.Load | None:
    """Through the API server's proxy, so that no port has to be forwarded. Pods that do not answer are left out."""
    running = [pod for pod in pods or () if pod.phase == "Running" and not pod.deleting]
    silent: dict[str, str] = {}

    def one(pod: objects.Pod) -> tuple[str, str] | None:
        try:
            text = connection.text(PODS, service.namespace, f"{pod.name}:{pod.metrics_port}", "proxy", "metrics")
        except NotAllowed as error:
            looking.missing.add(error.right)
        except KubeError as error:
            silent[pod.name] = error.message
        else:
            return pod.name, text
        return None

    with ThreadPoolExecutor(8) as workers:
        read = [told for told in workers.map(one, running) if told is not None]
    if silent:
        names = ", ".join(sorted(silent))
        looking.unread.append(
            f"no metrics of {names}: {silent[min(silent)]}. Do they run Ray yet, and does networkPolicy.monitoring let "
            "the API server in (docs/operators/kube.md)?"
        )
    return scrape.load(read) if read else None

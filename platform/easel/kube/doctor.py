"""Looks at everything an Easel in a cluster rests on, and has it judged.

Owns: which calls are made for `checks`, side by side, and what becomes of those that are refused. Refuses to know: what
is right or wrong.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import Any, TypeVar

from easel.kube import checks, objects, snapshot
from easel.kube.checks import Finding
from easel.kube.connection import Connection
from easel.kube.failures import KubeError, Missing, NotAllowed
from easel.kube.resources import (
    CLAIMS,
    DEPLOYMENTS,
    ENDPOINT_SLICES,
    GATEWAY_CLASSES,
    HTTP_ROUTES,
    NAMESPACES,
    NODES,
    POD_MONITORS,
    PODS,
    QUOTAS,
    RAY_CLUSTERS,
    RAY_SERVICES,
    STORAGE_CLASSES,
    Resource,
)
from easel.kube.rights import Right

T = TypeVar("T")

OPERATOR = "app.kubernetes.io/name in (kuberay-operator,kuberay)"
"""KubeRay's chart writes the first, its kustomization the second, also on what is not the operator."""
KUBERAY_VERSION = "ray.io/kuberay-version"
"""Annotation of a RayCluster: the operator that made it."""
RESOLVE_S = 3.0


@dataclass(frozen=True)
class Report:
    findings: tuple[Finding, ...]
    missing: tuple[Right, ...]

    @property
    def worst(self) -> checks.Level:
        order: tuple[checks.Level, ...] = ("error", "warning", "unknown", "note", "ok")
        return next((level for level in order if any(f.level == level for f in self.findings)), "ok")


def examine(
    connection: Connection,
    namespace: str,
    release: str | None,
    resolve: Callable[[str], str | None] | None = None,
) -> Report:
    """Every area. Raises only where the API server cannot be talked to at all."""
    version = connection.version()
    with ThreadPoolExecutor(8) as pool:
        look = _Look(connection, pool)
        found = look.up(lambda: snapshot.find(connection, namespace, release))
        groups = {name: look.up(lambda name=name: _kinds(connection, name)) for name in _GROUPS}  # type: ignore[misc]
        space = look.up(lambda: connection.get(NAMESPACES, None, namespace))
        operators = look.all_of(DEPLOYMENTS, None, OPERATOR)
        nodes, pods = look.all_of(NODES), look.all_of(PODS, None)
        classes, claims = look.all_of(STORAGE_CLASSES), look.all_of(CLAIMS, namespace, _BY_PART)
        quota, slices = look.all_of(QUOTAS, namespace), look.all_of(ENDPOINT_SLICES, "kube-system", _DNS)
        service, why = _service(found)
        gateway_kinds, monitor_kinds = look.value(groups[_GATEWAY]) or set(), look.value(groups[_MONITORING]) or set()
        gateways = look.all_of(GATEWAY_CLASSES) if "gatewayclasses" in gateway_kinds else None
        routes = look.all_of(HTTP_ROUTES, namespace) if "httproutes" in gateway_kinds else None
        monitors = look.all_of(POD_MONITORS, namespace, _BY_PART) if "podmonitors" in monitor_kinds else None
        seen = look.value(operators)
        seen = None if seen is None else [item for item in seen if checks.is_operator(item)]
        hint = _hint(look, namespace) if not seen else ""
        one, every = gpus_wanted(service)
        my_routes = look.value(routes) if routes is not None else None
        names = sorted(
            {str(name) for route in my_routes or [] for name in (route.get("spec") or {}).get("hostnames") or []}
        )
        findings = [
            *checks.kubernetes_version(version),
            *checks.namespace(namespace, look.value(space), isinstance(space.exception(), Missing)),
            *checks.custom_resources(look.value(groups[RAY_SERVICES.group]) or set(), seen, hint),
            *checks.gpus(look.value(nodes), look.value(pods), one),
            *checks.storage(look.value(classes), look.value(claims)),
            *checks.quotas(look.value(quota), every),
            *checks.monitoring(monitor_kinds, look.value(monitors) if monitors is not None else None),
            *checks.dns(look.value(slices)),
            *checks.host_names(_resolved(names, resolve or address_of)),
            *checks.gateway(
                gateway_kinds,
                look.value(gateways) if gateways is not None else None,
                my_routes,
                service is not None and service.incremental,
            ),
            *checks.release(service, why),
        ]
    findings += [Finding("cluster", "unknown", message) for message in look.unread]
    return Report(tuple(findings), tuple(sorted(look.missing)))


_GATEWAY, _MONITORING = GATEWAY_CLASSES.group, POD_MONITORS.group
_GROUPS = (RAY_SERVICES.group, _GATEWAY, _MONITORING)
_BY_PART = "app.kubernetes.io/part-of=easel"
_DNS = "kubernetes.io/service-name=kube-dns"


def gpus_wanted(service: objects.Service | None) -> tuple[int, int]:
    """GPUs of the largest pod, and of all pods at the most replicas that the groups may have."""
    if service is None:
        return 0, 0
    largest = every = 0
    groups = service.cluster_config.get("workerGroupSpecs")
    for group in groups if isinstance(groups, list) else []:
        one = objects.pod_gpus(group.get("template") or {})
        count = max(int(group.get(key) or 0) for key in ("replicas", "minReplicas"))
        largest, every = max(largest, one), every + one * max(count, 1)
    return largest, every


def address_of(name: str) -> str | None:
    """The first address that this machine's resolver gives, or None."""
    try:
        return str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])
    except (OSError, UnicodeError):
        return None


class _Look:
    """Calls under way, and what was learnt of rights by them."""

    def __init__(self, connection: Connection, pool: ThreadPoolExecutor) -> None:
        self._connection, self._pool = connection, pool
        self.missing: set[Right] = set()
        self.unread: list[str] = []

    def up(self, call: Callable[[], T]) -> Future[T]:
        return self._pool.submit(call)

    def all_of(
        self, resource: Resource, namespace: str | None = None, labels: str | None = None
    ) -> Future[list[dict[str, Any]]]:
        return self.up(lambda: self._connection.find(resource, namespace, labels=labels))

    def value(self, future: Future[T]) -> T | None:
        """None where it may not be seen, or is not there."""
        try:
            return future.result()
        except NotAllowed as error:
            self.missing.add(error.right)
        except Missing:
            pass
        except KubeError as error:
            if error.message not in self.unread:
                self.unread.append(error.message)
        return None


def _service(future: Future[objects.Service]) -> tuple[objects.Service | None, str]:
    try:
        return future.result(), ""
    except NotAllowed as error:
        return None, f"the release cannot be seen: it takes {error.right}"
    except KubeError as error:
        return None, error.message


def _kinds(connection: Connection, group: str) -> set[str]:
    """Of all versions that the server has of the group."""
    versions = connection.groups().get(group, [])
    return {kind for version in versions for kind in connection.kinds(group, version)}


def _hint(look: _Look, namespace: str) -> str:
    """The operator's version by what it wrote on a cluster that it made, where it cannot be seen itself."""
    clusters = look.value(look.all_of(RAY_CLUSTERS, namespace)) or []
    for cluster in clusters:
        version = ((cluster.get("metadata") or {}).get("annotations") or {}).get(KUBERAY_VERSION)
        if version:
            return str(version)
    return ""


def _resolved(names: Sequence[str], resolve: Callable[[str], str | None]) -> dict[str, str | None]:
    """A resolver that does not answer is one that has no answer."""
    pool = ThreadPoolExecutor(max(len(names), 1))
    asked = {name: pool.submit(resolve, name.removeprefix("*.")) for name in names}
    told: dict[str, str | None] = {}
    for name, future in asked.items():
        try:
            told[name] = future.result(RESOLVE_S)
        except FutureTimeout:
            told[name] = None
    pool.shutdown(wait=False, cancel_futures=True)
    return told

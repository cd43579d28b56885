"""What `doctor` says about a cluster: each finding with its fix.

Owns: the judgement of each area, on what was collected. Refuses to know: how it was collected (`doctor`). A check gets
None for what could not be seen, and then says that, never that all is well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from easel.kube.objects import GPU, Object, Service, is_gpu, pod_gpus, quantity

Level = Literal["ok", "note", "warning", "error", "unknown"]

OLDEST_KUBERNETES = (1, 30)
OLDEST_KUBERAY = (1, 6)
TRIED_KUBERAY = (1, 7)
OPERATOR_LABEL, OPERATOR_NAME = "app.kubernetes.io/name", "kuberay-operator"
OLDEST_DRIVER = 580
"""Of NVIDIA, in major versions: what CUDA 13 asks for, which Easel's kernels were measured with."""
OLDEST_RAY_FOR_TOKENS = (2, 52)
LONGEST_NAME = 47


@dataclass(frozen=True)
class Finding:
    area: str
    level: Level
    what: str
    fix: str = ""


def kubernetes_version(version: str) -> Iterator[Finding]:
    found = numbers(version)
    if not found:
        yield Finding("cluster", "unknown", f"the API server's version is unclear: {version!r}")
    elif found[:2] < OLDEST_KUBERNETES:
        wanted = ".".join(map(str, OLDEST_KUBERNETES))
        yield Finding("cluster", "error", f"Kubernetes {version} is older than {wanted}", "upgrade the control plane")
    else:
        yield Finding("cluster", "ok", f"Kubernetes {version}")


def namespace(name: str, item: Object | None, missing: bool) -> Iterator[Finding]:
    if missing:
        fix = f"kubectl create namespace {name}, or name another with -n"
        yield Finding("namespace", "error", f"there is no namespace {name}", fix)
        return
    if item is None:
        yield Finding("namespace", "unknown", f"namespace {name} cannot be seen")
        return
    level = str(_at(item, "metadata", "labels").get("pod-security.kubernetes.io/enforce", ""))
    if level == "restricted":
        yield Finding("namespace", "ok", f"{name} enforces pod security `restricted`, which the chart keeps to")
    else:
        fix = f"kubectl label namespace {name} pod-security.kubernetes.io/enforce=restricted"
        spoken = f"enforces `{level}`" if level else "enforces no pod security standard"
        yield Finding("namespace", "note", f"{name} {spoken}; the chart keeps to `restricted`", fix)


def custom_resources(kinds: set[str], operators: Sequence[Object] | None, hint: str) -> Iterator[Finding]:
    """KubeRay's kinds, and the operator that acts on them. `hint`: a version that a cluster's annotation told."""
    install = (
        "install KubeRay 1.6 or newer, best 1.7, from its own chart, kuberay-operator; it is not part of Easel's "
        "(docs/operators/install.md)"
    )
    absent = {"rayservices", "rayclusters"} - kinds
    if absent:
        yield Finding("KubeRay", "error", f"the API server does not know {' and '.join(sorted(absent))}", install)
        return
    yield Finding("KubeRay", "ok", "RayService and RayCluster are known (ray.io/v1)")
    if operators is None:
        if hint:
            yield from _operator_version(hint, "as it marked a cluster that it made")
        else:
            yield Finding("KubeRay", "unknown", "whether the operator runs cannot be seen")
        return
    if not operators and hint:
        yield from _operator_version(hint, "as it marked a cluster that it made")
        what = f"no deployment is labelled {OPERATOR_LABEL}={OPERATOR_NAME}, as KubeRay's own chart does"
        fix = "if the operator runs under another name, let networkPolicy.operator find its pods; else install it"
        yield Finding("KubeRay", "warning", what, fix)
    elif not operators:
        what = f"no deployment is labelled {OPERATOR_LABEL}={OPERATOR_NAME}: nobody acts on a RayService"
        yield Finding("KubeRay", "error", what, install)
    for operator in operators:
        name = f"{_text(operator, 'metadata', 'namespace')}/{_text(operator, 'metadata', 'name')}"
        ready = int(_at(operator, "status").get("availableReplicas") or 0)
        if ready == 0:
            fix = f"kubectl -n {_text(operator, 'metadata', 'namespace')} describe deployment {name.split('/')[1]}"
            yield Finding("KubeRay", "error", f"the operator {name} has no replica that is ready", fix)
        yield from _operator_version(_image_tag(operator), name)
        yield from _operator_pods(operator, name)
    if len(operators) > 1:
        fix = "one operator for a namespace: give each watchNamespace, or remove one"
        yield Finding("KubeRay", "warning", f"{len(operators)} operators run", fix)


def is_operator(deployment: Object) -> bool:
    """KubeRay's kustomization has one name for all of its parts, and tells them apart by component."""
    component = _label(deployment, "app.kubernetes.io/component")
    return _label(deployment, OPERATOR_LABEL) == OPERATOR_NAME or component in ("", OPERATOR_NAME)


def _operator_pods(operator: Object, name: str) -> Iterator[Finding]:
    labels = _at(operator, "spec", "template", "metadata", "labels")
    if labels and labels.get(OPERATOR_LABEL) != OPERATOR_NAME:
        what = (
            f"{name} labels its pods {OPERATOR_LABEL}={labels.get(OPERATOR_LABEL)}: the chart's policy keeps them out"
        )
        fix = "name these labels in networkPolicy.operator, or nothing is ever deployed on the head"
        yield Finding("KubeRay", "warning", what, fix)


def _operator_version(version: str, source: str) -> Iterator[Finding]:
    found = numbers(version)
    if not found:
        yield Finding("KubeRay", "unknown", f"the operator's version is unclear: image tag {version!r} ({source})")
    elif found[:2] < OLDEST_KUBERAY:
        wanted = ".".join(map(str, OLDEST_KUBERAY))
        fix = "upgrade it, the CRDs first (kubectl apply --server-side): docs/operators/upgrade.md"
        yield Finding("KubeRay", "error", f"the operator is {version}, older than {wanted} ({source})", fix)
    elif found[:2] < TRIED_KUBERAY:
        fix = "upgrade it when you can: an incremental upgrade that is undone goes back in steps only since 1.7"
        yield Finding("KubeRay", "note", f"the operator is {version} ({source})", fix)
    else:
        yield Finding("KubeRay", "ok", f"the operator is {version} ({source})")


def gpus(nodes: Sequence[Object] | None, pods: Sequence[Object] | None, wanted: int) -> Iterator[Finding]:
    """GPU nodes, drivers, and whether there is room. `wanted`: GPUs of one pod of the release; 0 where it has none."""
    if nodes is None:
        yield Finding("GPUs", "unknown", "nodes cannot be seen")
        return
    found = [node for node in nodes if node_gpus(node)]
    if not found:
        level: Level = "error" if wanted else "note"
        fix = f"no node offers {GPU}: install NVIDIA's device plugin or GPU operator, or add GPU nodes"
        yield Finding("GPUs", level, "no node has a GPU that pods can ask for", fix)
        return
    used: dict[str, int] = {}
    for pod in pods or ():
        if _text(pod, "status", "phase") in ("Pending", "Running"):
            used[_text(pod, "spec", "nodeName")] = used.get(_text(pod, "spec", "nodeName"), 0) + pod_gpus(pod)
    total = free = largest = 0
    for node in found:
        name, count = _text(node, "metadata", "name"), node_gpus(node)
        usable = _usable(node)
        left = count - used.get(name, 0) if usable else 0
        total, free, largest = total + count, free + left, max(largest, left)
        if not usable:
            yield Finding(
                "GPUs", "warning", f"{name} takes no pods (not ready, or cordoned)", f"kubectl uncordon {name}"
            )
        yield from _driver(node)
    kinds = sorted({_label(node, "nvidia.com/gpu.product") or "unnamed" for node in found})
    free_of = f", {free} free, at most {largest} on one node" if pods is not None else ""
    yield Finding("GPUs", "ok", f"{total} GPUs on {len(found)} nodes ({', '.join(kinds)}){free_of}")
    if pods is not None and wanted and largest < wanted:
        yield Finding(
            "GPUs",
            "warning",
            f"no node has {wanted} free GPUs, which one more pod asks for: an upgrade to a new cluster would stall",
            "add nodes or free GPUs before you change the cluster, or set upgradeStrategy None for a planned pause",
        )
    if pods is None:
        yield Finding("GPUs", "unknown", "how many are free cannot be seen")


def _driver(node: Object) -> Iterator[Finding]:
    name = _text(node, "metadata", "name")
    version = _label(node, "nvidia.com/cuda.driver-version.full") or _label(node, "nvidia.com/cuda.driver.major")
    if not version:
        fix = "run NVIDIA's gpu-feature-discovery (part of the GPU operator), which labels nodes with it"
        yield Finding("GPUs", "note", f"{name} does not say which driver it has", fix)
    elif numbers(version)[:1] < (OLDEST_DRIVER,):
        fix = f"upgrade NVIDIA's driver to {OLDEST_DRIVER} or newer"
        yield Finding("GPUs", "error", f"{name} has driver {version}: too old for CUDA 13", fix)


def storage(classes: Sequence[Object] | None, claims: Sequence[Object] | None) -> Iterator[Finding]:
    if classes is None:
        yield Finding("storage", "unknown", "storage classes cannot be seen")
    else:
        default = [c for c in classes if _annotation(c, "storageclass.kubernetes.io/is-default-class") == "true"]
        names = ", ".join(sorted(_text(c, "metadata", "name") for c in classes)) or "none"
        if default:
            yield Finding(
                "storage", "ok", f"storage classes: {names}; the default is {_text(default[0], 'metadata', 'name')}"
            )
        else:
            fix = "name a class in the values of the model cache, or use a cache on the nodes"
            yield Finding("storage", "note", f"no default storage class (there are: {names})", fix)
    if claims is None:
        yield Finding("storage", "unknown", "volume claims cannot be seen")
    for claim in claims or ():
        name, phase = _text(claim, "metadata", "name"), _text(claim, "status", "phase")
        modes = [str(mode) for mode in _list(claim, "spec", "accessModes")]
        if phase != "Bound":
            fix = f"kubectl describe pvc {name}: the class may not exist, or wait for a first pod"
            yield Finding("storage", "warning", f"claim {name} is {phase or 'without a phase'}", fix)
        if not {"ReadWriteMany", "ReadOnlyMany"} & set(modes):
            yield Finding(
                "storage",
                "warning",
                f"claim {name} is {', '.join(modes)}: one node at a time",
                "an upgrade mounts the model cache on two clusters at once: use ReadWriteMany, or a cache on the nodes",
            )


def quotas(items: Sequence[Object] | None, wanted: int) -> Iterator[Finding]:
    """`wanted`: GPUs of the whole release. A new cluster needs as many once more."""
    if items is None:
        yield Finding("quota", "unknown", "quotas cannot be seen")
        return
    if not items:
        yield Finding("quota", "ok", "the namespace has no quota")
    for item in items:
        name = _text(item, "metadata", "name")
        hard, used = _at(item, "status", "hard"), _at(item, "status", "used")
        full = [key for key, limit in hard.items() if quantity(used.get(key)) >= quantity(limit) > 0]
        if full:
            spoken = ", ".join(f"{key} {used.get(key)} of {hard[key]}" for key in sorted(full))
            yield Finding("quota", "warning", f"{name} is used up: {spoken}", "raise it: KubeRay cannot make more pods")
        key = f"requests.{GPU}"
        left = quantity(hard.get(key)) - quantity(used.get(key)) if key in hard else None
        if left is not None and wanted and left < wanted:
            yield Finding(
                "quota",
                "warning",
                f"{name} leaves {left:g} GPUs; a new cluster beside the one that serves needs {wanted}",
                "raise it for upgrades, or choose upgradeStrategy None or NewClusterWithIncrementalUpgrade",
            )
        if not full and (left is None or not wanted or left >= wanted):
            yield Finding("quota", "ok", f"{name} leaves room")


def monitoring(kinds: set[str], monitors: Sequence[Object] | None) -> Iterator[Finding]:
    if "podmonitors" not in kinds:
        fix = "install the Prometheus operator, or scrape the ports named in docs/metrics.md yourself"
        yield Finding("monitoring", "note", "PodMonitor and PrometheusRule are not known", fix)
    elif monitors is None:
        yield Finding("monitoring", "unknown", "PodMonitors cannot be seen")
    elif not monitors:
        fix = "let the chart make them: its monitoring values are null (automatic), true or false"
        yield Finding("monitoring", "warning", "nothing scrapes Easel: no PodMonitor of its labels", fix)
    else:
        names = ", ".join(sorted(_text(item, "metadata", "name") for item in monitors))
        yield Finding("monitoring", "ok", f"PodMonitors: {names}")


def dns(slices: Sequence[Object] | None) -> Iterator[Finding]:
    """Whether anybody answers names inside the cluster: Ray's workers find their head by one."""
    if slices is None:
        yield Finding("DNS", "unknown", "who answers DNS in the cluster cannot be seen")
        return
    if not slices:
        what = "there is no Service kube-dns in kube-system, where the chart's network policies look for DNS"
        fix = "where another answers, as on OpenShift and RKE2, name its namespace in networkPolicy.dns"
        yield Finding("DNS", "warning", what, fix)
        return
    ready = sum(
        1 for item in slices for end in _list(item, "endpoints") if _at(end, "conditions").get("ready") is not False
    )
    if ready == 0:
        fix = "kubectl -n kube-system get pods -l k8s-app=kube-dns: Ray's workers cannot find their head without it"
        yield Finding("DNS", "error", "no ready pod is behind kube-system/kube-dns", fix)
    else:
        yield Finding("DNS", "ok", f"{ready} pods answer DNS")


def host_names(resolved: Mapping[str, str | None]) -> Iterator[Finding]:
    """Names of routes and what they resolve to from here; None: they do not."""
    for name, address in sorted(resolved.items()):
        if address is None:
            fix = "add a DNS record for the gateway's address (kubectl get gateway), or wait for external-dns"
            yield Finding("DNS", "warning", f"{name} does not resolve from this machine", fix)
        else:
            yield Finding("DNS", "ok", f"{name} is {address}, as this machine sees it")


def gateway(
    kinds: set[str], classes: Sequence[Object] | None, routes: Sequence[Object] | None, incremental: bool
) -> Iterator[Finding]:
    if "httproutes" not in kinds:
        level: Level = "error" if incremental else "note"
        fix = "install the Gateway API and an implementation, or use the chart's Ingress"
        yield Finding("gateway", level, "HTTPRoute is not known", fix)
        return
    if classes is None:
        yield Finding("gateway", "unknown", "gateway classes cannot be seen")
    elif not [item for item in classes if _holds(_at(item, "status"), "Accepted")]:
        fix = "install an implementation of the Gateway API: the kinds alone route nothing"
        yield Finding("gateway", "warning", "no GatewayClass is accepted by a controller", fix)
    else:
        names = ", ".join(sorted(_text(item, "metadata", "name") for item in classes))
        yield Finding("gateway", "ok", f"gateway classes: {names}")
    if routes is None:
        yield Finding("gateway", "unknown", "HTTPRoutes cannot be seen")
    for route in routes or ():
        name, parents = _text(route, "metadata", "name"), _list(route, "status", "parents")
        if not parents:
            fix = "does parentRefs name a gateway that exists, and does its listener allow this namespace?"
            yield Finding("gateway", "warning", f"HTTPRoute {name}: no gateway has taken it", fix)
        for parent in parents:
            for kind in ("Accepted", "ResolvedRefs"):
                if not _holds(parent, kind):
                    message = _message(parent, kind)
                    yield Finding("gateway", "error", f"HTTPRoute {name}: {kind} is not true", message)
        rules = _list(route, "spec", "rules")
        if rules and not all(_at(rule, "timeouts").get("request") == "0s" for rule in rules):
            yield Finding(
                "gateway",
                "warning",
                f"HTTPRoute {name} leaves the time of a request to the gateway: Envoy cuts a stream after 15 s",
                'set timeouts.request and timeouts.backendRequest to "0s" (docs/proxies.md); a route that KubeRay owns '
                "cannot have them, so put a gateway of yours before it",
            )


def release(service: Service | None, why: str) -> Iterator[Finding]:
    """What the operator's validation and Ray want of the RayService itself."""
    if service is None:
        yield Finding("release", "note", why, "install the chart, or name the release")
        return
    ready = service.condition("Ready")
    if ready is not None and ready.true:
        yield Finding("release", "ok", f"{service.name} is ready: {service.endpoints} pods behind the service")
    else:
        told = f": {ready.message}" if ready is not None and ready.message else ""
        fix = f"easel kube rollout status {service.release or service.name}"
        yield Finding("release", "error", f"{service.name} is not ready{told}", fix)
    if len(service.name) > LONGEST_NAME:
        yield Finding(
            "release", "error", f"the name has over {LONGEST_NAME} characters", "set a shorter fullnameOverride"
        )
    mode = _at(service.cluster_config, "authOptions").get("mode")
    if mode != "token":
        yield Finding(
            "release",
            "warning",
            "Ray asks for no token: whoever reaches its ports runs code as Easel",
            "set rayClusterConfig.authOptions.mode to token; the chart does by default",
        )
    elif numbers(service.ray_version)[:2] < OLDEST_RAY_FOR_TOKENS:
        yield Finding("release", "error", f"Ray {service.ray_version} knows no tokens", "use Ray 2.52 or newer")


def numbers(version: str) -> tuple[int, ...]:
    """Of `v1.33.2-gke.1` or `580.65.06`: the leading numbers. Empty where there are none."""
    found = re.match(r"v?(\d+(?:\.\d+)*)", version.strip())
    return tuple(int(part) for part in found[1].split(".")) if found else ()


def node_gpus(node: Object) -> int:
    allocatable = _at(node, "status", "allocatable")
    return int(sum(quantity(value) for name, value in allocatable.items() if is_gpu(str(name))))


def _usable(node: Object) -> bool:
    return _holds(_at(node, "status"), "Ready") and not _at(node, "spec").get("unschedulable")


def _image_tag(deployment: Object) -> str:
    containers = _list(deployment, "spec", "template", "spec", "containers")
    image = str(containers[0].get("image", "")) if containers else ""
    tag = image.split("@")[0].rsplit("/", 1)[-1]
    return tag.split(":", 1)[1] if ":" in tag else ""


def _holds(item: Object, kind: str) -> bool:
    return any(c.get("type") == kind and c.get("status") == "True" for c in _list(item, "conditions"))


def _message(item: Object, kind: str) -> str:
    return next((str(c.get("message", "")) for c in _list(item, "conditions") if c.get("type") == kind), "")


def _label(item: Object, name: str) -> str:
    return str(_at(item, "metadata", "labels").get(name, ""))


def _annotation(item: Object, name: str) -> str:
    return str(_at(item, "metadata", "annotations").get(name, ""))


def _at(item: Object, *path: str) -> Object:
    for key in path:
        value = item.get(key)
        item = value if isinstance(value, Mapping) else {}
    return item


def _text(item: Object, *path: str) -> str:
    value = _at(item, *path[:-1]).get(path[-1])
    return "" if value is None else str(value)


def _list(item: Object, *path: str) -> list[Object]:
    value = _at(item, *path[:-1]).get(path[-1])
    return list(value) if isinstance(value, list) else []

"""What KubeRay 1.7 refuses of a RayService, check by check, read from its validation of names, clusters and services.

An API server admits all of these; the operator then says so in an event and makes no pod. Owns: that list, for rendered
objects. Refuses to know: the chart's own guards, which are held against it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

Object = dict[str, Any]

LONGEST_NAME = 47
CUT_ACCOUNT = 50
"""Characters of an account's name that KubeRay uses, from the end."""
OLDEST_FOR_TOKENS = (2, 52, 0)
RESOURCES = ("num-cpus", "num-gpus", "memory", "resources")
DURATION = re.compile(r"^([0-9]+(h|m|s))+$")


def refusals(service: Object) -> list[str]:
    """Sentences, one for each thing that is wrong."""
    spec = service["spec"]
    return [*_name(service["metadata"]), *_cluster(spec["rayClusterConfig"]), *_upgrade(spec)]


def _name(metadata: Object) -> Iterator[str]:
    name = metadata["name"]
    if len(name) > LONGEST_NAME:
        yield f"{name} is too long"
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield f"{name} is no DNS-1035 label"
    timeout = metadata.get("annotations", {}).get("ray.io/initializing-timeout")
    if timeout is not None and (not DURATION.match(timeout) or not re.search("[1-9]", timeout)):
        yield f"{timeout} is no positive duration"


def _cluster(cluster: Object) -> Iterator[str]:
    head, groups = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    for group in (head, *groups):
        containers, params = group["template"]["spec"]["containers"], group["rayStartParams"]
        if not containers or "ray-" not in containers[0]["name"]:
            yield "Ray's container is not the first"
        if group.get("resources") and any(params.get(key) for key in RESOURCES):
            yield "resources stand in two places"
        if "labels" in params:
            yield "labels stand in rayStartParams"
        for value in params.values():
            if not isinstance(value, str):
                yield f"{value} in rayStartParams is no text"
    if head.get("headService", {}).get("metadata", {}).get("name"):
        yield "the head's Service has a name of its own"
    yield from _redis(cluster, head)
    yield from _autoscaler(cluster, head, groups)
    if cluster.get("authOptions", {}).get("mode") == "token":
        version = tuple(int(part) for part in cluster["rayVersion"].split("."))
        if version < OLDEST_FOR_TOKENS:
            yield f"Ray {version} knows no tokens"
    for port in ("serve", "dashboard", "metrics", "client", "gcs-server"):
        if port not in {item["name"] for item in head["template"]["spec"]["containers"][0]["ports"]}:
            yield f"the head has no port {port}"


def _redis(cluster: Object, head: Object) -> Iterator[str]:
    names = {item["name"] for item in head["template"]["spec"]["containers"][0]["env"]}
    annotations = head["template"].get("metadata", {}).get("annotations", {})
    for name in ("RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME"):
        if name in names:
            yield f"{name} is set beside gcsFaultToleranceOptions"
    for name in ("redis-username", "redis-password"):
        if head["rayStartParams"].get(name):
            yield f"{name} is set beside gcsFaultToleranceOptions"
    for name in ("ray.io/ft-enabled", "ray.io/external-storage-namespace"):
        if name in annotations:
            yield f"{name} is set beside gcsFaultToleranceOptions"
    options = cluster.get("gcsFaultToleranceOptions", {})
    if options and not options.get("redisAddress"):
        yield "fault tolerance without an address"
    if {"storage", "backend"} & set(options):
        yield "fields of the other backend"


def _autoscaler(cluster: Object, head: Object, groups: list[Object]) -> Iterator[str]:
    on, options = cluster.get("enableInTreeAutoscaling"), cluster.get("autoscalerOptions", {})
    names = {item["name"] for item in head["template"]["spec"]["containers"][0]["env"]}
    if "RAY_enable_autoscaler_v2" in names:
        yield "the autoscaler's version stands in two places"
    for group in (head, *groups):
        if on and group["template"]["spec"].get("restartPolicy") not in (None, "Never"):
            yield "restartPolicy with autoscaler v2"
    account = head["template"]["spec"]["serviceAccountName"]
    if on and len(account) > CUT_ACCOUNT:
        yield f"{account} is cut, and the account that is left does not exist"
    for group in groups:
        least, most = group["minReplicas"], group["maxReplicas"]
        if not 0 <= least <= group.get("replicas", least) <= most:
            yield f"{group['groupName']}: {least} to {most}"
        if "idleTimeoutSeconds" in group and (not on or options.get("version") != "v2"):
            yield f"{group['groupName']}: idleTimeoutSeconds without autoscaler v2"
        if group.get("suspend") and on:
            yield f"{group['groupName']}: suspended under an autoscaler"
    if len({group["groupName"] for group in groups}) < len(groups):
        yield "two groups of one name"


def _upgrade(spec: Object) -> Iterator[str]:
    if spec.get("rayClusterDeletionDelaySeconds", 0) < 0:
        yield "a deletion delay below 0"
    strategy = spec["upgradeStrategy"]
    options = strategy.get("clusterUpgradeOptions")
    if strategy["type"] != "NewClusterWithIncrementalUpgrade":
        if options is not None:
            yield "options of an incremental upgrade without one"
        return
    if not spec["rayClusterConfig"].get("enableInTreeAutoscaling"):
        yield "an incremental upgrade without the autoscaler"
    if options is None or not options.get("gatewayClassName"):
        yield "an incremental upgrade without a class of gateway"
        return
    if not 0 <= options["stepSizePercent"] <= options["maxSurgePercent"] <= 100:
        yield f"steps of {options['stepSizePercent']} % with a surge of {options['maxSurgePercent']} %"
    if options["intervalSeconds"] <= 0:
        yield "no time between two steps"

"""When two specifications of a cluster are the same to KubeRay, and how the old one is written back.

KubeRay compares hashes of what it read into its own types. What comes back from the API server has been through them on
one side only: empty values are gone, quantities are written in another way. Owns: seeing through that. Refuses to know:
who asks.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from easel.kube.objects import Object, quantity

MUTED = ("replicas", "minReplicas", "maxReplicas")
"""Of a worker group: what KubeRay takes up without a new cluster, and autoscaling writes."""
QUANTITIES = ("limits", "requests")
"""Maps of quantities, wherever they are: `1000m` is `1`."""


def same_cluster(one: Object, other: Object) -> bool:
    """Whether KubeRay would keep the cluster."""
    return bool(_plain(_muted(one)) == _plain(_muted(other)))


def restored(wanted: Object, active: Object) -> dict[str, Any]:
    """The active cluster's specification, with the bounds and counts of the service's own worker groups."""
    back = copy.deepcopy(dict(active))
    mine = {group.get("groupName"): group for group in _groups(wanted)}
    for group in _groups(back):
        own = mine.get(group.get("groupName"), {})
        for key in MUTED:
            group.pop(key, None)
            if key in own:
                group[key] = own[key]
        _without_deletions(group)
    return back


def _muted(spec: Object) -> dict[str, Any]:
    left = copy.deepcopy(dict(spec))
    left.pop("upgradeStrategy", None)
    for group in _groups(left):
        for key in MUTED:
            group.pop(key, None)
        _without_deletions(group)
    return left


def _plain(value: Any) -> Any:
    """Without what is empty, which Go leaves out, and with quantities as numbers."""
    if isinstance(value, Mapping):
        kept = {key: _amounts(part) if key in QUANTITIES else _plain(part) for key, part in value.items()}
        if "sizeLimit" in kept:
            kept["sizeLimit"] = quantity(kept["sizeLimit"])
        return {key: part for key, part in kept.items() if part not in (None, "", False, 0, {}, [])}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return value


def _amounts(value: Any) -> Any:
    return {key: quantity(part) for key, part in value.items()} if isinstance(value, Mapping) else value


def _groups(spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    groups = spec.get("workerGroupSpecs")
    return [group for group in groups if isinstance(group, dict)] if isinstance(groups, list) else []


def _without_deletions(group: dict[str, Any]) -> None:
    """Pods that the autoscaler chose to delete are its own business."""
    strategy = group.get("scaleStrategy")
    if isinstance(strategy, dict):
        strategy.pop("workersToDelete", None)
        if not strategy:
            group.pop("scaleStrategy")

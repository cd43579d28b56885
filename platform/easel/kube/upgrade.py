"""What a RayService is in the middle of, what it waits for, and the way out where it will not get on by itself.

Two kinds of upgrade: a change of Serve's configuration is taken up in place, by the replicas that run; any other change
of the cluster's specification makes KubeRay start a second cluster, and send traffic there at once or in steps. Owns:
telling these apart, and a stalled one from a slow one. Refuses to know: who is asked for the objects, and when.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from easel.kube.objects import Pod, Service, Side, workers

Kind = Literal["none", "start", "in place", "new cluster", "incremental", "rollback"]
State = Literal["done", "running", "stalled", "failed", "suspended"]

UNSEEN_S = 60.0
"""Seconds after which an operator that has not seen a change is not just busy: it looks every two."""
UNSCHEDULABLE_S = 300.0
"""Seconds that a pod may wait for a node: a cluster autoscaler needs minutes to bring one."""
SERVING = ("RUNNING",)
BROKEN = ("DEPLOY_FAILED", "UNHEALTHY")
SETTLED = ("HEALTHY",)
SCALING = ("UPSCALING", "DOWNSCALING")
"""What the autoscaler does at any time: no upgrade, where the application runs."""

STALLED_NEW_CLUSTER = (
    "Make room: free GPUs or add nodes. The new cluster then comes up by itself, and takes over.",
    "Or go back: `easel kube rollout undo`. Applying the old spec alone does not end it: KubeRay 1.7 compares it with "
    "the waiting cluster only, and puts another waiting cluster in its place.",
    "The old cluster serves all the while. Where there is never room for two, choose upgradeStrategy "
    "NewClusterWithIncrementalUpgrade with a small maxSurgePercent, or None and a planned pause.",
)
STALLED_INCREMENTAL = (
    "Make room, or lower upgradeStrategy.clusterUpgradeOptions.maxSurgePercent: each step needs that much more.",
    "Or go back: `easel kube rollout undo`. Traffic returns to the old cluster in the same steps.",
)
IGNORED = ("you: with upgradeStrategy None, KubeRay makes no new cluster",)
NONE_STRATEGY = (
    "In a pause that you choose, delete the RayCluster: KubeRay makes it anew from the specification of now. Nobody is "
    "served until it is up.",
    "Or set upgradeStrategy to NewCluster where there is room for two.",
)
BROKEN_NEW = (
    "Read why: `easel kube logs --pending`. A corrected configuration is taken up at once; the old cluster serves "
    "meanwhile.",
    "Or go back: `easel kube rollout undo`.",
)
BROKEN_IN_PLACE = (
    "Read why: `easel kube logs`. Replicas of the old configuration go on where Serve could keep them.",
    "Go back with `easel kube rollout undo`; a restart of replicas is part of it where the change had one.",
)


@dataclass(frozen=True)
class Upgrade:
    kind: Kind
    state: State
    summary: str
    waits_for: tuple[str, ...] = ()
    escapes: tuple[str, ...] = ()
    since: float | None = None
    """Unix time since when it has been so, where the cluster says."""
    steps: tuple[tuple[str, int | None, int | None], ...] = field(default=())
    """Of an incremental one: cluster, its capacity and its traffic, in percent."""


def read(service: Service, pods: Sequence[Pod], events: Sequence[str], now: float, outdated: bool = False) -> Upgrade:
    """`pods` of both clusters. `events`: messages of warnings about clusters that cannot make their pods. `outdated`:
    the cluster that serves was made from another specification than the service has now."""
    ready, rollback = service.condition("Ready"), service.condition("RollbackInProgress")
    upgrading = service.condition("UpgradeInProgress")
    since = upgrading.since if upgrading else None
    if ready is not None and ready.reason == "ValidationFailed":
        return Upgrade(
            "none",
            "failed",
            f"KubeRay refuses the spec: {ready.message}",
            escapes=("Correct what it names and apply again; what ran before goes on running.",),
            since=ready.since,
        )
    if ready is not None and ready.reason == "InitializingTimeout":
        return Upgrade(
            "start",
            "failed",
            "It did not get ready in time (annotation ray.io/initializing-timeout), and KubeRay has given it up.",
            escapes=(
                "KubeRay does not try again: delete the RayService and install anew, with a longer timeout if the "
                f"model takes longer to load: kubectl -n {service.namespace} delete rayservice {service.name}",
            ),
            since=ready.since,
        )
    if service.observed_generation < service.generation:
        return _unseen(service, now)
    if service.suspended:
        return Upgrade("none", "suspended", "It is suspended: no cluster, nobody served.")
    if service.pending is not None and service.active is None:
        return _coming(service, service.pending, pods, events, now, "start", service.changed_at)
    if service.pending is not None and service.active is not None:
        if rollback is not None and rollback.true:
            return _rollback(service, service.active, service.pending, now, rollback.since)
        kind: Kind = "incremental" if service.incremental else "new cluster"
        return _coming(service, service.pending, pods, events, now, kind, since)
    if service.active is None:
        return Upgrade(
            "start",
            "running",
            "KubeRay has not begun with it.",
            ("the operator to name a cluster",),
            since=service.changed_at,
        )
    settled = _in_place(service, service.active, pods)
    if outdated and settled.state == "done" and service.strategy == "None":
        return Upgrade(
            "none", "stalled", f"{service.active.cluster} is not what was asked for.", IGNORED, NONE_STRATEGY
        )
    return settled


def _unseen(service: Service, now: float) -> Upgrade:
    waits = f"the operator to see generation {service.generation}; it has seen {service.observed_generation}"
    late = service.changed_at is not None and now - service.changed_at > UNSEEN_S
    return Upgrade(
        "none",
        "stalled" if late else "running",
        "The change has not been taken up.",
        (waits,),
        ("Is the operator alive? kubectl get deployments -A -l 'app.kubernetes.io/name in (kuberay-operator,kuberay)'",)
        if late
        else (),
        service.changed_at,
    )


def _in_place(service: Service, active: Side, pods: Sequence[Pod]) -> Upgrade:
    """One cluster only: what it serves is what there is, or becomes it."""
    broken = [_spoken(*told) for told in _told(active) if told[1] in BROKEN]
    settled = (*BROKEN, *SERVING, *SETTLED, *SCALING)
    moving = [_spoken(*told) for told in _told(active) if told[1] not in settled]
    stuck = list(_blocked(pods, active.cluster))
    if broken:
        return Upgrade(
            "in place", "failed", "Serve could not take up the configuration.", tuple(broken), BROKEN_IN_PLACE
        )
    if moving:
        return Upgrade("in place", "running", "Serve takes up the configuration.", (*moving, *stuck))
    if service.endpoints == 0:
        waits = stuck or ["a pod that answers /-/healthz of Serve's proxy"]
        return Upgrade("in place", "running", "Nothing is served: no pod is behind the service.", tuple(waits))
    return Upgrade("none", "done", f"{active.cluster} serves, {_count(service.endpoints, 'pod')} behind the service.")


def _coming(
    service: Service,
    side: Side,
    pods: Sequence[Pod],
    events: Sequence[str],
    now: float,
    kind: Kind,
    since: float | None,
) -> Upgrade:
    """A cluster that comes up: the first, or the one that takes over."""
    waits, stalled, failed = [], False, False
    mine = [pod for pod in pods if pod.cluster == side.cluster and not pod.deleting]
    waits += [f"{told} (KubeRay cannot make a pod)" for told in events]
    waits += [f"{side.failure} (KubeRay cannot make a pod)"] if side.failure and not events else []
    stalled |= bool(waits)
    for pod in mine:
        if pod.unschedulable:
            waits.append(f"a node for {pod.name}{_gpus(pod)}: {pod.unschedulable}")
            stalled |= pod.unschedulable_since is not None and now - pod.unschedulable_since > UNSCHEDULABLE_S
        elif pod.stuck:
            waits.append(f"{pod.name}, which cannot start: {pod.stuck}")
            failed |= not pod.stuck.startswith("ErrImagePull")
    heads = [pod.ready for pod in mine if pod.node_type == "head"]
    if not waits and not (any(heads) if heads else side.head_ready is True):
        waits.append(f"the head of {side.cluster}")
    ready, wanted = workers(side, pods)
    if not waits and ready < wanted:
        waits.append(f"workers of {side.cluster}: {ready} of {wanted} are ready")
    told = [_spoken(*one) for one in _told(side) if one[1] not in (*SERVING, *SETTLED)]
    failed |= any(one[1] in BROKEN for one in _told(side))
    waits += told
    if not waits and not side.applications:
        waits.append(f"Serve to start on {side.cluster}")
    if kind == "incremental" and service.active is not None:
        steps = tuple((s.cluster, s.target_capacity, s.traffic) for s in (service.active, side))
        moved, step_s = side.moved_at or since, max(3.0 * (service.interval_s or 0), UNSCHEDULABLE_S)
        waits = waits or [f"the next step: {side.cluster} has {side.traffic or 0} % of the traffic"]
        stalled |= moved is not None and now - moved > step_s
        state: State = "failed" if failed else "stalled" if stalled else "running"
        escapes: tuple[str, ...] = BROKEN_NEW if failed else STALLED_INCREMENTAL if stalled else ()
        summary = f"Traffic moves from {service.active.cluster} to {side.cluster}."
        return Upgrade(kind, state, summary, tuple(waits), escapes, since, steps)
    state = "failed" if failed else "stalled" if stalled else "running"
    if kind == "start":
        escapes = () if state == "running" else ("Nothing is served yet. `easel kube doctor` says what is missing.",)
        return Upgrade(
            kind,
            state,
            f"{side.cluster} is coming up.",
            tuple(waits or ["its pods behind the service"]),
            escapes,
            since,
        )
    old = service.active.cluster if service.active else "nothing"
    escapes = BROKEN_NEW if failed else STALLED_NEW_CLUSTER if stalled else ()
    summary = f"{side.cluster} is coming up; {old} serves until it is ready."
    return Upgrade(kind, state, summary, tuple(waits or ["traffic to be switched"]), escapes, since)


def _rollback(service: Service, active: Side, pending: Side, now: float, since: float | None) -> Upgrade:
    waits = f"traffic back on {active.cluster}: it has {100 if active.traffic is None else active.traffic} %"
    steps = tuple((s.cluster, s.target_capacity, s.traffic) for s in (active, pending))
    limit = max(3.0 * (service.interval_s or 0), UNSCHEDULABLE_S)
    moved = max((t for t in (active.moved_at, pending.moved_at, since) if t is not None), default=None)
    stalled = moved is not None and now - moved > limit
    return Upgrade(
        "rollback",
        "stalled" if stalled else "running",
        f"Going back to {active.cluster}.",
        (waits,),
        ("Look at the operator's log and the HTTPRoute: traffic has not moved for minutes.",) if stalled else (),
        since,
        steps,
    )


def _told(side: Side) -> Iterator[tuple[str, str, str]]:
    """Name, status and message of what is not one's neighbour's repetition: deployments, then applications."""
    for application in side.applications:
        yield f"application {application.name}", application.status, application.message
        for name, status, message in application.deployments:
            yield f"deployment {name}", status, message


def _blocked(pods: Sequence[Pod], cluster: str) -> Iterator[str]:
    for pod in pods:
        if pod.cluster != cluster or pod.deleting:
            continue
        if pod.unschedulable:
            yield f"a node for {pod.name}{_gpus(pod)}: {pod.unschedulable}"
        elif pod.stuck:
            yield f"{pod.name}, which cannot start: {pod.stuck}"


def _gpus(pod: Pod) -> str:
    return f" ({_count(pod.gpus, 'GPU')})" if pod.gpus else ""


def _spoken(name: str, status: str, message: str) -> str:
    first = message.strip().splitlines()[0] if message.strip() else ""
    return f"{name}: {status or 'no status yet'}" + (f": {first}" if first else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")

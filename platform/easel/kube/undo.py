"""Back to what ran before an upgrade.

Who wrote the change has to take it back: a Git repository its own, Helm its own by `helm rollback`; a RayService that
nobody owns gets the specification of the cluster that still serves. For a new cluster that waits for room that is not
enough: KubeRay 1.7 compares the specification with the waiting cluster alone, and puts another waiting one in its
place. So the waiting cluster is then taken out of the RayService's status; KubeRay finds that what serves is what is
asked for, and deletes the cluster that nobody names any more. Owns: which of these, and that it is only done where
nothing is lost.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from easel.kube import objects, snapshot
from easel.kube.connection import Connection
from easel.kube.failures import Conflict, KubeError
from easel.kube.objects import Object, Service
from easel.kube.resources import RAY_SERVICES
from easel.kube.specs import restored, same_cluster

GITOPS = {
    "argocd.argoproj.io/instance": "Argo CD",
    "argocd.argoproj.io/tracking-id": "Argo CD",
    "kustomize.toolkit.fluxcd.io/name": "Flux (kustomization)",
    "helm.toolkit.fluxcd.io/name": "Flux (Helm release)",
}
"""Labels or annotations by which a controller that follows a Git repository marks what it owns."""

HELM_RELEASE = "meta.helm.sh/release-name"
TRIES = 10


@dataclass(frozen=True)
class Plan:
    by: Literal["helm", "patch", "nothing", "refused"]
    says: tuple[str, ...]
    """What will happen, or why nothing can, in sentences."""
    command: tuple[str, ...] = ()
    operations: tuple[dict[str, Any], ...] = ()
    drops_pending: bool = False


def plan(
    service: Service,
    active_spec: Object | None,
    revision: int | None = None,
    helm_options: Sequence[str] = (),
) -> Plan:
    """`active_spec`: of the cluster that serves, where it could be read. `revision`: of Helm; None: the one before."""
    marks = {**service.labels, **service.annotations}
    for mark, controller in GITOPS.items():
        if mark in marks:
            return Plan(
                "refused",
                (
                    f"{service.name} is {controller}'s ({mark}: {marks[mark]}), which would put the change back at "
                    "once. Revert the commit; `easel kube rollout status` then follows.",
                ),
            )
    drops = drops_pending(service)
    dropped = (
        (f"The waiting cluster {service.pending.cluster} is taken out of the status, so that KubeRay deletes it.",)
        if drops and service.pending
        else ()
    )
    release = service.annotations.get(HELM_RELEASE)
    if release is not None:
        namespace = service.annotations.get("meta.helm.sh/release-namespace", service.namespace)
        wanted = () if revision is None else (str(revision),)
        command = ("helm", "rollback", release, *wanted, "--namespace", namespace, *helm_options)
        where = f"revision {revision}" if revision is not None else "the revision before"
        return Plan("helm", (f"Helm puts release {release} back to {where}.", *dropped), command, drops_pending=drops)
    if revision is not None:
        return Plan("refused", (f"{service.name} is not Helm's: there is no revision {revision} to go back to.",))
    if service.active is None or service.pending is None:
        return Plan(
            "nothing",
            (
                "No second cluster is coming up. A change of Serve's configuration that was taken up in place is kept "
                "nowhere but where you applied it from: apply the configuration that you want.",
            ),
        )
    if active_spec is None:
        return Plan("refused", (f"the specification of {service.active.cluster} cannot be read",))
    says = (f"The specification of {service.active.cluster}, which serves, becomes that of {service.name} again.",)
    kept = ("Serve's configuration (spec.serveConfigV2) stays as it is: it is not kept elsewhere.",)
    operations = (
        {"op": "test", "path": "/metadata/generation", "value": service.generation},
        {"op": "replace", "path": "/spec/rayClusterConfig", "value": restored(service.cluster_config, active_spec)},
    )
    return Plan("patch", (*says, *kept, *dropped), operations=operations, drops_pending=drops)


def needs_spec(service: Service) -> bool:
    """Whether the plan is written from the specification of the cluster that serves: Helm has its own."""
    return service.pending is not None and HELM_RELEASE not in service.annotations


def drops_pending(service: Service) -> bool:
    """Whether a new cluster waits that KubeRay would not give up by itself.

    Not for an incremental upgrade, which KubeRay rolls back, and not once the new cluster serves: traffic may be
    switched at this moment."""
    if service.active is None or service.pending is None or service.incremental:
        return False
    applications = service.pending.applications
    return not applications or any(application.status != "RUNNING" for application in applications)


def carry_out(
    connection: Connection,
    service: Service,
    plan: Plan,
    run: Callable[[Sequence[str]], int],
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Does what the plan says. Raises `KubeError` where it could not be finished, with how far it came."""
    if plan.by == "helm":
        code = run(plan.command)
        if code != 0:
            raise KubeError(f"{' '.join(plan.command)} ended with exit code {code}; nothing else was done")
    elif plan.by == "patch":
        connection.patch(RAY_SERVICES, service.namespace, service.name, list(plan.operations))
    else:
        raise KubeError(" ".join(plan.says))
    if plan.drops_pending:
        _drop(connection, service, sleep)


def _drop(connection: Connection, before: Service, sleep: Callable[[float], None]) -> None:
    """Takes the waiting cluster out of the status. The operator writes the status too: each try looks anew."""
    for _ in range(TRIES):
        item = connection.get(RAY_SERVICES, before.namespace, before.name)
        service = objects.service(item)
        if service.pending is None:
            return
        spec = snapshot.active_spec(connection, service)
        if spec is None or not same_cluster(service.cluster_config, spec):
            raise KubeError(
                f"the specification of {service.name} still differs from that of the cluster that serves: the waiting "
                f"cluster {service.pending.cluster} was left alone"
            )
        if not drops_pending(service):
            raise KubeError(f"{service.pending.cluster} has come up meanwhile and takes over: nothing was dropped")
        version = str(item["metadata"]["resourceVersion"])
        operations: list[dict[str, Any]] = [
            {"op": "test", "path": "/metadata/resourceVersion", "value": version},
            {"op": "replace", "path": "/status/pendingServiceStatus", "value": {}},
        ]
        with contextlib.suppress(Conflict):  # the operator was quicker
            connection.patch(RAY_SERVICES, service.namespace, service.name, operations, subresource="status")
        sleep(1.0)
    raise KubeError(
        f"the specification of {before.name} is back, but after {TRIES} tries a waiting cluster is named again"
    )

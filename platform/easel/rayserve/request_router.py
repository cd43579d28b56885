"""Serve's request-router hook: a shell that hands each choice to `easel.router.placement`, by way of the ingress.

Serve makes one in every process that holds a handle to the engine deployment, which is each ingress replica. It knows
which replicas run and what they last said of themselves, and asks where a request goes. Owns: that translation.
Refuses to know: by what a replica is chosen.

Serve pickles this module by value into its configuration, so it keeps no state of its own at module level, and is
named in the configuration as `easel.rayserve.request_router.WorkRequestRouter`.
"""

from __future__ import annotations

import logging
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from easel.protocol import GenerationRequest
from easel.rayserve import switchboard
from easel.rayserve.statistics import from_plain

logger = logging.getLogger("ray.serve")


class WorkRequestRouter(RequestRouter):  # type: ignore[misc]  # Ray has no types
    """See the module. Replicas are called by Serve's unique id of them."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Ranks of one replica each, best first: Serve takes the first that has room. Empty: it asks again, at growing
        intervals."""
        line, request = switchboard.line(self._deployment_id.app_name), _request(pending_request)
        if line is None or request is None:
            return [list(candidate_replicas)]  # a handle that is not an ingress's, or a call that is not a generation
        if pending_request is not None:
            # Serve 2.60 asks again at once, for ever and without a pause in its event loop, unless it is told this.
            pending_request.routing_context.should_backoff = True
        candidates = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        order = await line.ask(line.router.destination, request, list(candidates))
        return [[candidates[name]] for name in order if name in candidates]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """A replica took it."""
        line, request = switchboard.line(self._deployment_id.app_name), _request(pending_request)
        if line is not None and request is not None:
            line.tell(line.router.went, request, replica_id.unique_id)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Serve's controller says who runs, and what they last said, whenever either changes."""
        super().update_replicas(replicas)
        self._tell_who_runs()

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """Serve found out by a call that failed, before the controller did."""
        super().on_replica_actor_died(replica_id)
        self._tell_who_runs()

    def _tell_who_runs(self) -> None:
        line = switchboard.line(self._deployment_id.app_name)
        if line is None:
            return
        replicas = list(self.curr_replicas.values())
        line.tell(line.router.replicas, [replica.replica_id.unique_id for replica in replicas])
        for replica in replicas:
            stats = from_plain(replica.routing_stats or {})
            if stats is not None:
                line.tell(line.router.replica_said, replica.replica_id.unique_id, stats)

    def _get_pending_request_matching_internal_request_id(self, request_metadata: Any = None) -> PendingRequest | None:
        """The one that this metadata belongs to. Serve 2.60 looks by an id that all choices of one HTTP call share,
        so of two that wait at the same time the second would never be found."""
        for pending in self._pending_requests_to_fulfill:
            if pending.metadata is request_metadata and not pending.future.done():
                return pending
        return None


def _request(pending: PendingRequest | None) -> GenerationRequest | None:
    first = pending.args[0] if pending is not None and pending.args else None
    return first if isinstance(first, GenerationRequest) else None

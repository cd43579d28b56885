"""Who may go to a replica, and when: bounded queues, fair between tenants, and an answer for everyone.

A state machine without a clock of its own. `offer` queues or refuses a request, `advance` says what was decided since
(who goes, who left), `leave` and `done` take a ticket back. `easel.router.gate` makes an asyncio wait of it.

Fair sharing is by work: each tenant has a virtual time that goes on by work over weight with each request that is let
in, and is corrected when its real work is known; the tenant furthest behind goes next. Inside a tenant a level of
priority counts as a set number of seconds of earlier arrival, so nobody starves. Short work keeps some seats for
itself while there is any.

Owns: queues, bounds, order, outcomes, Retry-After. Refuses to know: estimates (they are arguments), replicas, asyncio.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from easel.errors import EaselError
from easel.protocol import GenerationRequest
from easel.router.capacity import Capacity
from easel.settings import RouterSettings

Clock = Callable[[], float]
"""Seconds that only go forward: `time.monotonic`, or a test's."""


class Outcome(StrEnum):
    """How the wait of a request ended. Closed: a label in metrics."""

    ADMITTED = "admitted"
    """It may go to a replica."""
    TENANT_FULL = "rejected_tenant_full"
    """Never queued: its tenant has as much queued as it may."""
    SERVICE_FULL = "rejected_service_full"
    """Never queued: the service, or its tier, has as much queued as it may."""
    DEADLINE = "rejected_deadline"
    """Not one step a canvas fits before its deadline: at arrival, given the wait, or by the time it would go."""
    QUEUE_TIMEOUT = "evicted_queue_timeout"
    """It waited as long as it wanted to."""
    CLIENT_GONE = "evicted_client_gone"
    """The client left while it waited."""
    CLOSED = "evicted_closed"
    """This ingress is going down."""


@dataclass(eq=False, slots=True)
class Ticket:
    """A request's place in the queue, then its seat. An identity."""

    request: GenerationRequest
    work: float
    """Units of work it is expected to take."""
    arrived_at: float
    queue_timeout_s: float | None = None
    deadline_at: float | None = None
    """On the same clock as `arrived_at`."""
    outcome: Outcome | None = None
    """None: it waits."""
    decided_at: float = 0.0
    retry_after_s: float | None = None
    """Of refusals: when those that were before it will have gone."""
    charged: float = 0.0
    """Units of work its tenant was charged for so far."""

    @property
    def waited_s(self) -> float:
        """Seconds in the queue, once decided."""
        return self.decided_at - self.arrived_at

    def error(self) -> EaselError | None:
        """What a client is told; None where it was admitted or still waits."""
        raise NotImplementedError


class Admission:
    """See the module. One event loop calls it; nothing in it waits."""

    def __init__(self, settings: RouterSettings, clock: Clock) -> None: ...

    capacity: Capacity
    queued: int
    """Requests that wait."""
    queued_work: float
    running: int
    """Tickets admitted and not done."""
    running_work: float
    """Units of work still expected of them."""

    def offer(
        self,
        request: GenerationRequest,
        work: float,
        least_s: float = 0.0,
        queue_timeout_s: float | None = None,
        deadline_at: float | None = None,
    ) -> Ticket:
        """Queue a request, or refuse it: then `outcome` is set at once.

        Args:
            work: units of work it is expected to take.
            least_s: seconds that prefill and one step a canvas take; a deadline closer than that cannot be kept.
            queue_timeout_s: leaves the queue when it has waited that long. None: what the settings say.
            deadline_at: on this object's clock.
        """
        raise NotImplementedError

    def advance(self) -> list[Ticket]:
        """Everyone whose wait ended by now: evicted or let in, in that order. Call it after every other call that
        changes something, and when `next_at` has come."""
        raise NotImplementedError

    def next_at(self) -> float | None:
        """When `advance` has something to do though nothing else happens; None: not before something does."""
        raise NotImplementedError

    def leave(self, ticket: Ticket) -> None:
        """Its client is gone. Does nothing for a ticket that does not wait."""
        raise NotImplementedError

    def progress(self, ticket: Ticket, done: float, remaining: float) -> None:
        """What an admitted request has done and still has to do, in units of work: its tenant is charged the sum."""
        raise NotImplementedError

    def done(self, ticket: Ticket, work: float) -> None:
        """An admitted request has ended and took so many units of work: its seat is free. Once for each ticket."""
        raise NotImplementedError

    def set_capacity(self, capacity: Capacity, ingresses: int = 1) -> None:
        """What may be filled from now on. Bounds of queues are divided by the number of live ingresses."""
        raise NotImplementedError

    def weigh(self, tenant: str, weight: float) -> None:
        """The tenant's share against others, 1 by default. Above 0."""
        raise NotImplementedError

    def close(self) -> None:
        """Refuse whatever comes and evict whatever waits."""
        raise NotImplementedError

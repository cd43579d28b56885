"""What becomes of a request at admission: its ticket, and the closed set of ways in which its wait ends.

Owns: these words, and what a client is told of each. Refuses to know: who decides, and by what.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from easel.errors import ClientGone, DeadlineExceeded, Draining, EaselError, QueueFull, QueueTimeout, RateLimited
from easel.protocol import GenerationRequest

CLOSED_RETRY_S = 1.0
"""Another ingress takes the next try."""


class Outcome(StrEnum):
    """How the wait of a request ended. Closed: a label in metrics."""

    ADMITTED = "admitted"
    """It may go to a replica."""
    TENANT_FULL = "rejected_tenant_full"
    """Never queued: its tenant has as much queued as it may."""
    SERVICE_FULL = "rejected_service_full"
    """Never queued: the service, or its tier, has as much queued as it may; or so much that the request would not be
    started within its queue timeout or deadline."""
    DEADLINE = "rejected_deadline"
    """Not one step a canvas fits before its deadline: at arrival on an idle replica, or any more after the wait."""
    QUEUE_TIMEOUT = "evicted_queue_timeout"
    """It waited as long as it wanted to."""
    CLIENT_GONE = "evicted_client_gone"
    """The client left while it waited, or had it cancelled."""
    CLOSED = "evicted_closed"
    """This ingress is going down."""


@dataclass(eq=False, slots=True)
class Ticket:
    """A request's place in the queue, then its seat. An identity. Times are on the clock of admission."""

    request: GenerationRequest
    work: float
    """Units of work it is expected to take."""
    arrived_at: float
    order: int = 0
    """Counts arrivals."""
    short: bool = False
    """Of the lane for short work."""
    leaves_at: float = float("inf")
    """Its queue timeout."""
    starts_by: float = float("inf")
    """Let in later, it could not do one step a canvas before its deadline."""
    outcome: Outcome | None = None
    """None: it waits."""
    decided_at: float = 0.0
    retry_after_s: float | None = None
    """Of refusals and evictions: when those that were before it will have gone."""
    charged: float = 0.0
    """Units of work that its tenant was charged so far."""
    done_work: float = 0.0
    remaining: float = 0.0
    """Units of work still expected of it, once admitted."""
    ended: bool = False
    """Admitted, and its seat is free again."""

    @property
    def waited_s(self) -> float:
        """Seconds in the queue, once decided."""
        return self.decided_at - self.arrived_at

    def error(self) -> EaselError | None:
        """What a client is told; None where it was admitted or still waits."""
        retry = self.retry_after_s
        match self.outcome:
            case Outcome.TENANT_FULL:
                return RateLimited("You have as many requests waiting as you may; try again later.", None, retry)
            case Outcome.SERVICE_FULL:
                return QueueFull("The service has more work than it can do in time; try again later.", None, retry)
            case Outcome.QUEUE_TIMEOUT:
                return QueueTimeout(
                    f"The request waited {self.waited_s:.1f} s without being started; try again later.", None, retry
                )
            case Outcome.DEADLINE:
                return DeadlineExceeded("Not one denoising step a canvas fits before the deadline.")
            case Outcome.CLIENT_GONE:
                return ClientGone("The client left.")
            case Outcome.CLOSED:
                return Draining("This server is going down; try again.", None, CLOSED_RETRY_S)
            case _:
                return None

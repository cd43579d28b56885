"""One tenant's queue, and how long its end is away.

Owns: the order inside a tenant, its sums, its virtual time, and the forecast of a fair share's wait. Refuses to know:
seats, bounds, and who goes next among tenants (`easel.router.admission`).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field

from easel.router.outcomes import Ticket

Entry = tuple[float, int, Ticket]
"""(key, order of arrival, ticket): the least goes first."""

SWEEP_FROM = 32
"""Entries that a heap may hold of those that wait no more, beside as many as still do."""


@dataclass(eq=False, slots=True)
class Tenant:
    """What one tenant has waiting and running."""

    name: str
    weight: float = 1.0
    clock: float = 0.0
    """Its virtual time: work over weight that it was let in with, over all."""
    queued: int = 0
    queued_work: float = 0.0
    running: int = 0
    short: list[Entry] = field(default_factory=list)
    long: list[Entry] = field(default_factory=list)

    def add(self, key: float, ticket: Ticket) -> None:
        """Queue a ticket."""
        heapq.heappush(self.short if ticket.short else self.long, (key, ticket.order, ticket))
        self.queued += 1
        self.queued_work += ticket.work

    def dropped(self, ticket: Ticket) -> None:
        """It waits no more, and has an outcome: take it off the sums. It leaves the heap when it comes up there."""
        self.queued -= 1
        self.queued_work = self.queued_work - ticket.work if self.queued else 0.0
        self.short, self.long = swept(self.short, self.queued), swept(self.long, self.queued)

    def head(self, long_too: bool) -> Ticket | None:
        """Who of it goes next."""
        short, long = _top(self.short), _top(self.long) if long_too else None
        if short and long:
            return min(short, long)[2]
        entry = short or long
        return entry[2] if entry else None

    def charge(self, work: float) -> None:
        """It was let in with so many units of work more; less, where negative."""
        self.clock += work / self.weight


def swept(heap: list[Entry], waiting: int) -> list[Entry]:
    """The heap without those that wait no more, once they are most of it: they hold prompts."""
    if len(heap) <= 2 * waiting + SWEEP_FROM:
        return heap
    left = [entry for entry in heap if entry[2].outcome is None]
    heapq.heapify(left)
    return left


def _top(heap: list[Entry]) -> Entry | None:
    while heap and heap[0][2].outcome is not None:
        heapq.heappop(heap)
    return heap[0] if heap else None


def wait_s(tenants: Iterable[Tenant], tenant: Tenant, rate: float) -> float:
    """Seconds until all that `tenant` has queued is let in, if `rate` units of work a second are shared by weight among
    those that have something queued."""
    if tenant.queued_work <= 0.0:
        return 0.0
    # While this tenant drains it has `rate * weight / weights of all who still have something`: those that have less
    # for their weight are through before it, and leave their share to the rest.
    level = tenant.queued_work / tenant.weight
    ahead = sum(min(other.queued_work, level * other.weight) for other in tenants)
    return ahead / rate

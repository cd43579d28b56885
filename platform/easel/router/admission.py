"""Who may go to a replica, and when: bounded queues, fair between tenants, and an answer for everyone.

A state machine without a clock of its own. `offer` queues or refuses a request, `advance` says what was decided since
(who goes, who left), `leave` and `done` take a ticket back. `easel.router.gate` makes an asyncio wait of it.

Fair sharing is by work: each tenant has a virtual time that goes on by work over weight with each request that is let
in, and is corrected when its real work is known; the tenant furthest behind goes next. Inside a tenant a level of
priority counts as a set number of seconds of earlier arrival, so nobody starves. Short work keeps some seats for
itself while there is any.

Owns: queues, bounds, order among tenants, Retry-After. Refuses to know: estimates (they are arguments), replicas,
asyncio.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Mapping

from easel.protocol import GenerationRequest
from easel.router.capacity import Capacity, Throughput
from easel.router.outcomes import Outcome, Ticket
from easel.router.tenants import Tenant, swept, wait_s
from easel.settings import RouterSettings

Clock = Callable[[], float]
"""Seconds that only go forward: `time.monotonic`, or a test's."""

SHORT_MEMORY_S = 30.0
"""Seats are kept for short work for so long after the last of it came."""
KNOCK_S = 2.0
"""With no replica known and none of its requests running, one that has waited this long is let in: Serve starts a first
replica for a request on a handle, whatever else is broken."""
LEAST_WAIT_S = 0.01
"""Nobody leaves sooner: what comes in is decided on at the next turn of the event loop, and who does not want to wait
gets a seat that is free."""
UNKNOWN_RETRY_S = 5.0
"""Retry-After where nobody knows yet how fast work is done."""


class Admission:
    """See the module. One event loop calls it; nothing in it waits."""

    def __init__(self, settings: RouterSettings, clock: Clock) -> None:
        self.capacity = Capacity()
        self.queued = 0
        """Requests that wait."""
        self.queued_work = 0.0
        self.running = 0
        """Tickets admitted and not done."""
        self.running_work = 0.0
        """Units of work still expected of them."""
        self._settings = settings
        self._clock = clock
        self._ingresses = 1
        self._tenants: dict[str, Tenant] = {}
        self._weights: dict[str, float] = {}
        self._tiers: dict[str, tuple[int, float]] = {}
        """Queued requests and work, by tier."""
        self._virtual = 0.0
        """The virtual time of whom was let in last: a tenant that had nothing queued begins there."""
        self._running_long = 0
        self._short_until = -math.inf
        self._order = itertools.count()
        self._timers: list[tuple[float, int, Ticket]] = []
        self._evicted: list[Ticket] = []
        self._measured = Throughput(clock)
        self._closed = False

    @property
    def rate(self) -> float:
        """Units of work a second that this ingress's part of the replicas does. 0: not known."""
        return self._measured.rate(self.capacity.work_per_s)

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
        now = self._clock()
        patience = self._settings.queue_timeout_s if queue_timeout_s is None else queue_timeout_s
        ticket = Ticket(
            request,
            work,
            now,
            next(self._order),
            short=work <= self._settings.short_work,
            leaves_at=now + max(patience, LEAST_WAIT_S),
            starts_by=math.inf if deadline_at is None else deadline_at - least_s,
        )
        tenant = self._tenant(request.tenant)
        refusal = self._refusal(ticket, tenant, now)
        if refusal is not None:
            self._decide(ticket, refusal, now)
            if refusal in (Outcome.TENANT_FULL, Outcome.SERVICE_FULL):
                ticket.retry_after_s = self._retry_after(tenant if refusal is Outcome.TENANT_FULL else None)
            self._forget(tenant)
            return ticket
        if not tenant.queued:
            tenant.clock = max(tenant.clock, self._virtual)
        tenant.add(now - request.priority * self._settings.priority_s, ticket)
        self._queue(ticket, 1)
        ends = min(ticket.leaves_at, ticket.starts_by)
        if ends < math.inf:
            heapq.heappush(self._timers, (ends, ticket.order, ticket))
        if ticket.short:
            self._short_until = now + SHORT_MEMORY_S
        return ticket

    def advance(self) -> list[Ticket]:
        """Everyone whose wait ended by now: evicted or let in, in that order. Call it after every other call that
        changes something, and when `next_at` has come."""
        now = self._clock()
        self._expire(now)
        told, self._evicted = self._evicted, []
        while self.queued and (self.running < self.capacity.seats or self._knocks(now)):
            ticket = self._next(now)
            if ticket is None:
                break
            self._admit(ticket, now)
            told.append(ticket)
        self._measured.busy(self.queued > 0 and 0 < self.capacity.seats <= self.running)
        return told

    def next_at(self) -> float | None:
        """When `advance` has something to do though nothing else happens; None: not before something does."""
        while self._timers and self._timers[0][2].outcome is not None:
            heapq.heappop(self._timers)
        times = [self._timers[0][0]] if self._timers else []
        if self.queued and not self.capacity.seats and not self.running:
            times.append(self._oldest() + KNOCK_S)
        if self.queued and self.running < self.capacity.seats and self._short_until > self._clock():
            times.append(self._short_until)  # from then on no seat is kept for short work
        return min(times, default=None)

    def leave(self, ticket: Ticket) -> None:
        """Its client is gone. Does nothing for a ticket that does not wait."""
        if ticket.outcome is None:
            self._unqueue(ticket, Outcome.CLIENT_GONE, self._clock())

    def progress(self, ticket: Ticket, done: float, remaining: float) -> None:
        """What an admitted request has done and still has to do, in units of work: its tenant is charged the sum."""
        if ticket.outcome is not Outcome.ADMITTED or ticket.ended:
            return
        self._measured.did(max(0.0, done - ticket.done_work))
        self.running_work += remaining - ticket.remaining
        ticket.done_work, ticket.remaining = done, remaining
        self._tenant(ticket.request.tenant).charge(done + remaining - ticket.charged)
        ticket.charged = done + remaining

    def done(self, ticket: Ticket, work: float) -> None:
        """An admitted request has ended and took so many units of work: its seat is free. Once for each ticket."""
        if ticket.outcome is not Outcome.ADMITTED or ticket.ended:
            return
        self.progress(ticket, work, 0.0)
        ticket.ended = True
        self.running -= 1
        self._running_long -= not ticket.short
        if not self.running:
            self.running_work = 0.0  # what rounding left
        tenant = self._tenant(ticket.request.tenant)
        tenant.running -= 1
        self._forget(tenant)

    def set_capacity(self, capacity: Capacity, ingresses: int = 1) -> None:
        """What may be filled from now on. Bounds of queues are divided by the number of live ingresses."""
        if capacity.seats != self.capacity.seats:
            self._measured.forget()
        self.capacity = capacity
        self._ingresses = max(1, ingresses)

    def weigh(self, tenant: str, weight: float) -> None:
        """The tenant's share against others, 1 by default. Above 0."""
        if not weight > 0.0:
            raise ValueError(f"weight: {weight} of tenant {tenant!r} is not above 0")
        self._weights[tenant] = weight
        if tenant in self._tenants:
            self._tenants[tenant].weight = weight

    def weigh_all(self, weights: Mapping[str, float]) -> None:
        """The shares of these tenants, and 1 for all others."""
        for tenant in {*self._weights, *self._tenants} - set(weights):
            self.weigh(tenant, 1.0)
        for tenant, weight in weights.items():
            self.weigh(tenant, weight)
        self._weights = dict(weights)

    def close(self) -> None:
        """Refuse whatever comes and evict whatever waits."""
        self._closed = True
        now = self._clock()
        for tenant in list(self._tenants.values()):
            while (ticket := tenant.head(long_too=True)) is not None:
                self._evict(ticket, Outcome.CLOSED, now)

    def waiting(self, tenant: str) -> tuple[int, float]:
        """Requests and work that a tenant has queued."""
        known = self._tenants.get(tenant)
        return (known.queued, known.queued_work) if known else (0, 0.0)

    def _refusal(self, ticket: Ticket, tenant: Tenant, now: float) -> Outcome | None:
        """Why it is not queued, if it is not."""
        settings = self._settings
        if self._closed:
            return Outcome.CLOSED
        if now > ticket.starts_by:
            return Outcome.DEADLINE
        # What a queue that is empty takes may be larger than its bound: otherwise it would never be served.
        part = settings.tenant_queue_share
        if tenant.name and part < 1.0 and self._over(tenant.queued, tenant.queued_work, ticket.work, part):
            return Outcome.TENANT_FULL
        # A full queue turns away those who made it full. Who has less than a fair part of it gets that part all the
        # same, or the quick ones would have the seats of the queue and so those of the replicas.
        full = self._over(self.queued, self.queued_work, ticket.work, 1.0)
        if full and self._over(tenant.queued, tenant.queued_work, ticket.work, self._fair_part(tenant)):
            return Outcome.SERVICE_FULL
        tier = ticket.request.tier
        if tier in settings.tier_queue_shares:
            queued, work = self._tiers.get(tier, (0, 0.0))
            if self._over(queued, work, ticket.work, settings.tier_queue_shares[tier]):
                return Outcome.SERVICE_FULL
        if self.queued < self.capacity.seats - self.running:
            return None  # it goes at the next turn of the event loop, with those who came at this one
        patience = min(ticket.leaves_at, ticket.starts_by) - now
        rate = self.rate
        # Fair sharing can only be quicker than first come, first served is over all that is queued.
        if rate > 0.0 and self.queued_work > patience * rate and self._ahead_s(tenant, rate) > patience:
            return Outcome.SERVICE_FULL
        return None

    def _over(self, queued: int, work: float, more: float, part: float) -> bool:
        part /= self._ingresses
        requests = max(1.0, self._settings.max_queued_requests * part)
        return queued > 0 and (queued + 1 > requests or work + more > self._settings.max_queued_work * part)

    def _fair_part(self, tenant: Tenant) -> float:
        """Its weight among those that have something queued, itself included."""
        others = sum(other.weight for other in self._tenants.values() if other.queued and other is not tenant)
        return tenant.weight / (tenant.weight + others)

    def _ahead_s(self, tenant: Tenant, rate: float) -> float:
        return wait_s(self._tenants.values(), tenant, rate)

    def _retry_after(self, tenant: Tenant | None) -> float:
        """When what is queued now, of that tenant or at all, will have been let in."""
        rate = self.rate
        if rate <= 0.0:
            return UNKNOWN_RETRY_S
        return self._ahead_s(tenant, rate) if tenant else self.queued_work / rate

    def _expire(self, now: float) -> None:
        while self._timers and (self._timers[0][0] <= now or self._timers[0][2].outcome is not None):
            ticket = heapq.heappop(self._timers)[2]
            if ticket.outcome is None:
                late = ticket.starts_by < ticket.leaves_at
                self._evict(ticket, Outcome.DEADLINE if late else Outcome.QUEUE_TIMEOUT, now)
                if not late:
                    ticket.retry_after_s = self._retry_after(None)

    def _next(self, now: float) -> Ticket | None:
        """Who goes next: the head of the tenant that is furthest behind, among those that may take the free seat."""
        seats = self.capacity.seats
        kept = 0
        if now < self._short_until and seats >= 2 and self._settings.short_seats > 0.0:
            kept = max(1, round(seats * self._settings.short_seats))
        long_too = self._running_long < max(1, seats - kept)
        best: tuple[float, str, Tenant, Ticket] | None = None
        for tenant in self._tenants.values():
            if tenant.queued and (best is None or (tenant.clock, tenant.name) < best[:2]):
                ticket = tenant.head(long_too)
                if ticket is not None:
                    best = (tenant.clock, tenant.name, tenant, ticket)
        return best[3] if best else None

    def _admit(self, ticket: Ticket, now: float) -> None:
        tenant = self._tenant(ticket.request.tenant)
        self._virtual = max(self._virtual, tenant.clock)
        self._unqueue(ticket, Outcome.ADMITTED, now)
        tenant.charge(ticket.work)
        tenant.running += 1
        ticket.charged = ticket.remaining = ticket.work
        self.running += 1
        self._running_long += not ticket.short
        self.running_work += ticket.work

    def _knocks(self, now: float) -> bool:
        return not self.capacity.seats and not self.running and now >= self._oldest() + KNOCK_S

    def _oldest(self) -> float:
        heads = (tenant.head(long_too=True) for tenant in self._tenants.values() if tenant.queued)
        return min((ticket.arrived_at for ticket in heads if ticket), default=math.inf)

    def _evict(self, ticket: Ticket, outcome: Outcome, now: float) -> None:
        self._unqueue(ticket, outcome, now)
        self._evicted.append(ticket)

    def _unqueue(self, ticket: Ticket, outcome: Outcome, now: float) -> None:
        self._decide(ticket, outcome, now)
        tenant = self._tenant(ticket.request.tenant)
        tenant.dropped(ticket)
        self._queue(ticket, -1)
        self._timers = swept(self._timers, self.queued)
        if outcome is not Outcome.ADMITTED:
            self._forget(tenant)

    def _queue(self, ticket: Ticket, one: int) -> None:
        self.queued += one
        self.queued_work = self.queued_work + one * ticket.work if self.queued else 0.0
        queued, work = self._tiers.pop(ticket.request.tier, (0, 0.0))
        if queued + one:
            self._tiers[ticket.request.tier] = (queued + one, work + one * ticket.work)

    def _decide(self, ticket: Ticket, outcome: Outcome, now: float) -> None:
        ticket.outcome, ticket.decided_at = outcome, now

    def _tenant(self, name: str) -> Tenant:
        known = self._tenants.get(name)
        if known is None:
            known = self._tenants[name] = Tenant(name, self._weights.get(name, 1.0), clock=self._virtual)
        return known

    def _forget(self, tenant: Tenant) -> None:
        """A tenant without anything here that owes nothing is like one that was never seen."""
        if not tenant.queued and not tenant.running and tenant.clock <= self._virtual:
            self._tenants.pop(tenant.name, None)

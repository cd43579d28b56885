"""Admission under any order of calls: nobody is lost, counted twice or starved, and all accounts return to zero."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from easel.router.admission import Admission
from easel.router.capacity import Capacity
from easel.router.outcomes import Outcome, Ticket
from easel.settings import RouterSettings
from tests.unit.router.making import FakeClock, request

TENANTS = st.sampled_from(["", "a", "b", "c"])
WORK = st.floats(0.5, 200.0)
LONGEST_S = 40.0


class Machine(RuleBasedStateMachine):
    """Keeps its own books of every ticket, from outcomes alone, and compares them with admission's."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        options = RouterSettings(
            max_queued_work=1500.0,
            max_queued_requests=20,
            tier_queue_shares={"quality": 0.3},
            queue_timeout_s=LONGEST_S,
        )
        self.admission = Admission(options, self.clock)
        self.seats = 0
        self.waiting: list[Ticket] = []
        self.running: list[Ticket] = []
        self.ended = 0
        self.offered = 0
        self.told: set[int] = set()

    @rule(
        tenant=TENANTS,
        work=WORK,
        tier=st.sampled_from(["", "quality"]),
        priority=st.integers(-2, 3),
        timeout=st.none() | st.floats(0.0, LONGEST_S),
        deadline=st.none() | st.floats(-1.0, 60.0),
    )
    def offer(
        self, tenant: str, work: float, tier: str, priority: int, timeout: float | None, deadline: float | None
    ) -> None:
        asked = request(str(self.offered), tenant=tenant, tier=tier, priority=priority)
        ends = None if deadline is None else self.clock.now + deadline
        ticket = self.admission.offer(asked, work, 0.5, timeout, ends)
        self.offered += 1
        if ticket.outcome is None:
            self.waiting.append(ticket)
        else:
            assert ticket.outcome in (Outcome.TENANT_FULL, Outcome.SERVICE_FULL, Outcome.DEADLINE)
            assert ticket.error() is not None
            self.ended += 1
        self.advance()

    @rule(seconds=st.floats(0.0, 20.0))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds
        self.advance()

    @precondition(lambda self: self.running)
    @rule(data=st.data(), factor=st.floats(0.1, 3.0))
    def done(self, data: st.DataObject, factor: float) -> None:
        ticket = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.admission.done(ticket, ticket.work * factor)
        self.ended += 1
        self.advance()

    @precondition(lambda self: self.running)
    @rule(data=st.data(), done=WORK, remaining=WORK)
    def progress(self, data: st.DataObject, done: float, remaining: float) -> None:
        self.admission.progress(data.draw(st.sampled_from(self.running)), done, remaining)
        self.advance()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        ticket = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        self.admission.leave(ticket)
        assert ticket.outcome is Outcome.CLIENT_GONE
        self.ended += 1
        self.advance()

    @rule(seats=st.integers(0, 6), rate=st.floats(0.0, 500.0), ingresses=st.integers(1, 3))
    def change(self, seats: int, rate: float, ingresses: int) -> None:
        self.seats = seats
        self.admission.set_capacity(Capacity(seats, rate, seats), ingresses)
        self.advance()

    @rule(tenant=TENANTS, weight=st.floats(0.1, 10.0))
    def weigh(self, tenant: str, weight: float) -> None:
        self.admission.weigh(tenant, weight)

    def advance(self) -> None:
        before = len(self.running)
        for ticket in self.admission.advance():
            assert ticket.order not in self.told
            self.told.add(ticket.order)
            self.waiting.remove(ticket)
            if ticket.outcome is Outcome.ADMITTED:
                self.running.append(ticket)
            else:
                assert ticket.outcome in (Outcome.QUEUE_TIMEOUT, Outcome.DEADLINE)
                self.ended += 1
        if len(self.running) > before:  # who is let in fits, but for one that knocks where there is no seat
            assert len(self.running) <= max(self.seats, 1)
        assert self.admission.advance() == []

    @invariant()
    def books_agree(self) -> None:
        admission = self.admission
        assert self.offered == len(self.waiting) + len(self.running) + self.ended
        assert admission.queued == len(self.waiting)
        assert abs(admission.queued_work - sum(ticket.work for ticket in self.waiting)) < 1e-6
        assert admission.running == len(self.running)
        assert abs(admission.running_work - sum(ticket.remaining for ticket in self.running)) < 1e-6
        by_tenant = [admission.waiting(tenant)[0] for tenant in ("", "a", "b", "c")]
        assert sum(by_tenant) == admission.queued

    @invariant()
    def nobody_waits_for_ever(self) -> None:
        for ticket in self.waiting:
            assert self.clock.now < ticket.leaves_at
            assert self.clock.now < ticket.starts_by
        at = self.admission.next_at()
        assert at is not None or not self.waiting

    @invariant()
    def no_seat_is_free_while_short_work_waits(self) -> None:
        if any(ticket.short for ticket in self.waiting):
            assert len(self.running) >= self.seats

    def teardown(self) -> None:
        for ticket in list(self.running):
            self.admission.done(ticket, 1.0)
        self.admission.close()
        self.admission.advance()
        assert (self.admission.queued, self.admission.queued_work) == (0, 0.0)
        assert (self.admission.running, self.admission.running_work) == (0, 0.0)
        assert self.admission._tiers == {}
        assert self.admission._running_long == 0


TestAdmission = Machine.TestCase
TestAdmission.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)

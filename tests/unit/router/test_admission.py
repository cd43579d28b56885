"""Bounds, order, deadlines and Retry-After of admission, one decision at a time."""

from __future__ import annotations

import pytest

from easel.errors import Draining, EaselError, QueueFull, QueueTimeout, RateLimited
from easel.router.admission import KNOCK_S, UNKNOWN_RETRY_S, Admission
from easel.router.capacity import Capacity
from easel.router.outcomes import Outcome
from easel.settings import RouterSettings
from tests.unit.router.making import FakeClock, request


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def make(clock: FakeClock, seats: int = 1, rate: float = 0.0, **settings: object) -> Admission:
    settings.setdefault("short_work", 0.0)
    admission = Admission(RouterSettings(**settings), clock)  # type: ignore[arg-type]
    admission.set_capacity(Capacity(seats, rate, 1))
    return admission


def ids(tickets: list) -> list[str]:  # type: ignore[type-arg]
    return [ticket.request.id for ticket in tickets]


def test_lets_in_as_many_as_there_are_seats(clock: FakeClock) -> None:
    admission = make(clock, seats=2)
    tickets = [admission.offer(request(str(i)), 5.0) for i in range(3)]
    assert ids(admission.advance()) == ["0", "1"]
    assert (admission.running, admission.running_work, admission.queued, admission.queued_work) == (2, 10.0, 1, 5.0)
    admission.done(tickets[0], 6.0)
    assert ids(admission.advance()) == ["2"]


def test_a_tenant_that_was_let_in_with_more_work_waits_for_the_others(clock: FakeClock) -> None:
    admission = make(clock, seats=1)
    for i in range(4):
        admission.offer(request(f"big{i}", tenant="big"), 30.0)
        for j in range(3):
            admission.offer(request(f"small{i}{j}", tenant="small"), 10.0)
    order = []
    while admission.queued:
        (ticket,) = admission.advance()
        order.append(ticket.request.tenant)
        admission.done(ticket, ticket.work)
    for count in range(4, 17, 4):
        assert order[:count].count("small") == 3 * count // 4


def test_weights_share_seats_in_proportion(clock: FakeClock) -> None:
    admission = make(clock)
    admission.weigh("heavy", 3.0)
    for i in range(40):
        for tenant in ("heavy", "light"):
            admission.offer(request(f"{tenant}{i}", tenant=tenant), 10.0)
    order = []
    for _ in range(40):
        (ticket,) = admission.advance()
        order.append(ticket.request.tenant)
        admission.done(ticket, 10.0)
    assert order.count("heavy") == 30


def test_a_weight_must_be_above_zero(clock: FakeClock) -> None:
    with pytest.raises(ValueError, match=r"weight: 0\.0 of tenant 'a'"):
        make(clock).weigh("a", 0.0)


def test_a_tenant_is_charged_what_its_requests_really_took(clock: FakeClock) -> None:
    admission = make(clock)
    for i in range(6):
        for tenant in ("cheap", "dear"):
            admission.offer(request(f"{tenant}{i}", tenant=tenant), 10.0)
    order = []
    for _ in range(9):
        (ticket,) = admission.advance()
        order.append(ticket.request.tenant)
        admission.done(ticket, 10.0 if ticket.request.tenant == "cheap" else 20.0)
    assert order.count("cheap") == 6
    assert order.count("dear") == 3


def test_a_tenant_that_was_away_saves_nothing_up(clock: FakeClock) -> None:
    admission = make(clock)
    for i in range(20):
        admission.offer(request(f"a{i}", tenant="a"), 10.0)
    for _ in range(10):
        (ticket,) = admission.advance()
        admission.done(ticket, 10.0)
    for i in range(10):
        admission.offer(request(f"b{i}", tenant="b"), 10.0)
    order = []
    for _ in range(10):
        (ticket,) = admission.advance()
        order.append(ticket.request.tenant)
        admission.done(ticket, 10.0)
    assert order.count("b") == 5


def test_priority_is_worth_seconds_of_earlier_arrival(clock: FakeClock) -> None:
    admission = make(clock, seats=0, priority_s=10.0)
    admission.offer(request("early"), 1.0)
    clock.now += 9.0
    admission.offer(request("urgent", priority=1), 1.0)
    clock.now += 2.0
    admission.offer(request("late", priority=1), 1.0)
    admission.set_capacity(Capacity(3, 1.0, 1))
    assert ids(admission.advance()) == ["urgent", "early", "late"]


def test_short_work_has_a_seat_of_its_own_while_it_comes(clock: FakeClock) -> None:
    admission = make(clock, seats=4, short_work=10.0, short_seats=0.25)
    first = admission.offer(request("short0"), 2.0)
    for i in range(6):
        admission.offer(request(f"long{i}"), 100.0)
    assert ids(admission.advance()) == ["short0", "long0", "long1", "long2"]
    admission.done(first, 2.0)
    assert admission.advance() == []  # that seat is kept
    assert admission.next_at() == clock.now + 30.0
    admission.offer(request("short1"), 2.0)
    (second,) = admission.advance()
    assert second.request.id == "short1"
    admission.done(second, 2.0)
    clock.now += 31.0
    told = admission.advance()
    assert "long3" not in ids([ticket for ticket in told if ticket.outcome is Outcome.ADMITTED])  # its time was over


def test_a_kept_seat_is_free_for_all_once_no_short_work_comes(clock: FakeClock) -> None:
    admission = make(clock, seats=2, short_work=10.0, short_seats=0.25, queue_timeout_s=100.0)
    admission.done(_only(admission, clock), 2.0)
    for i in range(2):
        admission.offer(request(f"long{i}"), 100.0, queue_timeout_s=1000.0)
    assert ids(admission.advance()) == ["long0"]
    clock.now += 30.0
    assert ids(admission.advance()) == ["long1"]


def _only(admission: Admission, clock: FakeClock):  # type: ignore[no-untyped-def]
    admission.offer(request("short"), 2.0)
    (ticket,) = admission.advance()
    return ticket


def test_leaves_the_queue_when_it_has_waited_as_long_as_it_wanted(clock: FakeClock) -> None:
    admission = make(clock, seats=1, rate=10.0, queue_timeout_s=50.0)
    running = admission.offer(request("running"), 5.0)
    admission.advance()
    short = admission.offer(request("short"), 5.0, queue_timeout_s=2.0)
    admission.offer(request("long"), 5.0)
    assert admission.next_at() == clock.now + 2.0
    clock.now += 2.0
    assert admission.advance() == [short]
    assert short.outcome is Outcome.QUEUE_TIMEOUT
    assert isinstance(short.error(), QueueTimeout)
    assert short.waited_s == 2.0
    assert short.retry_after_s == pytest.approx(5.0 / admission.rate)
    admission.done(running, 5.0)
    assert ids(admission.advance()) == ["long"]


def test_who_does_not_want_to_wait_at_all_gets_a_free_seat(clock: FakeClock) -> None:
    """Also where the turn of the event loop that decides on it comes a little later."""
    admission = make(clock, seats=1)
    at_once = admission.offer(request("at once"), 5.0, queue_timeout_s=0.0)
    clock.now += 0.001
    assert admission.advance() == [at_once]
    assert at_once.outcome is Outcome.ADMITTED
    late = admission.offer(request("late"), 5.0, queue_timeout_s=0.0)
    assert admission.advance() == []
    clock.now = admission.next_at() or 0.0
    assert admission.advance() == [late]
    assert late.outcome is Outcome.QUEUE_TIMEOUT
    assert late.waited_s < 0.02


def test_a_deadline_alone_never_evicts_while_a_step_a_canvas_fits(clock: FakeClock) -> None:
    admission = make(clock, seats=1)
    running = admission.offer(request("running"), 5.0)
    admission.advance()
    late = admission.offer(request("late"), 5.0, least_s=1.0, deadline_at=clock.now + 5.0)
    clock.now += 3.9
    assert admission.advance() == []
    admission.done(running, 5.0)
    assert admission.advance() == [late]
    assert late.outcome is Outcome.ADMITTED


def test_a_deadline_that_no_step_fits_any_more_is_refused_as_one(clock: FakeClock) -> None:
    admission = make(clock, seats=1)
    admission.offer(request("running"), 5.0)
    admission.advance()
    late = admission.offer(request("late"), 5.0, least_s=1.0, deadline_at=clock.now + 5.0)
    clock.now += 4.0
    assert admission.advance() == [late]
    assert late.outcome is Outcome.DEADLINE
    error = late.error()
    assert error is not None
    assert (error.status, error.code, error.retryable) == (504, "deadline_exceeded", False)


def test_a_deadline_that_nothing_could_keep_is_refused_at_once(clock: FakeClock) -> None:
    ticket = make(clock, seats=1).offer(request(), 5.0, least_s=1.0, deadline_at=clock.now + 0.5)
    assert ticket.outcome is Outcome.DEADLINE
    assert ticket.retry_after_s is None


def test_a_deadline_that_the_queue_will_not_keep_is_refused_with_when_to_come_back(clock: FakeClock) -> None:
    admission = make(clock, seats=1, rate=10.0)
    for i in range(4):
        admission.offer(request(str(i)), 20.0)
    admission.advance()
    ticket = admission.offer(request("late"), 20.0, deadline_at=clock.now + 5.0)
    assert ticket.outcome is Outcome.SERVICE_FULL
    assert ticket.retry_after_s == pytest.approx(6.0)
    assert isinstance(ticket.error(), QueueFull)


def test_the_wait_of_a_tenant_is_that_of_its_fair_share(clock: FakeClock) -> None:
    admission = make(clock, seats=1, rate=10.0)
    for i in range(10):
        admission.offer(request(f"full{i}", tenant="full"), 20.0)
    admission.advance()
    admission.offer(request("quick0", tenant="quick"), 20.0)
    # 20 units of its own and as much of the other tenant's come before it: 4 s of the 18 s that the queue holds.
    assert admission.offer(request("quick1", tenant="quick"), 1.0, queue_timeout_s=5.0).outcome is None
    assert admission.offer(request("q", tenant="full"), 1.0, queue_timeout_s=5.0).outcome is Outcome.SERVICE_FULL


def test_who_finds_a_seat_free_is_not_refused_for_those_who_came_at_the_same_moment(clock: FakeClock) -> None:
    admission = make(clock, seats=3, rate=0.1)
    outcomes = [admission.offer(request(str(i)), 20.0, queue_timeout_s=5.0).outcome for i in range(5)]
    assert outcomes == [None, None, None, Outcome.SERVICE_FULL, Outcome.SERVICE_FULL]
    assert len(admission.advance()) == 3


def test_a_tenant_over_its_own_bound_gets_429_and_the_others_nothing_of_it(clock: FakeClock) -> None:
    admission = make(clock, seats=0, max_queued_work=100.0, tenant_queue_share=0.5, rate=0.0)
    for i in range(5):
        assert admission.offer(request(f"a{i}", tenant="a"), 10.0).outcome is None
    refused = admission.offer(request("a5", tenant="a"), 10.0)
    assert refused.outcome is Outcome.TENANT_FULL
    assert isinstance(refused.error(), RateLimited)
    assert refused.retry_after_s == UNKNOWN_RETRY_S
    assert admission.offer(request("b", tenant="b"), 10.0).outcome is None
    assert admission.waiting("a") == (5, 50.0)
    assert admission.waiting("nobody") == (0, 0.0)


def test_a_full_service_turns_away_who_filled_it(clock: FakeClock) -> None:
    admission = make(clock, seats=0, max_queued_requests=4, tenant_queue_share=1.0, rate=5.0)
    for i in range(4):
        admission.offer(request(f"a{i}", tenant="a"), 10.0)
    refused = admission.offer(request("a4", tenant="a"), 10.0)
    assert refused.outcome is Outcome.SERVICE_FULL
    assert refused.retry_after_s == pytest.approx(8.0)
    assert [admission.offer(request(f"b{i}", tenant="b"), 10.0).outcome for i in range(3)] == [
        None,
        None,
        Outcome.SERVICE_FULL,
    ]


def test_a_tier_has_a_bound_of_its_own(clock: FakeClock) -> None:
    admission = make(clock, seats=0, max_queued_requests=10, tier_queue_shares={"quality": 0.2})
    outcomes = [admission.offer(request(str(i), tier="quality"), 1.0).outcome for i in range(3)]
    assert outcomes == [None, None, Outcome.SERVICE_FULL]
    assert admission.offer(request("fast", tier="fast"), 1.0).outcome is None


def test_an_empty_queue_takes_what_is_larger_than_its_bound(clock: FakeClock) -> None:
    admission = make(clock, seats=1, max_queued_work=10.0)
    admission.offer(request("huge", tenant="a"), 1000.0)
    assert ids(admission.advance()) == ["huge"]


def test_bounds_are_divided_among_ingresses(clock: FakeClock) -> None:
    admission = make(clock, seats=0, max_queued_requests=8)
    admission.set_capacity(Capacity(), ingresses=4)
    outcomes = [admission.offer(request(str(i)), 1.0).outcome for i in range(3)]
    assert outcomes == [None, None, Outcome.SERVICE_FULL]


def test_a_client_that_left_is_gone_from_the_queue(clock: FakeClock) -> None:
    admission = make(clock, seats=0)
    ticket = admission.offer(request("gone"), 5.0)
    admission.leave(ticket)
    admission.leave(ticket)
    assert (admission.queued, admission.queued_work) == (0, 0.0)
    assert ticket.outcome is Outcome.CLIENT_GONE
    error = ticket.error()
    assert error is not None
    assert error.code == "client_gone"


def test_one_request_knocks_where_no_replica_is_known(clock: FakeClock) -> None:
    admission = make(clock, seats=0)
    for i in range(3):
        admission.offer(request(str(i)), 5.0)
    assert admission.advance() == []
    assert admission.next_at() == clock.now + KNOCK_S
    clock.now += KNOCK_S
    assert ids(admission.advance()) == ["0"]
    assert admission.advance() == []


def test_closing_evicts_who_waits_and_refuses_who_comes(clock: FakeClock) -> None:
    admission = make(clock, seats=1)
    running = admission.offer(request("running"), 5.0)
    admission.advance()
    waiting = admission.offer(request("waiting"), 5.0)
    admission.close()
    assert admission.advance() == [waiting]
    error: EaselError | None = waiting.error()
    assert isinstance(error, Draining)
    assert admission.offer(request("new"), 5.0).outcome is Outcome.CLOSED
    admission.done(running, 5.0)
    admission.done(running, 5.0)
    assert (admission.running, admission.running_work) == (0, 0.0)


def test_retry_after_follows_the_measured_rate(clock: FakeClock) -> None:
    admission = make(clock, seats=1, rate=100.0, max_queued_requests=3)
    for i in range(3):
        admission.offer(request(str(i)), 10.0, queue_timeout_s=1e6)
    for _ in range(20):
        (ticket,) = admission.advance()
        clock.now += 2.0
        admission.done(ticket, 10.0)
        admission.offer(request(), 10.0, queue_timeout_s=1e6)
    admission.advance()
    for _ in range(3):
        refused = admission.offer(request(), 10.0, queue_timeout_s=1e6)
    assert refused.outcome is Outcome.SERVICE_FULL
    assert refused.retry_after_s is not None
    real = 2.0 * admission.queued  # one request every 2 s leaves the queue
    assert real / 2 <= refused.retry_after_s <= real * 2


def test_a_queue_of_those_that_left_does_not_grow(clock: FakeClock) -> None:
    admission = make(clock, seats=0)
    admission.offer(request("stays", priority=5), 1.0)
    for i in range(1000):
        admission.leave(admission.offer(request(str(i)), 1.0))
    tenant = admission._tenant("")
    assert len(tenant.long) + len(tenant.short) < 100
    assert len(admission._timers) < 100

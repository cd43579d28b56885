"""The wait for a seat: a thin asyncio layer over `easel.router.admission`.

Owns: one future for each request that waits, and one timer. Refuses to know: who is next.

A request that comes in is decided on at the next turn of the event loop, together with all that came in at the same
one: the choices of a call, say. That is no wait that anyone could measure, and what goes together can go together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from easel.protocol import GenerationRequest
from easel.router.admission import Admission, Clock
from easel.router.outcomes import Outcome, Ticket


class Gate:
    """`admitted` is called with all that are let in at the same moment, before any of them goes on; `decided` with each
    ticket whose wait has ended, refused ones included."""

    def __init__(
        self,
        admission: Admission,
        clock: Clock,
        admitted: Callable[[list[Ticket]], None] | None = None,
        decided: Callable[[Ticket], None] | None = None,
    ) -> None:
        self._admission = admission
        self._clock = clock
        self._admitted = admitted
        self._decided = decided
        self._waiting: dict[Ticket, asyncio.Future[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._turning = False

    async def enter(
        self,
        request: GenerationRequest,
        work: float,
        least_s: float = 0.0,
        queue_timeout_s: float | None = None,
        deadline_at: float | None = None,
    ) -> Ticket:
        """Waits until the request may go. Raises the `EaselError` of its outcome; when cancelled, it leaves the queue.
        The arguments are those of `Admission.offer`."""
        ticket = self._admission.offer(request, work, least_s, queue_timeout_s, deadline_at)
        if ticket.outcome is None:
            loop = asyncio.get_running_loop()
            decided = self._waiting[ticket] = loop.create_future()
            self._soon(loop)
            try:
                await decided
            except asyncio.CancelledError:
                self._left(ticket)
                raise
            finally:
                self._waiting.pop(ticket, None)
        else:
            self._tell(ticket)
        error = ticket.error()
        if error is not None:
            raise error
        return ticket

    def turn(self) -> None:
        """Something changed in the admission: wake whose wait is over."""
        decided = self._admission.advance()
        admitted = [ticket for ticket in decided if ticket.outcome is Outcome.ADMITTED]
        if admitted and self._admitted is not None:
            self._admitted(admitted)
        for ticket in decided:
            self._tell(ticket)
            future = self._waiting.get(ticket)
            if future is not None and not future.done():
                future.set_result(None)
        self._set_timer()

    def _soon(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._turning:
            self._turning = True
            loop.call_soon(self._turn_now)

    def _turn_now(self) -> None:
        self._turning = False
        self.turn()

    def _left(self, ticket: Ticket) -> None:
        if ticket.outcome is Outcome.ADMITTED:  # let in and cancelled at the same moment
            self._admission.done(ticket, 0.0)
        else:
            self._admission.leave(ticket)
            if ticket.outcome is Outcome.CLIENT_GONE:
                self._tell(ticket)
        self.turn()

    def _tell(self, ticket: Ticket) -> None:
        if self._decided is not None:
            self._decided(ticket)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        at = self._admission.next_at()
        if at is not None:
            # A millisecond late rather than early: early, nothing would be due and the timer set again at once.
            delay = max(0.0, at - self._clock()) + 0.001
            self._timer = asyncio.get_running_loop().call_later(delay, self.turn)

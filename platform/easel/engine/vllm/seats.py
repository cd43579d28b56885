"""Who is handed to vLLM, and who waits here: priority first, then arrival.

vLLM has a queue of its own, but its length cannot be changed while it runs and what waits in it cannot be told from
what decodes. So no more than `slots` requests are handed over.
"""

from __future__ import annotations

import asyncio
import heapq


class Seats:
    """Lives on the event loop."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.taken = 0
        self._line: list[tuple[int, int, asyncio.Future[None]]] = []
        self._arrivals = 0

    @property
    def waiting(self) -> int:
        """How many wait for a seat."""
        return sum(not seat.done() for _, _, seat in self._line)

    async def take(self, priority: int) -> None:
        """Returns when there is a seat, which is then the caller's until it is given back."""
        seat: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._arrivals += 1
        heapq.heappush(self._line, (-priority, self._arrivals, seat))
        self._fill()
        try:
            await seat
        except asyncio.CancelledError:
            if seat.done() and not seat.cancelled():  # it was given and the caller left in the same moment
                self.give_back()
            else:
                seat.cancel()
            raise

    def give_back(self) -> None:
        """A seat is free."""
        self.taken -= 1
        self._fill()

    def resize(self, slots: int) -> None:
        """From now on so many. Whoever sits keeps the seat."""
        self.slots = slots
        self._fill()

    def _fill(self) -> None:
        while self._line and self.taken < self.slots:
            seat = heapq.heappop(self._line)[2]
            if not seat.done():
                self.taken += 1
                seat.set_result(None)

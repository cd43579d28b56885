"""The wait for a seat: a thin asyncio layer over `easel.router.admission`.

Owns: one future for each request that waits, and one timer. Refuses to know: who is next.
"""

from __future__ import annotations

from collections.abc import Callable

from easel.protocol import GenerationRequest
from easel.router.admission import Admission, Ticket


class Gate:
    """`admitted` is called with all that are let in at the same moment, before any of them goes on."""

    def __init__(self, admission: Admission, admitted: Callable[[list[Ticket]], None] | None = None) -> None: ...

    async def enter(
        self, request: GenerationRequest, work: float, least_s: float = 0.0, deadline_at: float | None = None
    ) -> Ticket:
        """Waits until the request may go. Raises the `EaselError` of its outcome; when cancelled, it leaves the
        queue."""
        raise NotImplementedError

    def turn(self) -> None:
        """Something changed in the admission: wake whose wait is over."""
        raise NotImplementedError

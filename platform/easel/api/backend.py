"""What the edge needs of whatever decodes: one call that answers with events, one that says whether it can.

Owns: the seam between HTTP and the rest. `easel.rayserve` stands behind it in service, a bare engine in tests.
Refuses to know: replicas, handles, engines.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from easel.protocol import Event, GenerationRequest


class Backend(Protocol):
    """Where generation requests go. Called from the event loop that serves HTTP, and never blocks it."""

    def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
        """The events of one request, in the order that `easel.protocol` describes.

        May raise an `EaselError` at the first `__anext__`: nothing was begun then. A failure after that is a `Failed`
        event or an `EaselError`. Closing the iterator (`aclose`), or cancelling the task that waits for its next
        event, cancels the request: its slot is free within one step.
        """
        ...

    async def ready(self) -> str | None:
        """None where requests can be answered now, otherwise a sentence that says why not; it may go to a client."""
        ...

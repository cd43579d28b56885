"""What goes together: requests let in at the same moment that share a prompt are sent to one replica.

There the shared prefix is prefilled once. It takes as many of them as fill the replica to the efficient number of
canvases and no further; the rest goes on to the next best. Nothing is ever held back to wait for company: only what is
let in at the same turn is looked at together, so a lone request goes at once.

Owns: that assignment. Refuses to know: how a single request is placed (`easel.router.placement`), queues, time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from easel.protocol import GenerationRequest
from easel.router.placement import Placement


@dataclass(frozen=True, slots=True)
class Bundle:
    """Requests that go to one replica together."""

    replica: str
    requests: tuple[GenerationRequest, ...]
    shared_tokens: int
    """Of their prompts: what is prefilled once; 0 for a lone request."""


class Batcher:
    """See the module."""

    def __init__(self, placement: Placement) -> None: ...

    def bundle(self, requests: Sequence[tuple[GenerationRequest, float]], candidates: Sequence[str]) -> list[Bundle]:
        """Where each of these (request, expected work), let in at the same moment, goes. Tells placement that they
        were sent. Requests that no replica takes are missing from the answer."""
        raise NotImplementedError

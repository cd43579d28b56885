"""What goes together: requests let in at the same moment that share a prompt's beginning are sent to one replica.

There the shared prefix is prefilled once. It takes as many of them as fill the replica to the efficient number of
canvases and no further; the rest goes on to the next best. Nothing is ever held back to wait for company: only what is
let in at the same turn is looked at together, so a lone request goes at once. Where replicas keep no prefix cache
nothing is gained by company, and everyone is placed for himself.

Owns: that assignment. Refuses to know: how a single request is placed (`easel.router.placement`), queues, time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from easel.prefixes import BLOCK_TOKENS, prefix_hashes
from easel.protocol import GenerationRequest
from easel.router.placement import Placement

Work = tuple[GenerationRequest, float]
"""A request and its expected units of work."""
Avoid = Callable[[GenerationRequest], Collection[str]]
"""Replicas that a request had better not go to."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """Requests that go to one replica together."""

    replica: str
    requests: tuple[GenerationRequest, ...]
    shared_tokens: int
    """Of their prompts: what is prefilled once; 0 for a lone request."""
    cached_tokens: int = 0
    """Of the first one's prompt, believed to be in that replica's prefix cache already."""


class Batcher:
    """See the module."""

    def __init__(self, placement: Placement, avoid: Avoid = lambda request: ()) -> None:
        self._placement = placement
        self._avoid = avoid

    def bundle(self, requests: Sequence[Work], candidates: Sequence[str]) -> list[Bundle]:
        """Where each of these, let in at the same moment, goes. Tells placement that they were sent. Requests that no
        replica takes are missing from the answer."""
        bundles: list[Bundle] = []
        for family, shared in self._families(requests):
            left = list(family)
            while left:
                best = self._placement.place(left[0][0], candidates, self._avoid(left[0][0]), left[0][1])
                if not best:
                    break
                replica = best[0].replica
                # The first goes there whether it is full or not; company, only as far as it is efficient.
                room = max(1, self._placement.room(replica)) if shared else 1
                going, left = left[:room], left[room:]
                for request, work in going:
                    self._placement.sent(request, work, replica)
                names = tuple(request for request, _ in going)
                bundles.append(Bundle(replica, names, shared if len(going) > 1 else 0, best[0].cached_tokens))
        return bundles

    def _families(self, requests: Sequence[Work]) -> list[tuple[list[Work], int]]:
        """Requests that share whole blocks of prompt, with how many tokens they share; those who share nothing alone.
        The order is that of their first."""
        if len(requests) < 2 or not self._placement.caches_prefixes:
            return [([one], 0) for one in requests]
        hashes = [prefix_hashes(request.prompt) for request, _ in requests]
        families: dict[int, list[int]] = {}
        for index, found in enumerate(hashes):
            families.setdefault(found[0] if found else -index - 1, []).append(index)
        grouped = []
        for members in families.values():
            shared = 0
            if len(members) > 1:
                alike = zip(*(hashes[index] for index in members), strict=False)
                for column in alike:
                    if len(set(column)) > 1:
                        break
                    shared += BLOCK_TOKENS
            grouped.append(([requests[index] for index in members], shared))
        return grouped

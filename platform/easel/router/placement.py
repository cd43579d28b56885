"""Which replica a request goes to: the one that will be through with it first.

Cost of a replica = seconds of remaining work there + seconds of prefill that its prefix cache does not save. So a
prefix is followed where it saves more than it costs in waiting, and not a moment longer. Remaining work is what the
replica last reported, less what it will have done since, plus what was sent there since.

Owns: what is known of each replica, and the choice. Refuses to know: handles, and who asks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from random import Random

from easel.protocol import EngineStats, GenerationRequest
from easel.router.capacity import Capacity
from easel.settings import RouterSettings


@dataclass(frozen=True, slots=True)
class Place:
    """A replica as a request sees it."""

    replica: str
    wait_s: float
    """Expected seconds of work that is there already."""
    prefill_s: float
    """Expected seconds of this request's prefill there."""
    free: int
    """Slots that nobody is expected to sit in; may be negative."""
    cached_tokens: int = 0
    """Of the prompt, believed to be in its prefix cache."""

    @property
    def cost_s(self) -> float:
        return self.wait_s + self.prefill_s


class Placement:
    """See the module. One event loop calls it. `clock`: seconds that only go forward."""

    def __init__(self, settings: RouterSettings, clock: Callable[[], float], random: Random | None = None) -> None: ...

    def report(self, replica: str, stats: EngineStats) -> None:
        """What a replica last said of itself. The same snapshot again changes nothing."""
        raise NotImplementedError

    def keep(self, replicas: Collection[str]) -> None:
        """These replicas exist; forget all others. One that has not reported yet counts as ready, idle and of unknown
        speed."""
        raise NotImplementedError

    def place(
        self, request: GenerationRequest, work: float, candidates: Sequence[str], avoid: Collection[str] = ()
    ) -> list[Place]:
        """The candidates, best first: those with a free slot before those without, then by cost. Leaves out those that
        do not take requests, and those in `avoid` as long as any other is left. Empty: nobody takes it now. Does not
        say that it was sent."""
        raise NotImplementedError

    def sent(self, request: GenerationRequest, work: float, replica: str) -> None:
        """The request went to that replica."""
        raise NotImplementedError

    def progress(self, request_id: str, remaining: float) -> None:
        """It still has so many units of work to do there."""
        raise NotImplementedError

    def ended(self, request_id: str) -> None:
        """It is not there any more, however it ended. Does nothing for one that is not known."""
        raise NotImplementedError

    def where(self, request_id: str) -> str | None:
        """The replica that it was sent to and has not ended on."""
        raise NotImplementedError

    def capacity(self) -> Capacity:
        """Of all replicas together that take requests."""
        raise NotImplementedError

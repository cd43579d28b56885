"""What becomes of a request whose engine died under it: once more elsewhere, or never again.

A request that was with a replica when it died is a suspect. If nothing of its answer was sent it is tried once more,
away from other suspects of the same death, so that an innocent one is not there when the guilty one kills again. One
that was there at two deaths is refused from then on, whatever id it comes with.

Owns: suspects, by what they ask for. Refuses to know: how a death is noticed.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from easel.protocol import GenerationRequest


class Verdict(StrEnum):
    """What to do after a death."""

    RETRY = "retry"
    """Try again, not on the replicas of `avoid`."""
    FAIL = "fail"
    """Tell the client: part of the answer was sent."""
    QUARANTINE = "quarantine"
    """Tell the client, and refuse it when it comes again."""


class Quarantine:
    """See the module. `clock`: seconds that only go forward."""

    def __init__(self, clock: Callable[[], float], keep_s: float = 600.0, most: int = 1024) -> None:
        """A suspect is forgotten after `keep_s`; of more than `most` the oldest is."""

    def died(self, request: GenerationRequest, replica: str | None, emitted: bool) -> Verdict:
        """The replica died while it had this request; `emitted`: part of the answer was sent to the client."""
        raise NotImplementedError

    def refuses(self, request: GenerationRequest) -> bool:
        """Whether it was there at two deaths."""
        raise NotImplementedError

    def survived(self, request: GenerationRequest) -> None:
        """It finished: no suspect any more."""
        raise NotImplementedError

    def avoid(self, request: GenerationRequest) -> frozenset[str]:
        """Replicas where other suspects of the same death run now, and those that died under it."""
        raise NotImplementedError

    def runs(self, request: GenerationRequest, replica: str) -> None:
        """A suspect is tried again there."""
        raise NotImplementedError

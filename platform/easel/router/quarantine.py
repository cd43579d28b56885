"""What becomes of a request whose engine died under it: once more elsewhere, or never again.

A request that was with a replica when it died is a suspect. If nothing of its answer was sent it is tried once more,
away from other suspects, so that an innocent one is not there when the guilty one kills again. One that was there at
two deaths is refused from then on, whatever id it comes with.

Owns: suspects, by what they ask for. Refuses to know: how a death is noticed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from hashlib import blake2b

from easel.protocol import GenerationRequest

DEATHS = 2
"""So many deaths are no accident."""


class Verdict(StrEnum):
    """What to do after a death."""

    RETRY = "retry"
    """Try again, not on the replicas of `avoid`."""
    FAIL = "fail"
    """Tell the client: part of the answer was sent."""
    QUARANTINE = "quarantine"
    """Tell the client, and refuse it when it comes again."""


@dataclass(slots=True)
class _Suspect:
    at: float
    deaths: int = 0
    died_with: set[str] = field(default_factory=set)
    """Replicas that died under it."""
    tried: set[str] = field(default_factory=set)
    """Ids of those that were there."""
    runs_on: str | None = None


class Quarantine:
    """See the module. `clock`: seconds that only go forward."""

    def __init__(self, clock: Callable[[], float], keep_s: float = 600.0, most: int = 1024) -> None:
        """A suspect is forgotten after `keep_s`; of more than `most` the oldest is."""
        self._clock = clock
        self._keep_s = keep_s
        self._most = most
        self._suspects: OrderedDict[bytes, _Suspect] = OrderedDict()

    def __len__(self) -> int:
        self._expire()
        return len(self._suspects)

    def died(self, request: GenerationRequest, replica: str | None, emitted: bool) -> Verdict:
        """The replica died while it had this request; `emitted`: part of the answer was sent to the client."""
        self._expire()
        name = _name(request)
        suspect = self._suspects.setdefault(name, _Suspect(self._clock()))
        self._suspects.move_to_end(name)
        # Those that ask for the same, such as the choices of a call, share their replica's one death.
        if replica is None or replica not in suspect.died_with or request.id in suspect.tried:
            suspect.deaths += 1
        suspect.tried.add(request.id)
        suspect.at, suspect.runs_on = self._clock(), None
        if replica is not None:
            suspect.died_with.add(replica)
        while len(self._suspects) > self._most:
            self._suspects.popitem(last=False)
        if suspect.deaths >= DEATHS:
            return Verdict.QUARANTINE
        return Verdict.FAIL if emitted else Verdict.RETRY

    def refuses(self, request: GenerationRequest) -> bool:
        """Whether it was there at two deaths."""
        if not self._suspects:  # nearly always, and hashing a prompt is not free
            return False
        self._expire()
        suspect = self._suspects.get(_name(request))
        return suspect is not None and suspect.deaths >= DEATHS

    def survived(self, request: GenerationRequest) -> None:
        """It was answered: no suspect any more."""
        if self._suspects:
            self._suspects.pop(_name(request), None)

    def runs(self, request: GenerationRequest, replica: str) -> None:
        """It went there. Does nothing for who is no suspect."""
        if self._suspects and (suspect := self._suspects.get(_name(request))) is not None:
            suspect.runs_on = replica

    def left(self, request: GenerationRequest) -> None:
        """It is nowhere any more."""
        if self._suspects and (suspect := self._suspects.get(_name(request))) is not None:
            suspect.runs_on = None

    def away(self, request: GenerationRequest, replicas: Sequence[str]) -> list[str]:
        """For a suspect: those of the replicas where no other suspect runs; where that leaves none it had better wait.
        For anybody else: all of them."""
        if not self._suspects:
            return list(replicas)
        name = _name(request)
        if name not in self._suspects:
            return list(replicas)
        taken = {suspect.runs_on for other, suspect in self._suspects.items() if other != name}
        return [replica for replica in replicas if replica not in taken]

    def avoid(self, request: GenerationRequest) -> frozenset[str]:
        """For a suspect: replicas where others run now, and those that died under it. For anybody else: none."""
        if not self._suspects:
            return frozenset()
        name = _name(request)
        mine = self._suspects.get(name)
        if mine is None:
            return frozenset()
        running = {suspect.runs_on for other, suspect in self._suspects.items() if other != name and suspect.runs_on}
        return frozenset(running | mine.died_with)

    def _expire(self) -> None:
        oldest = self._clock() - self._keep_s
        while self._suspects and next(iter(self._suspects.values())).at < oldest:
            self._suspects.popitem(last=False)


def _name(request: GenerationRequest) -> bytes:
    """The same for all that ask for the same, whoever asks and whatever the seed: what may kill an engine is what is
    computed. A deadline differs with each try."""
    asked = (
        request.prompt,
        request.max_tokens,
        request.min_tokens,
        request.resume,
        request.pinned,
        request.stop_token_ids,
        request.ignore_eos,
        replace(request.sampling, seed=0),
        replace(request.denoising, deadline_at=None),
    )
    return blake2b(repr(asked).encode(), digest_size=16).digest()

"""Which replica a request goes to: the one that will be through with it first.

Cost of a replica = seconds until a slot is free + seconds of prefill that its prefix cache does not save + seconds of
denoising beside those who are there. So a prefix is followed where it saves more than it costs in waiting, and not a
moment longer. How many sit beside it, and for how long, comes from the number of requests there and the work that they
have left: as last reported, less what is done since, plus what was sent there since.

Neither number would do alone. Least remaining work sends a short request where five others slow its every step, because
they will soon be done; fewest requests sends it to a full replica of which no slot comes free for long.

Owns: what is known of each replica, and the choice. Refuses to know: handles, and who asks.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from random import Random

from easel.prefixes import BLOCK_TOKENS, prefix_hashes
from easel.protocol import EngineState, EngineStats, GenerationRequest, StepTimeModel, prefill_work
from easel.router.capacity import PREFILL_A_STEP, Capacity, efficient_canvases, total, work_rate
from easel.settings import RouterSettings

OLDEST_S = 5.0
"""Statistics are never taken to be older than this when they arrive: beyond it two hosts' clocks differ."""
MOST_PREFIXES = 4096
"""Blocks of prompts sent to a replica that are remembered."""
UNKNOWN_SLOTS = 1
"""Slots of a replica that has not said anything yet."""
TYPICAL_WORK = 27.0
"""Units of work of a request of which nothing is known: a canvas."""
SOME_STEP_TIME = StepTimeModel(0.01, 0.002, 1)
"""Where no replica's is known: only its shape matters, since it is the same for all then."""


@dataclass(frozen=True, slots=True)
class Place:
    """A replica as a request sees it. Seconds are expected ones."""

    replica: str
    work: float
    """Units of work that are there already."""
    free: int
    """Slots that nobody is expected to sit in; may be negative."""
    wait_s: float
    """Until a slot is free."""
    prefill_s: float
    """Of this request's prompt, what is cached left out."""
    denoise_s: float
    """Of its denoising, beside those who are there as long as they are."""
    cached_tokens: int = 0
    """Of the prompt, believed to be in its prefix cache."""

    @property
    def cost_s(self) -> float:
        """Until it is through."""
        return self.wait_s + self.prefill_s + self.denoise_s


@dataclass(slots=True)
class _Sent:
    replica: str
    remaining: float
    at: float


@dataclass(slots=True)
class _Replica:
    stats: EngineStats | None = None
    taken: float = 0.0
    """When the statistics were taken, on our clock."""
    digest: frozenset[int] = frozenset()
    sent: dict[str, _Sent] = field(default_factory=dict)
    left: int = 0
    """Requests in the statistics that have ended since."""
    left_work: float = 0.0
    """What they would still have had to do."""
    prefixes: OrderedDict[int, None] = field(default_factory=OrderedDict)

    def takes(self) -> bool:
        return self.stats is None or self.stats.state is EngineState.READY


class Placement:
    """See the module. One event loop calls it.

    Args:
        clock: seconds that only go forward.
        wall: Unix time, to see how old statistics are on arrival.
    """

    def __init__(
        self,
        settings: RouterSettings,
        clock: Callable[[], float],
        random: Random | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._wall = wall
        self._random = random or Random()
        self._replicas: dict[str, _Replica] = {}
        self._sent: dict[str, _Sent] = {}
        self._capacity = Capacity()
        self._step_bound: int | None = None
        self._typical = SOME_STEP_TIME

    @property
    def replicas(self) -> list[str]:
        """All that exist."""
        return list(self._replicas)

    @property
    def caches_prefixes(self) -> bool:
        """Whether any replica has said that it holds prefixes."""
        return any(known.digest for known in self._replicas.values())

    @property
    def capacity(self) -> Capacity:
        """Of all replicas together that take requests."""
        return self._capacity

    @property
    def step_bound(self) -> int | None:
        """The lowest bound on denoising steps of those that take requests. Where none is there, what held last, since
        the next one is told the same. None: nobody has said one."""
        return self._step_bound

    def report(self, replica: str, stats: EngineStats) -> None:
        """What a replica last said of itself. The same snapshot again changes nothing."""
        known = self._replicas.setdefault(replica, _Replica())
        if known.stats is not None and stats.taken_at <= known.stats.taken_at and stats.state == known.stats.state:
            return
        known.stats = stats
        known.taken = self._clock() - min(max(self._wall() - stats.taken_at, 0.0), OLDEST_S)
        known.digest = frozenset(stats.prefix_digest)
        known.left, known.left_work = 0, 0.0
        self._count()

    def keep(self, replicas: Collection[str]) -> None:
        """These replicas exist; forget all others. One that has not reported yet counts as ready, idle and of unknown
        speed."""
        for gone in set(self._replicas) - set(replicas):
            for request_id in self._replicas.pop(gone).sent:
                del self._sent[request_id]
        for replica in replicas:
            self._replicas.setdefault(replica, _Replica())
        self._count()

    def place(
        self,
        request: GenerationRequest,
        candidates: Sequence[str],
        avoid: Collection[str] = (),
        work: float = TYPICAL_WORK,
    ) -> list[Place]:
        """The candidates, best first: those with a free slot before those without, then by cost. Leaves out those that
        do not take requests, and those in `avoid` as long as any other is left. Empty: nobody takes it now. Does not
        say that it was sent. `work`: units that it is expected to take."""
        able = [name for name in candidates if self._known(name).takes()]
        able = [name for name in able if name not in avoid] or able
        hashes: tuple[int, ...] = ()
        if any(self._known(name).digest for name in able):
            hashes = prefix_hashes(request.prompt)
        looked_at, rest = self._sample(able, hashes)
        places = [self._place(request, work, name, hashes) for name in looked_at]
        self._random.shuffle(places)  # equals in a different order each time, and by each ingress
        places.sort(key=lambda place: (place.free <= 0, place.cost_s))
        return places + [self._place(request, work, name, hashes) for name in rest]

    def room(self, replica: str) -> int:
        """How many more canvases fill it to the efficient number; negative where there are more already."""
        known = self._known(replica)
        if known.stats is None:
            return UNKNOWN_SLOTS - len(known.sent)
        efficient = efficient_canvases(known.stats.step_time, known.stats.slots)
        return efficient - (known.stats.slots - self._free(known))

    def sent(self, request: GenerationRequest, work: float, replica: str) -> None:
        """The request goes to that replica, with so much work to do. Where it was said to go elsewhere before, it does
        not any more."""
        self.ended(request.id)
        known = self._known(replica)
        self._replicas[replica] = known
        self._sent[request.id] = known.sent[request.id] = _Sent(replica, work, self._clock())
        if known.digest:
            for one in prefix_hashes(request.prompt):
                known.prefixes[one] = None
                known.prefixes.move_to_end(one)
            while len(known.prefixes) > MOST_PREFIXES:
                known.prefixes.popitem(last=False)

    def progress(self, request_id: str, remaining: float) -> None:
        """It still has so many units of work to do there."""
        if request_id in self._sent:
            self._sent[request_id].remaining = remaining

    def ended(self, request_id: str) -> None:
        """It is not there any more, however it ended. Does nothing for one that is not known."""
        sent = self._sent.pop(request_id, None)
        if sent is None:
            return
        known = self._replicas[sent.replica]
        del known.sent[request_id]
        if sent.at < known.taken:
            known.left += 1
            known.left_work += sent.remaining

    def where(self, request_id: str) -> str | None:
        """The replica that it was sent to and has not ended on."""
        sent = self._sent.get(request_id)
        return sent.replica if sent else None

    def _known(self, replica: str) -> _Replica:
        return self._replicas.get(replica) or _Replica()

    def _count(self) -> None:
        silent = EngineStats(EngineState.READY, 0.0, slots=UNKNOWN_SLOTS)
        stats = [known.stats or silent for known in self._replicas.values()]
        self._capacity = total(stats, self._settings.surplus_requests)
        self._typical = next((one.step_time for one in stats if one.step_time.samples), SOME_STEP_TIME)
        heard = [known.stats for known in self._replicas.values() if known.stats is not None and known.takes()]
        if heard:
            bounds = [one.max_denoising_steps for one in heard if one.max_denoising_steps is not None]
            self._step_bound = min(bounds, default=None)

    def _sample(self, able: list[str], hashes: tuple[int, ...]) -> tuple[list[str], list[str]]:
        """Who is compared, and who comes after: with many replicas two at random, and those with the prefix."""
        if len(able) <= self._settings.choices_of_two_above:
            return able, []
        chosen = set(self._random.sample(able, 2))
        if hashes:
            held = {name: self._cached(self._known(name), hashes) for name in able}
            best = max(held.values())
            if best:
                holders = [name for name in able if held[name] == best]
                chosen.update(self._random.sample(holders, min(2, len(holders))))
        rest = [name for name in able if name not in chosen]
        self._random.shuffle(rest)
        return [name for name in able if name in chosen], rest

    def _place(self, request: GenerationRequest, work: float, name: str, hashes: tuple[int, ...]) -> Place:
        known = self._known(name)
        slots, step_time = self._speed(known)
        there, free, cached = self._work(known), self._free(known), self._cached(known, hashes)
        others = slots - free
        prefill = prefill_work(max(0, len(request.prompt) - cached))
        steps = max(1.0, work - prefill_work(len(request.prompt)))
        # Those who are there have so many steps left on average, and end at any of them with the same chance: so many
        # sit beside this request over all of its own steps.
        left = max(1.0, there / others) if others > 0 else 1.0
        beside = min(others * left / steps * (1.0 - math.exp(-steps / left)), slots - 1.0)
        # With every slot taken one falls free each `left / slots` steps, and those who came before are next.
        wait = max(0, 1 - free) * left / slots
        return Place(
            replica=name,
            work=there,
            free=free,
            wait_s=wait * step_time.seconds(slots),
            prefill_s=prefill / PREFILL_A_STEP * step_time.seconds(PREFILL_A_STEP + beside),
            denoise_s=steps * step_time.seconds(1.0 + beside),
            cached_tokens=cached,
        )

    def _speed(self, known: _Replica) -> tuple[int, StepTimeModel]:
        """Its slots, and its step time: that of another one as long as its own is not known, or any."""
        if known.stats is not None and known.stats.step_time.samples:
            return max(1, known.stats.slots), known.stats.step_time
        slots = UNKNOWN_SLOTS if known.stats is None else max(1, known.stats.slots)
        return slots, self._typical

    def _work(self, known: _Replica) -> float:
        """Expected units of work there now: as reported, less what is done since, plus what was sent since."""
        since = sum(sent.remaining for sent in known.sent.values() if sent.at >= known.taken)
        if known.stats is None:
            return since
        busy = known.stats.sequences + known.stats.waiting - known.left
        rate = work_rate(known.stats, max(0, busy)) if busy > 0 else 0.0
        then = known.stats.remaining_work - known.left_work - rate * (self._clock() - known.taken)
        return since + max(then, float(max(0, busy)))  # who has not ended has a step to do at least

    def _free(self, known: _Replica) -> int:
        since = sum(sent.at >= known.taken for sent in known.sent.values())
        if known.stats is None:
            return UNKNOWN_SLOTS - since
        return known.stats.slots - max(0, known.stats.sequences + known.stats.waiting - known.left) - since

    def _cached(self, known: _Replica, hashes: tuple[int, ...]) -> int:
        blocks = 0
        for one in hashes:
            if one not in known.digest and one not in known.prefixes:
                break
            blocks += 1
        return blocks * BLOCK_TOKENS

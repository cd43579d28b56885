"""Load as published: requests that arrive at random and answers whose canvases take 10 to 48 steps.

Owns: the draws. Refuses to know: what serves them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

from easel.protocol import GROUP_ROWS, Denoising, GenerationRequest, Sampling
from easel.router.estimates import PUBLISHED_CAP, PUBLISHED_CAPPED, PUBLISHED_FIRST, PUBLISHED_LAST


def published_steps(random: Random) -> int:
    """Denoising steps of a canvas: mean 26.6, a fifth of them at the cap."""
    if random.random() < PUBLISHED_CAPPED:
        return PUBLISHED_CAP
    return random.randint(PUBLISHED_FIRST, PUBLISHED_LAST)


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of request."""

    canvases: int = 1
    """Most of its answer, in canvases: `max_tokens` says so."""
    ends: float = 0.0
    """Chance that the answer ends with a canvas before that."""
    prompt_tokens: int = 300
    shared_tokens: int = 0
    """Of the prompt, the same for all of this kind."""
    tenant: str = ""
    tier: str = ""
    priority: int = 0
    max_steps: int | None = None
    deadline_s: float | None = None
    queue_timeout_s: float | None = None
    weight: float = 1.0
    """How often it comes, against the others."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request to come."""

    at: float
    request: GenerationRequest
    steps: Sequence[int]
    """Denoising steps of each canvas of its answer."""

    @property
    def work(self) -> float:
        """Units of work that it takes without a prefix in the cache and without a deadline."""
        cap = self.request.denoising.max_steps or PUBLISHED_CAP
        steps = sum(min(steps, cap) for steps in self.steps)
        return steps + len(self.steps) - 1 + len(self.request.prompt) / GROUP_ROWS


def arrivals(kinds: Sequence[Kind], per_s: float, until: float, seed: int = 0, start: float = 0.0) -> Iterator[Arrival]:
    """A Poisson stream of `per_s` requests a second, of these kinds."""
    random = Random(seed)
    at, number = start, 0
    weights = [kind.weight for kind in kinds]
    while True:
        at += random.expovariate(per_s)
        if at >= until:
            return
        kind = random.choices(range(len(kinds)), weights)[0]
        yield arrival(kinds[kind], at, f"{seed}-{number}", random, kind)
        number += 1


def arrival(kind: Kind, at: float, name: str, random: Random, salt: int = 0) -> Arrival:
    """One request of a kind."""
    steps = [published_steps(random)]
    while len(steps) < kind.canvases and random.random() >= kind.ends:
        steps.append(published_steps(random))
    shared = [1_000 + salt] * kind.shared_tokens
    own = [random.randrange(1_000) for _ in range(kind.prompt_tokens - kind.shared_tokens)]
    request = GenerationRequest(
        id=name,
        group=name,
        prompt=tuple(shared + own),
        max_tokens=kind.canvases * GROUP_ROWS,
        tenant=kind.tenant,
        tier=kind.tier,
        priority=kind.priority,
        queue_timeout_s=kind.queue_timeout_s,
        sampling=Sampling(seed=random.getrandbits(32)),
        denoising=Denoising(
            max_steps=kind.max_steps, deadline_at=None if kind.deadline_s is None else at + kind.deadline_s
        ),
    )
    return Arrival(at, request, tuple(steps))


def later(one: Arrival, at: float, name: str) -> Arrival:
    """The same once more, as a client that tries again sends it."""
    request = replace(one.request, id=name)
    if request.denoising.deadline_at is not None:
        deadline = at + request.denoising.deadline_at - one.at
        request = replace(request, denoising=replace(request.denoising, deadline_at=deadline))
    return Arrival(at, request, one.steps)

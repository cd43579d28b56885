"""What each key may use a minute, and at once.

A bucket for each limit holds a minute's worth and fills at the rate of the limit. What a call will take is not known
when it comes: its answer's tokens and denoising steps are charged as canvases are committed, and may bring a bucket
below zero; then nothing more goes until that is paid back. So nothing that was begun is cut, and over time no more is
used than the limit says.

A bucket of our own rather than a library's: those at hand read the machine's clock and know no charge after the fact.

Each ingress enforces its part: a limit over the number of live ingresses. HAProxy deals calls out evenly, so a key gets
what it may; a client that holds on to one connection gets that ingress's part.

Owns: buckets and counts by key. Refuses to know: whose key it is, HTTP.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from easel.errors import RateLimited
from easel.settings import KeyLimits

MINUTE_S = 60.0
BUSY_RETRY_S = 1.0
"""Retry-After where too many calls run at once: one may end at any time."""


@dataclass(slots=True)
class Bucket:
    """Tokens of one limit. `size` a minute."""

    size: float
    level: float
    at: float

    def fill(self, size: float, now: float) -> None:
        """Brings it up to now. A new size takes the level along in proportion."""
        if size != self.size:
            self.level *= size / self.size
            self.size = size
        self.level = min(size, self.level + (now - self.at) * size / MINUTE_S)
        self.at = now

    def wait_s(self, wanted: float) -> float:
        """Seconds until it holds so much, or is full."""
        return max(0.0, min(wanted, self.size) - self.level) * MINUTE_S / self.size


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a key stands with one limit."""

    name: str
    """`requests`, `tokens` or `denoising-steps`."""
    limit: int
    """A minute."""
    remaining: int
    reset_s: float
    """Until all of it is there again."""


@dataclass(slots=True)
class _Account:
    buckets: dict[str, Bucket] = field(default_factory=dict)
    running: int = 0


class Grant:
    """A call that may run."""

    def __init__(self, limiter: Limiter, key: str) -> None:
        self._limiter = limiter
        self._key = key
        self._ended = False

    def used(self, tokens: int, steps: int) -> None:
        """A canvas was committed: so many tokens of an answer, after so many denoising steps."""
        self._limiter.charge(self._key, tokens, steps)

    def end(self) -> None:
        """The call has ended, however it did. Again does nothing."""
        if not self._ended:
            self._ended = True
            self._limiter.ended(self._key)


class Limiter:
    """See the module. `clock`: seconds that only go forward."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._parts = 1
        self._accounts: dict[str, _Account] = {}

    def share(self, ingresses: int) -> None:
        """How many ingresses the limits are divided among."""
        self._parts = max(1, ingresses)

    def take(self, key: str, limits: KeyLimits, prompt_tokens: int) -> Grant:
        """Lets a call in. Raises `RateLimited` that says which limit, and when to come back."""
        account = self._accounts.setdefault(key, _Account())
        most = limits.max_concurrent
        if most is not None and account.running >= max(1, math.ceil(most / self._parts)):
            raise RateLimited(
                f"Rate limit reached for concurrent requests: limit {most}. Please wait for one of them to end.",
                None,
                BUSY_RETRY_S,
            )
        # Of steps nothing is known yet: anything at all has to be there.
        wanted = {"requests": 1.0, "tokens": float(prompt_tokens), "denoising-steps": 1.0}
        buckets = self._buckets(account, limits)
        for name, bucket in buckets.items():
            wait_s = bucket.wait_s(max(1.0, wanted[name]))
            if wait_s > 0.0:
                raise RateLimited(
                    f"Rate limit reached for {name.replace('-', ' ')} per minute: limit {_limits(limits)[name]}. "
                    f"Please try again in {wait_s:.2f}s.",
                    None,
                    wait_s,
                )
        for name in ("requests", "tokens"):
            if name in buckets:
                buckets[name].level -= wanted[name]
        account.running += 1
        return Grant(self, key)

    def charge(self, key: str, tokens: int, steps: int) -> None:
        """Take so much from the buckets that a key with calls has, below zero if need be. Which ones there are is what
        the newest call found: limits may have changed since an older one began."""
        buckets, now = self._accounts[key].buckets, self._clock()
        for name, used in (("tokens", tokens), ("denoising-steps", steps)):
            if name in buckets:
                buckets[name].fill(buckets[name].size, now)
                buckets[name].level -= used

    def standing(self, key: str, limits: KeyLimits) -> list[Standing]:
        """Where a key stands with each limit that it has, of the whole service as far as this ingress can tell."""
        found = []
        for name, bucket in self._buckets(self._accounts.setdefault(key, _Account()), limits).items():
            remaining = math.floor(max(0.0, bucket.level) * self._parts)
            found.append(Standing(name, _limits(limits)[name], remaining, bucket.wait_s(bucket.size)))
        return found

    def running(self, key: str) -> int:
        """Calls of a key that have not ended."""
        return self._accounts[key].running if key in self._accounts else 0

    def ended(self, key: str) -> None:
        """One of its calls has."""
        self._accounts[key].running -= 1

    def keep(self, keys: set[str]) -> None:
        """These keys exist; forget the others, but for those with calls that run."""
        for gone in [key for key, one in self._accounts.items() if key not in keys and not one.running]:
            del self._accounts[gone]

    def _buckets(self, account: _Account, limits: KeyLimits) -> dict[str, Bucket]:
        """The buckets of the limits that are set, brought up to now."""
        now = self._clock()
        sizes = {name: max(1.0, limit / self._parts) for name, limit in _limits(limits).items()}
        for name in set(account.buckets) - set(sizes):
            del account.buckets[name]
        for name, size in sizes.items():
            bucket = account.buckets.setdefault(name, Bucket(size, size, now))
            bucket.fill(size, now)
        return {name: account.buckets[name] for name in sizes}


def _limits(limits: KeyLimits) -> dict[str, int]:
    """Those that are set, by name."""
    found = {
        "requests": limits.requests_per_minute,
        "tokens": limits.tokens_per_minute,
        "denoising-steps": limits.denoising_steps_per_minute,
    }
    return {name: limit for name, limit in found.items() if limit is not None}

"""Learned survival: how likely something that has come so far ends here.

A curve keeps, for each index, how often it was reached and how often things ended there, newer ones counting more.
Where it has seen little it says what its parent says. Things that were cut off (a cap, a client that left) count as
reached and not as ended, so a cap does not look like an end.

Owns: counting, borrowing, and the mean of what is left. Refuses to know: what it is that ends.
"""

from __future__ import annotations

from collections.abc import Sequence

KEEP = 0.995
"""What a count is multiplied by when its index is reached again: about two hundred count."""
BORROWED = 8.0
"""As many observations of its own as a parent's word is worth."""
STALE_AFTER = 8
"""A curve is computed anew after so many observations, or as many as it has if they are fewer."""


class Curve:
    """Indices from 0 to `length` - 1; what goes on beyond counts at the last one."""

    def __init__(self, length: int, parent: Curve | None = None, prior: Sequence[float] = ()) -> None:
        """Without a parent `prior` is what is believed at first, one chance for each index."""
        self.length = length
        self.observed = 0
        self._parent = parent
        self._prior = tuple(prior)
        self._reached = [0.0] * length
        self._ended = [0.0] * length
        self._chances: tuple[float, ...] = ()
        self._means: dict[int, tuple[float, ...]] = {}
        self._stale = 0

    def learn(self, count: int, ended: bool) -> None:
        """Something went through `count` indices, the last of which was its end if `ended`. `count` of 0 is nothing."""
        for index in range(min(count, self.length)):
            self._reached[index] = self._reached[index] * KEEP + 1.0
            self._ended[index] *= KEEP
        if ended and count:
            self._ended[min(count, self.length) - 1] += 1.0
        self.observed += 1
        self._stale += 1
        if self._parent is not None:
            self._parent.learn(count, ended)

    def chances(self) -> tuple[float, ...]:
        """Of ending at each index, once it is reached."""
        if not self._chances or self._stale >= min(STALE_AFTER, self.observed):
            before = self._parent.chances() if self._parent else self._prior
            self._chances = tuple(
                (ended + BORROWED * belief) / (reached + BORROWED)
                for ended, reached, belief in zip(self._ended, self._reached, before, strict=True)
            )
            self._means.clear()
            self._stale = 0
        return self._chances

    def left(self, gone: int, cap: int) -> float:
        """How many indices are still to come, on average, for what has gone through `gone` of at most `cap` and has not
        ended. At least 1 below the cap, 0 at it."""
        if gone >= cap:
            return 0.0
        self.chances()
        means = self._means.get(cap)
        if means is None:
            if len(self._means) > 32:
                self._means.clear()
            means = self._means[cap] = self._mean(cap)
        return means[gone] if gone < len(means) else self._tail(cap - gone)

    def _mean(self, cap: int) -> tuple[float, ...]:
        """For each count of indices gone, what is left on average. Backwards: one, and the rest if it does not end."""
        within = min(cap, self.length)
        left = self._tail(cap - within)
        means = [0.0] * within
        for index in range(within - 1, -1, -1):
            left = 1.0 + (1.0 - self._chances[index]) * left
            means[index] = left
        return tuple(means)

    def _tail(self, more: int) -> float:
        """What is left of `more` indices beyond the last one, each of which ends like that one."""
        chance = self._chances[-1]
        return float(more) if chance <= 0.0 else (1.0 - (1.0 - chance) ** more) / chance

"""How long steps take, learned from those done: `base_s + per_group_s * groups`, recent steps counting most.

A weighted least-squares line over forgetting sums. Before two sizes of step were seen there is no slope to learn, and
the mean has to do. Refuses to know: clocks, and what a step does.
"""

from __future__ import annotations

from easel.protocol import StepTimeModel

KEEP = 0.98
"""What a sample's weight is multiplied by with each later one: about fifty count."""


class StepTimer:
    """Feed it steps, ask it for the next."""

    def __init__(self) -> None:
        self._weight = self._x = self._y = self._xx = self._xy = 0.0
        self._samples = 0

    def took(self, groups: float, seconds: float) -> None:
        """A step over so many groups of 256 rows took so long."""
        self._weight, self._x, self._y = KEEP * self._weight + 1, KEEP * self._x + groups, KEEP * self._y + seconds
        self._xx, self._xy = KEEP * self._xx + groups * groups, KEEP * self._xy + groups * seconds
        self._samples += 1

    @property
    def model(self) -> StepTimeModel:
        """The line. Neither part is ever negative."""
        if not self._samples:
            return StepTimeModel()
        mean_x, mean_y = self._x / self._weight, self._y / self._weight
        spread = self._xx / self._weight - mean_x * mean_x
        if spread <= 1e-9 * mean_x * mean_x:
            return StepTimeModel(0.0, mean_y / mean_x if mean_x else 0.0, self._samples)
        slope = max(0.0, (self._xy / self._weight - mean_x * mean_y) / spread)
        base = mean_y - slope * mean_x
        if base < 0.0:
            base, slope = 0.0, mean_y / mean_x
        return StepTimeModel(base, slope, self._samples)

"""How long steps take, learned from those done: `base_s + per_group_s * groups`, recent steps counting most.

A weighted least-squares line over forgetting sums. Before two sizes of step were seen there is no slope to learn, and
the mean has to do. One step that stood still for seconds would be all that such a line knows for hundreds of steps, so
what is far from any line through the mean is not taken as it is. Refuses to know: clocks, and what a step does.
"""

from __future__ import annotations

from easel.protocol import StepTimeModel

KEEP = 0.98
"""What a sample's weight is multiplied by with each later one: about fifty count."""

FAR = 8.0
"""A step that takes so many times as long as it should counts as that many times: if it is the rule from now on, the
next ones say so. One that takes less than such a part shows that those before were no rule: nothing makes a step quick
by chance."""


class StepTimer:
    """Feed it steps, ask it for the next."""

    def __init__(self) -> None:
        self._weight = self._x = self._y = self._xx = self._xy = 0.0
        self._samples = 0

    def took(self, groups: float, seconds: float) -> None:
        """A step over so many groups of 256 rows took so long."""
        if self._weight:
            mean_x, mean_y = self._x / self._weight, self._y / self._weight
            ratio = groups / mean_x if mean_x else 1.0
            # Between these is every line through the mean of which neither part is negative.
            if seconds < mean_y * min(1.0, ratio) / FAR:
                self._weight = self._x = self._y = self._xx = self._xy = 0.0
            elif mean_y:
                seconds = min(seconds, mean_y * max(1.0, ratio) * FAR)
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

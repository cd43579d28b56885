"""What an engine's steps came to: kept cheaply by the thread that does them, read by any other.

Owns: the last steps, and sums over canvas positions by band of denoising steps. Refuses to know: what becomes of the
numbers. Costs microseconds a step, where a histogram of Ray's costs as much for each value: it is
`easel.telemetry.statistics` that turns them into metrics, once a second.
"""

from __future__ import annotations

from collections.abc import Sequence

from easel.protocol import DenoisedPositions, StepTaken
from easel.telemetry.metric import step_band

MOST_STEPS = 1024
"""Steps that are remembered. A step takes a millisecond at least."""


class StepTally:
    """See the module. One thread writes; reading needs no lock."""

    def __init__(self) -> None:
        self.count = 0
        """Steps done."""
        self._recent: list[StepTaken] = []
        self._denoised: dict[str, DenoisedPositions] = {}

    @property
    def steps(self) -> tuple[StepTaken, ...]:
        """The last ones, oldest first."""
        return tuple(self._recent[-MOST_STEPS:])

    @property
    def denoised(self) -> dict[str, DenoisedPositions]:
        """By band of denoising steps, since the start."""
        return dict(self._denoised)

    def took(self, seconds: float, expected_s: float, groups: float, canvases: int, slots: int) -> None:
        """A step was done. See `StepTaken`."""
        self.count += 1
        self._recent.append(StepTaken(self.count, seconds, expected_s, groups, canvases, slots))
        if len(self._recent) >= 2 * MOST_STEPS:
            self._recent = self._recent[-MOST_STEPS:]  # replaced whole: a reader has the one or the other

    def canvas(self, step: int, entropies: Sequence[float], accepted: Sequence[bool]) -> None:
        """One canvas went through its denoising step `step` (from 1). Position by position."""
        self.positions(step, len(entropies), sum(accepted), sum(entropies))

    def positions(self, step: int, positions: int, accepted: int, nats: float) -> None:
        """The same, added up."""
        band = step_band(step)
        before = self._denoised.get(band, _NONE)
        self._denoised[band] = DenoisedPositions(
            before.positions + positions, before.accepted + accepted, before.nats + nats
        )


_NONE = DenoisedPositions()

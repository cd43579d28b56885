"""What a client is told of a canvas while it is denoised, and once more when it is committed.

Owns: what the client knows already, so that only what changed is told, and that applying every revision in order ends
in the tokens that were committed, whichever states in between were skipped.
Refuses to know: JSON, how often an engine tells of progress, who reads how fast (`easel.api.unread`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from easel.api.choices import Delta
from easel.protocol import CanvasCommitted, CanvasProgress


@dataclass(frozen=True, slots=True)
class Change:
    """What is now on one position."""

    position: int
    """Within the canvas, from 0."""
    token_id: int
    text: str
    """Of that token alone."""
    entropy: float
    """Nats. On a committed canvas the mean of the canvas: what a single position had at the last step is not known."""
    accepted: bool


@dataclass(frozen=True, slots=True)
class Revision:
    """What changed on a canvas since the revision before it; the first one of a canvas tells everything known."""

    canvas: int
    step: int
    canvas_length: int
    changes: tuple[Change, ...]
    commit: CanvasCommitted | None = None
    """On the last one of a canvas: its tokens that count, at positions 0, 1, 2 and so on."""


class Told:
    """What one choice's client knows of the present canvas: at most one entry for each position."""

    def __init__(self, canvas_length: int, token_text: Callable[[int], str]) -> None:
        self._canvas_length = canvas_length
        self._token_text = token_text
        self._canvas = -1
        self._known: dict[int, tuple[int, float, bool]] = {}

    def revision(self, delta: Delta) -> Revision | None:
        """What to tell of a delta: something for those with progress or a canvas, None for all others."""
        if delta.canvas is not None:
            return self._committed(delta.canvas)
        if delta.progress is not None:
            return self._progress(delta.progress)
        return None

    def _progress(self, progress: CanvasProgress) -> Revision:
        self._turn_to(progress.canvas)
        states = zip(progress.token_ids, progress.entropies, progress.accepted, strict=True)
        changes = []
        for position, state in zip(progress.positions, states, strict=True):
            if self._known.get(position) != state:  # merging may have led back to what was told
                self._known[position] = state
                changes.append(self._change(position, *state))
        return Revision(progress.canvas, progress.step, self._canvas_length, tuple(changes))

    def _committed(self, canvas: CanvasCommitted) -> Revision:
        self._turn_to(canvas.canvas)
        changes = tuple(
            self._change(position, token, canvas.mean_entropy, True)
            for position, token in enumerate(canvas.token_ids)
            if position not in self._known or self._known[position][0] != token
        )
        self._known.clear()
        return Revision(canvas.canvas, canvas.steps, self._canvas_length, changes, canvas)

    def _turn_to(self, canvas: int) -> None:
        if canvas != self._canvas:
            self._canvas = canvas
            self._known.clear()

    def _change(self, position: int, token: int, entropy: float, accepted: bool) -> Change:
        return Change(position, token, self._token_text(token), entropy, accepted)

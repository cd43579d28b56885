"""A canvas as a progress stream tells it: what is on each position, and which positions changed their mind.

Owns: applying revisions in order, and the figures of an answer. Refuses to know: colours, HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Cell:
    """One position."""

    token_id: int
    text: str
    entropy: float
    """Nats."""
    accepted: bool
    flips: int = 0
    """How often its token changed."""
    moved: bool = False
    """It changed with the latest revision."""


@dataclass(frozen=True, slots=True)
class Canvas:
    """One canvas after a revision. `cells` has one entry a position, None where nothing is known: noise."""

    number: int
    step: int
    cells: tuple[Cell | None, ...]
    committed: bool = False
    tokens: int | None = None
    """Once committed: how many positions, from 0, belong to the answer."""

    @classmethod
    def blank(cls, number: int, length: int) -> Canvas:
        return cls(number, 0, (None,) * length)

    def revised(self, progress: Mapping[str, Any]) -> Canvas:
        """With an `easel.progress` object applied; positions outside of the canvas are passed over."""
        cells = [cell and replace(cell, moved=False) for cell in self.cells]
        for change in progress["changes"]:
            position = change["position"]
            if not 0 <= position < len(cells):
                continue
            before, token = cells[position], change["token_id"]
            flipped = before is not None and before.token_id != token
            cells[position] = Cell(
                token,
                str(change["text"]),
                float(change["entropy"]),
                bool(change["accepted"]),
                (before.flips if before else 0) + flipped,
                flipped,
            )
        committed = bool(progress["committed"])
        return Canvas(self.number, progress["step"], tuple(cells), committed, progress.get("tokens"))


@dataclass(slots=True)
class Answer:
    """One answer while it comes: its text so far, the canvas being denoised, and what it took."""

    text: str = ""
    """Committed, never taken back."""
    canvas: Canvas | None = None
    steps: list[int] = field(default_factory=list)
    """Denoising steps of each committed canvas."""
    stops: list[str] = field(default_factory=list)
    """Why denoising of each stopped."""
    tokens: int | None = None
    tier: str = ""
    """The one that was used, as the service says."""
    finish: str = ""
    first_s: float | None = None
    """From the request to the first committed text."""
    seconds: float = 0.0
    """From the request to the latest event."""
    states: int = 0
    """Revisions of canvases that were told."""

    def take(self, event: Mapping[str, Any], seconds: float) -> None:
        """Apply one event of a stream, of choice 0, that came `seconds` after the request was sent."""
        self.seconds = seconds
        progress = (event.get("easel") or {}).get("progress")
        if progress is not None and progress["choice"] == 0:
            self._revise(progress)
        if event.get("usage"):
            self.tokens = event["usage"]["completion_tokens"]
            self.tier = str((event["usage"].get("easel") or {}).get("tier") or "")
        for choice in event.get("choices") or ():
            if choice.get("index", 0) != 0:
                continue
            text = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
            if text:
                self.text += text
                self.canvas = None  # its text is in the answer now
                self.first_s = seconds if self.first_s is None else self.first_s
            if choice.get("finish_reason"):
                own = choice.get("easel") or {}
                self.canvas = None
                self.finish = str(own.get("finish_reason") or choice["finish_reason"])
                canvases = own.get("canvases") or ()
                self.steps = [int(canvas["denoising_steps"]) for canvas in canvases]
                self.stops = [str(canvas["stop"]) for canvas in canvases]

    def _revise(self, progress: Mapping[str, Any]) -> None:
        number, length = progress["canvas"], progress["canvas_length"]
        if self.canvas is None or self.canvas.number != number:
            self.canvas = Canvas.blank(number, length)
        self.canvas = self.canvas.revised(progress)
        self.states += 1

    def statistics(self) -> str:
        """One line: canvases, steps, tokens per forward (tokens over denoising steps), times."""
        parts = []
        if self.steps:
            total = sum(self.steps)
            parts.append(_plural(len(self.steps), "canvas", "canvases"))
            parts.append(f"{total / len(self.steps):.3g} steps a canvas")
            if self.tokens is not None and total:
                parts.append(f"{self.tokens / total:.1f} tokens per forward")
        if self.tokens is not None:
            parts.append(_plural(self.tokens, "token", "tokens"))
        first = f" (first canvas after {self.first_s:.2f} s)" if self.first_s is not None else ""
        parts.append(f"{self.seconds:.2f} s{first}")
        reasons = [reason for reason in dict.fromkeys(self.stops) if reason != "converged"]
        if reasons:
            parts.append(", ".join(reasons).replace("_", " "))
        if self.tier:
            parts.append(f"tier {self.tier}")
        if self.finish not in ("", "stop"):
            parts.append(f"ended by {self.finish}")
        return " · ".join(parts)


def _plural(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"

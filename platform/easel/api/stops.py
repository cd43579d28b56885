"""Finds stop strings in text that arrives in pieces.

Owns: the one rule of where an answer is cut: before the stop string that is complete first. That depends on the text
alone, not on how it was cut into pieces, so a stop string across two canvases is found like any other.
Refuses to know: tokens, canvases, HTTP.
"""

from __future__ import annotations


class StopScanner:
    """Give it text piece by piece; it returns what may be sent."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.found: str | None = None
        """The stop string that ended the text."""

    @property
    def wanted(self) -> bool:
        """Whether there is anything to look for."""
        return bool(self._stops)

    def add(self, text: str) -> str:
        """What can be sent now: everything but an end that may yet become a stop string.

        When one is found, `found` is set, and neither it nor anything after it ever comes out.
        """
        if self.found is not None:
            return ""
        text = self._held + text
        matches = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if matches:
            _, start, self.found = min(matches)
            self._held = ""
            return text[:start]
        held = max((_unfinished(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def end(self) -> str:
        """What was held back, now that nothing follows."""
        held, self._held = self._held, ""
        return held


def _unfinished(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)

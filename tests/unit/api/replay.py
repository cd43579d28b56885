"""Replays a progress stream as docs/api.md says, knowing nothing of the code that made it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ops.training.tokenizer import BYTE_OFFSET


@dataclass
class Replay:
    """One choice's canvases, as its progress told them."""

    canvas: int = -1
    tokens: dict[int, int] = field(default_factory=dict)
    answer: list[int] = field(default_factory=list)
    committed: int = 0
    states: int = 0
    """Those in between."""

    def apply(self, progress: dict[str, Any]) -> None:
        if progress["canvas"] != self.canvas:
            assert progress["canvas"] == self.committed, "a canvas was skipped, or came back"
            self.canvas, self.tokens = progress["canvas"], {}
        positions = [change["position"] for change in progress["changes"]]
        assert positions == sorted(set(positions))
        assert all(0 <= position < progress["canvas_length"] for position in positions)
        self.tokens |= {change["position"]: change["token_id"] for change in progress["changes"]}
        if progress["committed"]:
            assert progress["steps"] == progress["step"]
            assert progress["stop"] in ("converged", "step_cap", "deadline")
            self.answer += [self.tokens[position] for position in range(progress["tokens"])]
            self.committed += 1
        else:
            self.states += 1

    def text(self, *stops: str) -> str:
        """Byte by byte, without control tokens, cut before the stop string that is complete first."""
        raw = bytes(token - BYTE_OFFSET for token in self.answer if token >= BYTE_OFFSET)
        text = raw.decode("utf-8", "replace")
        found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
        return text[: min(found)[1]] if found else text


def replays(events: list[dict[str, Any]]) -> dict[int, Replay]:
    """By choice. Checks that a canvas is told before its text, and that progress stands apart from text."""
    found: dict[int, Replay] = {}
    texts: dict[int, str] = {}
    for event in events:
        for choice in event["choices"]:
            index = choice["index"]
            texts[index] = texts.get(index, "") + (choice.get("text") or choice.get("delta", {}).get("content") or "")
            told = found[index].text() if index in found else ""
            assert told.startswith(texts[index].rstrip("\ufffd")), "text came before its canvas"
        if "easel" in event:
            assert event["choices"] == []
            progress = event["easel"]["progress"]
            found.setdefault(progress["choice"], Replay()).apply(progress)
    return found

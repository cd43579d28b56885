"""Two answers as the embedded Sudoku checkpoint streamed them over HTTP: a solved puzzle and a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from easel.chat.canvas import Answer

HERE = Path(__file__).parent
PUZZLE = "5...9.6...9...68....35.872..7.......4..........5...4.3....6.2.....8...7.96.23...5"


def raw(name: str) -> bytes:
    """The stream's bytes."""
    return (HERE / f"{name}.sse").read_bytes()


def events(name: str) -> list[dict[str, Any]]:
    """Its events."""
    lines = raw(name).decode().splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def states(name: str) -> list[Answer]:
    """The answer after each event."""
    found = []
    for count in range(1, len(events(name)) + 1):
        answer = Answer()
        for number, event in enumerate(events(name)[:count]):
            answer.take(event, 0.1 * number)
        found.append(answer)
    return found

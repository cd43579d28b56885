"""Held-out Sudoku puzzles against a running service: how many it solves, in how many denoising steps, in what time.

Owns the held-out puzzles, the check of an answer against the rules and the givens, and the report. Knows HTTP and
nothing of engines: what is measured is what a client gets. Puzzles were never seen in training, not even relabelled,
mirrored or with rows permuted (`ops/training/sudoku`).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import httpx

HELD_OUT = Path(__file__).with_name("sudoku_heldout.json")
MAX_TOKENS = 128
"""Nine lines of nine digits and what ends them are 90."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one puzzle."""

    band: str
    puzzle: str
    solved: bool
    seconds: float
    steps: int = 0
    canvases: int = 0
    tokens: int = 0
    error: str = ""
    text: str = ""
    tier: str = ""
    """The one that was used, as the service says."""
    stops: dict[str, int] = field(default_factory=dict)
    """Why its canvases ended, and how many for each reason."""


@dataclass(frozen=True, slots=True)
class BandReport:
    """One line of the report. Times in seconds, from the request's start to its last byte."""

    band: str
    puzzles: int
    solved: int
    errors: int
    solve_rate: float
    steps_per_canvas: float
    tokens_per_forward: float
    """Tokens of answers over denoising steps."""
    median_s: float
    p90_s: float
    mean_s: float
    stops: dict[str, int]
    """Canvases by why their denoising ended."""


def held_out(limit: int | None = None) -> dict[str, list[str]]:
    """Puzzles of 81 characters by band of givens, `0` for an empty cell; the first `limit` of each, spread evenly."""
    bands: dict[str, list[str]] = json.loads(HELD_OUT.read_text(encoding="utf-8"))["bands"]
    if limit is None:
        return bands
    return {band: puzzles[:: max(1, len(puzzles) // limit)][:limit] for band, puzzles in bands.items()}


def solves(puzzle: str, text: str) -> bool:
    """Whether `text` is a full grid that keeps the givens and holds 1 to 9 in each row, column and box.

    Nine lines of nine digits, or 81 digits; blank space is passed over, anything else is wrong.
    """
    cells = "".join(text.split())
    if len(cells) != 81 or not set(cells) <= set("123456789"):
        return False
    if any(given not in ("0", ".", cell) for given, cell in zip(puzzle, cells, strict=True)):
        return False
    rows = [range(9 * i, 9 * i + 9) for i in range(9)]
    columns = [range(i, 81, 9) for i in range(9)]
    boxes = [[27 * (b // 3) + 3 * (b % 3) + 9 * (i // 3) + i % 3 for i in range(9)] for b in range(9)]
    return all(len({cells[i] for i in unit}) == 9 for unit in [*rows, *columns, *boxes])


async def ask(
    client: httpx.AsyncClient, model: str, band: str, puzzle: str, seed: int, tier: str | None = None
) -> Answer:
    """One puzzle as a chat message. A failure is an answer that says so."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": puzzle}],
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "seed": seed,
    }
    if tier is not None:
        body["easel"] = {"tier": tier}
    began = time.perf_counter()
    try:
        response = await client.post("/v1/chat/completions", json=body)
        seconds = time.perf_counter() - began
        if not response.is_success:
            return Answer(band, puzzle, False, seconds, error=_refusal(response))
        data = response.json()
        text, usage = data["choices"][0]["message"]["content"] or "", data["usage"]
        own = usage.get("easel") or {}
        return Answer(
            band,
            puzzle,
            solves(puzzle, text),
            seconds,
            steps=own.get("denoising_steps", 0),
            canvases=own.get("canvases", 0),
            tier=own.get("tier", ""),
            stops=own.get("stops", {}),
            tokens=usage["completion_tokens"],
            text=text,
        )
    except (httpx.HTTPError, ValueError, LookupError, TypeError, AttributeError) as error:
        return Answer(band, puzzle, False, time.perf_counter() - began, error=f"{type(error).__name__}: {error}")


def _refusal(response: httpx.Response) -> str:
    """What a refused request was told."""
    try:
        return str(response.json()["error"]["message"] or f"HTTP {response.status_code}")
    except (ValueError, LookupError, TypeError):
        return f"HTTP {response.status_code}"


async def run(
    url: str,
    model: str | None,
    limit: int | None = None,
    concurrency: int = 4,
    on_answer: Callable[[Answer], None] = lambda answer: None,
    client: httpx.AsyncClient | None = None,
    tier: str | None = None,
    trust_env: bool = True,
    api_key: str | None = None,
) -> list[Answer]:
    """Ask every puzzle, at most `concurrency` at a time.

    `url` is the service's root; `model` None takes the first that it serves, `tier` None its default; `trust_env`:
    through a proxy that the environment names; `api_key` is sent where it is given. Raises `httpx.HTTPError` when the
    service cannot be reached at all.
    """
    gate = asyncio.Semaphore(concurrency)
    timeout = httpx.Timeout(600.0, connect=10.0)
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    new = partial(httpx.AsyncClient, base_url=url, timeout=timeout, trust_env=trust_env, headers=headers)
    async with client or new() as http:
        if model is None:
            listed = await http.get("/v1/models")
            listed.raise_for_status()
            model = str(listed.json()["data"][0]["id"])

        async def one(index: int, band: str, puzzle: str) -> Answer:
            async with gate:
                answer = await ask(http, model, band, puzzle, index, tier)
            on_answer(answer)
            return answer

        asked = [(band, puzzle) for band, puzzles in held_out(limit).items() for puzzle in puzzles]
        return await asyncio.gather(*(one(i, band, puzzle) for i, (band, puzzle) in enumerate(asked)))


def report(answers: list[Answer]) -> list[BandReport]:
    """One line a band, in the order of the answers."""
    lines = []
    for band in dict.fromkeys(answer.band for answer in answers):
        part = [answer for answer in answers if answer.band == band]
        heard = [answer for answer in part if not answer.error]
        steps, canvases = sum(a.steps for a in heard), sum(a.canvases for a in heard)
        seconds = sorted(answer.seconds for answer in heard) or [0.0]
        lines.append(
            BandReport(
                band=band,
                puzzles=len(part),
                solved=sum(answer.solved for answer in part),
                errors=len(part) - len(heard),
                solve_rate=mean(answer.solved for answer in part),
                steps_per_canvas=steps / canvases if canvases else 0.0,
                tokens_per_forward=sum(a.tokens for a in heard) / steps if steps else 0.0,
                median_s=median(seconds),
                p90_s=seconds[min(len(seconds) - 1, int(0.9 * len(seconds)))],
                mean_s=mean(seconds),
                stops=dict(sum((Counter(answer.stops) for answer in heard), Counter())),
            )
        )
    return lines


def as_json(answers: list[Answer]) -> str:
    """The report and every answer, for machines."""
    content = {"bands": [asdict(line) for line in report(answers)], "answers": [asdict(answer) for answer in answers]}
    return json.dumps(content, indent=1)

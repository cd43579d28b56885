"""docs/engines.md: what is written by hand, and the tables of what each engine does with each parameter and route.

A cell's *works* or *refused* is what tests/contract/engines/test_table.py saw and recorded; the words beside it are
those of `easel.capabilities`, which the same tests hold against it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from easel.capabilities import ENGINES, TABLE, EngineKind, asked_as

HEAD = Path(__file__).parent / "engines.head.md"
SEEN = Path(__file__).parents[1] / "tests" / "contract" / "engines" / "table.json"
FIELDS = {asked_as(field): field for field in TABLE} | {
    "top_logprobs": "logprobs",
    "stream_options.progress_hz": "progress_hz",
}
"""The field that decides, by what a client calls it. All other parameters are the API's own."""
INTERNAL = {
    "pinned": "`pinned`, positions that are given",
    "resume": "`resume`, a stream that goes on elsewhere",
    "stop_token_ids": "`stop_token_ids`, beside the checkpoint's own",
}
"""Fields of the protocol that no client sends, in words."""
WORDS = {"works": "works", "refused": "**refused**"}


def engines_page() -> str:
    """The whole page."""
    seen: dict[str, dict[EngineKind, str]] = json.loads(SEEN.read_text(encoding="utf-8"))
    routes = [name for name in seen if " " in name]
    # What no engine's API serves, and no engine has a word on.
    nowhere = [name for name in seen if name not in FIELDS and set(seen[name].values()) == {"refused"}]
    parameters = [name for name in seen if name not in (*routes, *nowhere)]
    lines = [
        "<!-- Generated from ops/engines.head.md, platform/easel/capabilities.py and tests/contract/engines/table.json "
        "by `make gen`. -->",
        "",
        HEAD.read_text(encoding="utf-8").rstrip(),
        "",
        *_table("parameter"),
        *(f"| `{name}` | {' | '.join(_cells(name, seen[name]))} |" for name in sorted(parameters)),
        *(f"| {words} | {' | '.join(_internal(field))} |" for field, words in INTERNAL.items()),
        "",
        f"Refused in front of every engine, at values that would change something: {_list(nowhere)}.",
        "",
        "## Route by engine",
        "",
        *_table("route"),
        *(f"| `{name}` | {' | '.join(_cells(name, seen[name]))} |" for name in sorted(routes, key=_path)),
    ]
    return "\n".join(lines) + "\n"


def _table(first: str) -> Iterator[str]:
    yield f"| {first} | {' | '.join(ENGINES)} |"
    yield f"|---|{'---|' * len(ENGINES)}"


def _cells(name: str, seen: dict[EngineKind, str]) -> Iterator[str]:
    for engine in ENGINES:
        words = TABLE[FIELDS[name]][engine].words if name in FIELDS else ""
        found = WORDS[seen[engine]]
        yield (f"{found}: {words}" if seen[engine] == "refused" else words) if words else found


def _internal(field: str) -> Iterator[str]:
    for engine in ENGINES:
        support = TABLE[field][engine]
        yield support.words or "works" if support.works else f"**refused**: {support.words}"


def _list(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def _path(route: str) -> tuple[str, str]:
    method, path = route.split()
    return path, method

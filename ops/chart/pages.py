"""values.yaml and README.md of the chart, from the values' types.

Owns: how a value is shown to whoever sets it. Refuses to know: what it does.
"""

from __future__ import annotations

import inspect
import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from ops.chart.pods import Group
from ops.chart.values import Serve, Values

WIDTH = 120
SERVE_DEFAULTS: dict[str, Any] = {"app": {"playground": {"enabled": False}}}
"""Where the chart differs from the settings' own defaults: a cluster's API is no place for a page by default."""


def values_yaml() -> str:
    """The file: every value with its default and meaning, but for `serve`, which has a page of its own."""
    lines = [
        "# Generated from ops/chart/values.py by `make gen`. Change that, not this.",
        "# Every value, its default and its meaning. values.schema.json refuses what is not here.",
        "",
    ]
    for name, value, text in _fields(Values()):
        lines += _entry(name, value, text, 0)
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _entry(name: str, value: Any, text: str, depth: int) -> Iterator[str]:
    pad = "  " * depth
    for line in textwrap.wrap(text, WIDTH - len(pad) - 2):
        yield f"{pad}# {line}"
    if isinstance(value, Serve):
        yield f"{pad}# Every setting: docs/configuration.md. What is not set here has the default that stands there."
        yield from _dumped(name, SERVE_DEFAULTS, pad)
    elif isinstance(value, BaseModel):
        yield f"{pad}{name}:"
        for inner, part, meaning in _fields(value):
            yield from _entry(inner, part, meaning, depth + 1)
    elif isinstance(value, dict) and any(isinstance(part, BaseModel) for part in value.values()):
        yield f"{pad}{name}:"
        for key, part in value.items():
            yield from _entry(key, part, "", depth + 1)
    else:
        yield from _dumped(name, value, pad)


def _dumped(name: str, value: Any, pad: str) -> list[str]:
    text = yaml.safe_dump({name: value}, sort_keys=False, width=10_000)
    return [pad + line for line in text.splitlines()]


def _fields(model: BaseModel) -> Iterator[tuple[str, Any, str]]:
    """(name as it is written, default, meaning); of a block without a description its own docstring."""
    for field, info in type(model).model_fields.items():
        value = getattr(model, field)
        text = info.description or (inspect.getdoc(type(value)) if isinstance(value, BaseModel) else "") or ""
        yield info.alias or field, value, " ".join(text.split())


def readme() -> str:
    """The file: the hand-written beginning, and a table for each block."""
    head = (Path(__file__).parent / "README.head.md").read_text(encoding="utf-8")
    lines = [head.rstrip(), "", "## Values", ""]
    lines += [
        "Generated from `ops/chart/values.py`. `serve` is in [docs/configuration.md](../../docs/configuration.md): its",
        "`app` and `deployments`, but for `app.api.keys_file`, which is the chart's.",
        "",
        *_table("", Values()),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _table(path: str, model: BaseModel) -> list[str]:
    rows, below = [], []
    for name, value, text in _fields(model):
        if isinstance(value, Serve):
            rows.append(f"| `{path}{name}` | `{json.dumps(SERVE_DEFAULTS)}` | {_cell(text)} |")
        elif isinstance(value, BaseModel):
            below += [f"### `{path}{name}`", "", text, "", *_table(f"{path}{name}.", value)]
        elif name == "workers":
            below += [f"### `{path}{name}.GROUP`", "", text, "", *_table(f"{path}{name}.GROUP.", Group())]
        else:
            rows.append(f"| `{path}{name}` | `{_shown(value)}` | {_cell(text)} |")
    table = ["| value | default | meaning |", "|---|---|---|", *rows, ""] if rows else []
    return [*table, *below]


def _shown(value: Any) -> str:
    def plain(item: Any) -> Any:
        return item.model_dump(mode="json", by_alias=True) if isinstance(item, BaseModel) else item

    return json.dumps(value, ensure_ascii=False, default=plain).replace("|", "\\|")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")

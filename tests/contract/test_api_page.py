"""docs/api.md says what the code does: every parameter, neutral value, route and limit, in the code's own words."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from easel.api import unsupported
from easel.api.easel_options import EaselOptions
from easel.api.requests import PROGRESS_HZ
from easel.api.schemas import (
    LEAST_PROGRESS_HZ,
    MOST_STOP_CHARACTERS,
    ChatBody,
    ChatMessage,
    CompletionBody,
    StreamOptions,
    TemplateOptions,
)
from easel.settings import ApiSettings
from tests.unit.api.edge import Stream, edge, saying, spell, write_checkpoint

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text()


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def where(name: str, chat: Any, completion: Any) -> str:
    return "both" if name in chat and name in completion else "chat" if name in chat else "completions"


def served() -> list[str]:
    """A table row for each parameter."""
    rows = {}
    for schema in (CompletionBody, ChatBody):
        for name, field in schema.model_fields.items():
            routes = where(name, ChatBody.model_fields, CompletionBody.model_fields)
            rows[name] = f"| `{name}` | {routes} | {cell(field.description or '')} |"
    for prefix, part in (
        ("stream_options.", StreamOptions),
        ("easel.", EaselOptions),
        ("messages.N.", ChatMessage),
        ("chat_template_kwargs.", TemplateOptions),
    ):
        for name, field in part.model_fields.items():
            routes = "chat" if prefix[0] in "mc" else "both"
            rows[prefix + name] = f"| `{prefix}{name}` | {routes} | {cell(field.description or '')} |"
    return [rows[name] for name in sorted(rows)]


def neutral() -> list[str]:
    """A table row for each parameter that is known and not served."""
    rows = {}
    for table in (unsupported.COMPLETION, unsupported.CHAT):
        for name, values in table.items():
            allowed = ", ".join(f"`{json.dumps(value)}`" for value in (None, *values))
            rows[name] = f"| `{name}` | {where(name, unsupported.CHAT, unsupported.COMPLETION)} | {allowed} |"
    return [rows[name] for name in sorted(rows)]


@pytest.mark.parametrize("row", [*served(), *neutral()])
def test_the_page_has_a_row_for_each_parameter(row: str) -> None:
    assert row in PAGE.splitlines()


def test_the_page_has_no_row_for_a_parameter_that_is_not_there() -> None:
    rows = re.findall(r"^\| `[\w.]+` \| (?:both|chat|completions) \|.*$", PAGE, re.MULTILINE)
    assert sorted(rows) == sorted([*served(), *neutral()])


async def test_the_page_lists_every_route(tmp_path: Path) -> None:
    async with edge(write_checkpoint(tmp_path)) as e:
        for route in e.app.routes:
            path = re.sub(r"\{\w+:path\}", "{id}", str(getattr(route, "path", "")))
            for method in getattr(route, "methods", set()) - {"HEAD"}:
                assert re.search(rf"^\|.*`{method} {re.escape(path)}`.* \|", PAGE, re.MULTILINE), path


def test_the_pages_numbers_are_the_settings() -> None:
    defaults = ApiSettings()
    assert f"{defaults.max_body_bytes // 1024**2} MiB" in PAGE
    assert f"{defaults.max_choices} choices" in PAGE
    assert f"{defaults.heartbeat_s:g} s of silence" in PAGE
    assert f"{defaults.request_timeout_s:g} s" in PAGE
    assert f"{LEAST_PROGRESS_HZ:g} to {defaults.max_progress_hz:g} a second" in PAGE
    assert f"{PROGRESS_HZ:g} by default" in PAGE
    assert f"{MOST_STOP_CHARACTERS:,} characters" in PAGE


def test_the_page_points_to_the_table_of_errors() -> None:
    assert "(errors.md)" in PAGE
    assert (Path(__file__).parents[2] / "docs" / "errors.md").exists()


@pytest.mark.parametrize("body", re.findall(r"-d '(\{.*?\})'", PAGE, re.DOTALL))
async def test_the_pages_curl_bodies_work(tmp_path: Path, body: str) -> None:
    async with edge(write_checkpoint(tmp_path), saying("x")) as e:
        data = json.loads(body)
        path = "/v1/chat/completions" if "messages" in data else "/v1/completions"
        assert (await e.client.post(path, json=data)).status_code == 200


async def test_the_pages_way_to_replay_ends_in_the_text(tmp_path: Path) -> None:
    [example] = [code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "def replay" in code]
    names: dict[str, Any] = {}
    exec(compile(example, "docs/api.md", "exec"), names)
    text = "Thirty-nine characters in three canvases"
    async with edge(write_checkpoint(tmp_path), saying(text), api={"max_progress_hz": 1000.0}) as e:
        options = {"include_progress": True, "progress_hz": 1000}
        response = await e.complete(max_tokens=100, stream=True, stream_options=options)
    chunks = Stream.of(response.text).events
    assert names["replay"](chunks) == {0: list(spell(text))}


def test_the_pages_python_is_python() -> None:
    examples = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert examples
    for example in examples:
        compile(example, "docs/api.md", "exec")

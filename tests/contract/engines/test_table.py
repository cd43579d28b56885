"""docs/engines.md, row by row: every parameter and every route, asked of every engine over HTTP.

What is seen stands in `table.json`, which the page is made of. `EASEL_REWRITE_TABLE=1 pytest
tests/contract/engines/test_table.py` writes it anew; then `make gen`.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from easel.api import unsupported
from easel.api.easel_options import EaselOptions
from easel.api.schemas import ChatBody, ChatMessage, CompletionBody, StreamOptions, TemplateOptions
from easel.capabilities import TABLE
from tests.contract.engines.conftest import Case
from tests.contract.engines.kinds import BYTE
from tests.contract.engines.rows import LENGTH, MESSAGES, PARAMETERS, PROMPT, REFUSED, ROUTES, Row, Seen
from tests.contract.engines.test_http import client, on_one_loop
from tests.unit.api.edge import until

# transformers' generate imports torch's compiler, which warns about itself.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

FILE = Path(__file__).with_name("table.json")
ROWS = PARAMETERS | REFUSED
MOST_TRIES = 20


def record(case: Case, row: str, found: str) -> None:
    """Compares with what is written, or writes it."""
    table: dict[str, dict[str, str]] = json.loads(FILE.read_text()) if FILE.exists() else {}
    if os.environ.get("EASEL_REWRITE_TABLE"):
        table.setdefault(row, {})[case.kind.kind] = found
        FILE.write_text(json.dumps(table, indent=2, sort_keys=True) + "\n")
    assert table[row][case.kind.kind] == found


async def ask(http: httpx.AsyncClient, row: Row, wish: Any) -> httpx.Response:
    path, own = ("chat/completions", {"messages": MESSAGES}) if row.chat else ("completions", {"prompt": PROMPT})
    return await http.post(f"/v1/{path}", json={"model": "easel", "max_tokens": LENGTH, **own, **wish})


@pytest.mark.parametrize("name", ROWS)
@on_one_loop
async def test_parameter(case: Case, name: str) -> None:
    row = ROWS[name]
    async with client(case) as http:
        asked = await ask(http, row, row.wish)
        if asked.status_code == 200:
            seen = Seen(asked, await ask(http, row, {}), case.kind.tells_steps)
            assert row.shows(seen), asked.text
            record(case, name, "works")
        else:
            error = asked.json()["error"]
            assert (asked.status_code, error["code"], error["param"]) == (400, "unsupported_parameter", param(name))
            record(case, name, "refused")
    served = row.known and (row.field is None or TABLE[row.field][case.kind.kind].works)
    assert (asked.status_code == 200) is served, "capabilities.py says otherwise"


def param(name: str) -> str:
    """What a refusal names: `progress_hz` only says how much of the other."""
    return {
        "stream_options.progress_hz": "stream_options.include_progress",
        "top_logprobs": "logprobs",
    }.get(name, name)


@pytest.mark.parametrize("route", ROUTES)
@on_one_loop
async def test_route(case: Case, route: str) -> None:
    method, path = route.split()
    async with client(case) as http:
        match path:
            case "/v1/requests/{request_id}":
                await cancels(case, http)
            case "/v1/models/{model_id}":
                answer = await http.get("/v1/models/easel")
                assert answer.json()["id"] == "easel"
            case "/v1/completions" | "/v1/chat/completions":
                answer = await ask(http, Row({}, chat="chat" in path), {})
                assert answer.json()["usage"]["completion_tokens"] > 0
            case "/tokenize" | "/v1/tokenize":
                answer = await http.post(path, json={"prompt": "a"})
                assert answer.json()["tokens"] == [2, BYTE + 97]
            case "/detokenize" | "/v1/detokenize":
                answer = await http.post(path, json={"tokens": [BYTE + 97]})
                assert answer.json()["prompt"] == "a"
            case _:
                assert method == "GET"
                assert (await http.get(path)).status_code == 200
    record(case, route, "works")


async def cancels(case: Case, http: httpx.AsyncClient) -> None:
    """All choices of a call end, whole and streamed, and their seats are free. An engine that only keeps time may be
    done before it can be told."""
    stats = case.engine.stats
    body: dict[str, Any] = {"model": "easel", "prompt": PROMPT, "max_tokens": 400, "ignore_eos": True, "n": 2}
    if case.kind.kind in ("native", "reference"):
        body["easel"] = {"confidence": 0}
    for stream in (False, True):
        for _ in range(MOST_TRIES):
            headers = {"x-request-id": "to-cancel"}
            call = asyncio.create_task(http.post("/v1/completions", json=body | {"stream": stream}, headers=headers))
            while stats().sequences + stats().waiting < 2 and not call.done():
                await asyncio.sleep(0)
            found = await http.delete("/v1/requests/to-cancel")
            answer = await call
            await until(lambda: stats().sequences + stats().waiting == 0)
            if found.status_code == 200:
                break
        assert found.status_code == 200
        assert (answer.status_code, '"cancelled"' in answer.text) == (200, True) or answer.status_code == 499
    assert (await http.delete("/v1/requests/to-cancel")).status_code == 404


def test_no_parameter_is_left_out() -> None:
    served = {*CompletionBody.model_fields, *ChatBody.model_fields}
    for prefix, part in (
        ("easel", EaselOptions),
        ("stream_options", StreamOptions),
        ("messages.N", ChatMessage),
        ("chat_template_kwargs", TemplateOptions),
    ):
        served |= {f"{prefix}.{name}" for name in part.model_fields}
        served.discard(prefix)
    served.add("messages")
    assert set(PARAMETERS) == served
    assert set(REFUSED) == {*unsupported.COMPLETION, *unsupported.CHAT}
    fields = {row.field for row in PARAMETERS.values()} - {None}
    assert fields | {"grammar", "resume", "pinned", "stop_token_ids"} == set(TABLE)


def test_nothing_is_written_that_no_test_sees() -> None:
    table = json.loads(FILE.read_text())
    assert set(table) == {*ROWS, *ROUTES}
    assert all(set(row) == {"native", "reference", "vllm", "fake"} for row in table.values())

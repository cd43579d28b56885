"""The JSON of answers, byte for byte but for what differs each time: a change of shape shows in review.

`EASEL_REWRITE_GOLDEN=1 pytest tests/contract/test_golden_answers.py` writes them anew.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from easel.engine.fake import Script
from easel.errors import EngineFailed
from tests.unit.api.edge import Stream, edge, saying, write_checkpoint

FOLDER = Path(__file__).with_name("golden")
TEXT = "Twenty-seven bytes of text."
BROKEN = Script(fail=lambda request, canvas: EngineFailed("The engine failed.") if canvas else None)
CHAT = {"messages": [{"role": "user", "content": "Hi"}]}

CASES: dict[str, tuple[Script, str, dict[str, Any] | None]] = {
    "completion": (saying(TEXT), "/v1/completions", {"prompt": "Hi", "max_tokens": 40}),
    "completion_list": (saying(TEXT), "/v1/completions", {"prompt": ["a", "b"], "n": 2}),
    "completion_stream": (saying(TEXT), "/v1/completions", {"prompt": "Hi", "max_tokens": 20, "stream": True}),
    "chat": (saying(TEXT), "/v1/chat/completions", CHAT),
    "chat_stream": (
        saying(TEXT),
        "/v1/chat/completions",
        {**CHAT, "stream": True, "stream_options": {"include_usage": True}},
    ),
    "completion_stream_progress": (
        saying(TEXT),
        "/v1/completions",
        {"prompt": "Hi", "max_tokens": 9, "seed": 1, "stream": True, "stream_options": {"include_progress": True}},
    ),
    "chat_stream_broken": (BROKEN, "/v1/chat/completions", {**CHAT, "seed": 1, "stream": True}),
    "refusal": (saying(TEXT), "/v1/chat/completions", {"messages": [{"role": "usr", "content": "Hi"}]}),
    "models": (saying(TEXT), "/v1/models", None),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def steady(value: Any) -> Any:
    """Without ids, times and fingerprints."""
    if isinstance(value, list):
        return [steady(item) for item in value]
    if not isinstance(value, dict):
        return value
    changing = {"created": 0, "system_fingerprint": "easel"}
    if "choices" in value:
        changing["id"] = str(value["id"]).split("-")[0] + "-"
    return {key: changing.get(key, steady(item)) for key, item in value.items()}


@pytest.mark.parametrize("name", CASES)
async def test_answers_keep_their_shape(checkpoint: Path, name: str) -> None:
    script, path, body = CASES[name]
    async with edge(checkpoint, script) as e:
        if body is None:
            response = await e.client.get(path)
        else:
            response = await e.client.post(path, json={"model": "easel", **body})
    if response.headers["content-type"].startswith("text/event-stream"):
        stream = Stream.of(response.text)
        found: Any = [*map(steady, stream.events), *(["[DONE]"] if stream.done else [])]
    else:
        found = {"status": response.status_code, "body": steady(response.json())}
    file = FOLDER / f"{name}.json"
    if os.environ.get("EASEL_REWRITE_GOLDEN"):
        file.write_text(json.dumps(found, indent=2) + "\n")
    assert found == json.loads(file.read_text())

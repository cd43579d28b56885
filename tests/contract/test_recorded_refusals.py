"""Typical mistakes and what is said of them, request and answer: a change of words shows in review.

`EASEL_REWRITE_GOLDEN=1 pytest tests/contract/test_recorded_refusals.py` writes the answers anew.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.unit.api.edge import edge, saying, write_checkpoint

FILE = Path(__file__).with_name("golden") / "refusals.json"


async def test_a_mistake_is_told_by_name(tmp_path: Path) -> None:
    pairs = json.loads(FILE.read_text())
    found = []
    async with edge(write_checkpoint(tmp_path), saying("x")) as e:
        for pair in pairs:
            answer = await e.client.post(pair["path"], json=pair["body"])
            asked = {"path": pair["path"], "body": pair["body"]}
            found.append(asked | {"status": answer.status_code, "answer": answer.json()})
        assert not e.backend.requests, "nothing of it was begun"
    if os.environ.get("EASEL_REWRITE_GOLDEN"):
        FILE.write_text(json.dumps(found, indent=1) + "\n")
    assert found == json.loads(FILE.read_text())
    assert all(one["status"] in (400, 404) and one["answer"]["error"]["message"] for one in found)

"""LiteLLM as a client of the application: whole and streamed, at once and one after the other, and its errors.

It runs in an environment of its own, since no release of it goes with what constraints.txt pins.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.api.edge import edge, served, write_checkpoint
from tests.unit.api.test_thinking import ANSWER, REASONING, THINKING, THOUGHTS, TOKENS

CLIENT = Path(__file__).with_name("litellm_client.py")
HERE = Path(__file__).parents[2] / ".venv-litellm" / "bin" / "python"


def interpreter() -> Path | None:
    """One that has LiteLLM."""
    if HERE.exists():
        return HERE
    return Path(sys.executable) if importlib.util.find_spec("litellm") else None


def run(python: Path, url: str) -> dict[str, Any]:
    # LiteLLM would otherwise fetch a list of prices from the network.
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "127.0.0.1"}
    command = [str(python), str(CLIENT), url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


async def test_litellm_is_answered_as_it_expects(tmp_path: Path) -> None:
    python = interpreter()
    if python is None:
        pytest.skip("LiteLLM is not installed: tests/contract/litellm.txt, in .venv-litellm")
    async with edge(write_checkpoint(tmp_path), THINKING) as e, served(e.app) as url:
        found = await asyncio.to_thread(run, python, url + "/v1")
    whole = {
        "content": ANSWER,
        "reasoning": REASONING,
        "finish_reason": "stop",
        "model": "easel",
        "completion_tokens": len(TOKENS),
        "reasoning_tokens": THOUGHTS,
    }
    parts = {key: whole[key] for key in ("content", "reasoning", "finish_reason", "completion_tokens")}
    assert found["whole"] == found["extra"] == found["async"]["whole"] == whole
    assert found["stream"] == found["async"]["stream"] == parts
    assert found["async"]["text"] == "thought\n" + REASONING + ANSWER
    assert found["no_model"]["type"] == "NotFoundError"
    assert "does not exist" in found["no_model"]["message"]
    for name, param in (("bad_value", "temperature"), ("with_tools", "tools")):
        assert (found[name]["type"], found[name]["status"]) == ("BadRequestError", 400)
        assert param in found[name]["message"]

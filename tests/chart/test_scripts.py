"""The scripts that the chart brings along, as its pods run them: processes with an environment."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.cases import CASES
from tests.chart.helm import CHART, OPEN, VERSIONS, Object, render, run
from tests.unit.api.edge import edge, saying, served, write_checkpoint

KEY = "a key that nobody guesses"


def settings_of(pod: Object) -> dict[str, str]:
    return {item["name"]: item["value"] for item in pod["spec"]["containers"][0]["env"] if "value" in item}


async def script(name: str, *arguments: str, **environment: str) -> tuple[int, str]:
    """Exit code and output."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-W",
        "error",
        CHART / "files" / name,
        *arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={"PATH": os.environ["PATH"], **environment},
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


async def completion(url: str, case: str = "open", **environment: str) -> tuple[int, str]:
    told = settings_of(render(CASES[case] if case != "open" else OPEN).one("Pod"))
    assert told["EASEL_URL"] == "http://easel-serve-svc.models.svc:8000"
    return await script("completion.py", **{**told, "EASEL_TIMEOUT_S": "5", **environment, "EASEL_URL": url})


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "checkpoint")


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, Any]:
    file = tmp_path / "keys.yaml"
    file.write_text(yaml.safe_dump({"keys": [{"id": "a", "sha256": hashlib.sha256(KEY.encode()).hexdigest()}]}))
    return {"keys_file": str(file)}


async def test_the_test_passes_on_a_real_service(checkpoint: Path) -> None:
    async with edge(checkpoint, saying("Twenty-seven bytes of text.")) as e, served(e.app) as url:
        code, output = await completion(url)
    assert code == 0, output
    assert "whole: " in output
    assert "streamed: " in output
    assert output.endswith("PASSED\n")


async def test_the_test_asks_with_its_key_and_without(checkpoint: Path, keys: dict[str, Any]) -> None:
    async with edge(checkpoint, saying("Text."), api=keys) as e, served(e.app) as url:
        code, output = await completion(url, "test-key", EASEL_API_KEY=KEY, EASEL_MODEL="easel")
        assert code == 0, output
        assert "without a key: 401 invalid_api_key" in output
        code, output = await completion(url, "keys-secret")
        assert code == 1
        assert "set test.apiKey.secretName" in output
        code, output = await completion(url, "test-key", EASEL_API_KEY="wrong", EASEL_MODEL="easel")
        assert code == 1
        assert "FAILED: 401" in output


async def test_the_test_notices_an_open_door(checkpoint: Path) -> None:
    async with edge(checkpoint, saying("Text.")) as e, served(e.app) as url:
        code, output = await completion(url, "test-key", EASEL_API_KEY=KEY, EASEL_MODEL="easel")
    assert code == 1
    assert "it answered without a key" in output


async def test_the_test_fails_where_nobody_answers() -> None:
    code, output = await completion("http://127.0.0.1:9", EASEL_TIMEOUT_S="1")
    assert code == 1
    assert "not ready after 1 s" in output
    assert output.count("not ready yet") == 1


def test_the_notes_say_what_to_do_next(tmp_path: Path) -> None:
    """With Helm 4, which renders them without a cluster."""

    def notes(case: str) -> str:
        values = tmp_path / "values.yaml"
        values.write_text(yaml.safe_dump(CASES[case]))
        text = run(VERSIONS[1], "install", "easel", CHART, "-n", "models", "--dry-run=client", "-f", values)
        return text.partition("NOTES:")[2]

    plain = notes("open")
    for sentence in ("wait rayservice/easel", "helm -n models test easel", "ANYBODY who reaches it", "head pod dies"):
        assert sentence in plain
    careful = notes("deployments/production")
    assert "ANYBODY" not in careful
    assert "head pod dies" not in careful
    assert "It asks for keys" in careful
    assert "easel-gateway" in notes("incremental")
    assert "NO TOKEN guards it: it may run code" not in careful
    assert "NO NETWORK POLICIES" in notes("no-token")
    assert "models.example" in notes("http-route")

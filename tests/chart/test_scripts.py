"""The scripts that the chart brings along, as its pods run them: processes with an environment."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.cases import CASES
from tests.chart.helm import CHART, OPEN, VERSIONS, Object, render, run
from tests.unit.api.edge import edge, saying, served, write_checkpoint

KEY = "a key that nobody guesses"
COMMIT = "0" * 40


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


HUB = textwrap.dedent("""
    import hashlib, json, os, types
    from pathlib import Path
    SERVED = Path(os.environ["HUB"])

    class HfApi:
        def model_info(self, name, revision, files_metadata):
            assert files_metadata and (name, revision) == ("owner/model", "0" * 40)
            def of(path):
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                lfs = types.SimpleNamespace(sha256=digest) if path.suffix == ".safetensors" else None
                return types.SimpleNamespace(rfilename=path.name, lfs=lfs)
            return types.SimpleNamespace(siblings=[of(path) for path in sorted(SERVED.iterdir())])

    def snapshot_download(name, revision, local_dir, allow_patterns):
        for path in sorted(SERVED.iterdir()):
            if path.match("*.bin"):
                continue
            with open(SERVED.parent / "asked", "a") as log:
                log.write(path.name + "\\n")
            if os.environ.get("BREAK") == path.name:
                raise OSError("connection lost")
            there = Path(local_dir) / path.name
            if not there.exists():
                data = path.read_bytes()
                there.write_bytes(data[:-1] + b"?" if os.environ.get("SPOIL") == path.name else data)
""")


class Hub:
    """A model hub in a folder, and the script that downloads from it."""

    def __init__(self, root: Path) -> None:
        self.root, self.served = root, root / "served"
        self.served.mkdir()
        for name in ("config.json", "model.safetensors", "pytorch.bin"):
            (self.served / name).write_text(f"contents of {name}")
        (root / "huggingface_hub.py").write_text(HUB)
        self.folder = root / "cache" / "model-1"

    def wanted(self, **changes: Any) -> str:
        job = render(CASES["download-claim"]).one("Job")
        told = json.loads(settings_of(job["spec"]["template"])["EASEL_DOWNLOAD"])
        assert told["folder"] == "/models/model-1"
        assert told["revision"] == COMMIT
        return json.dumps({**told, "folder": str(self.folder), "sha256": {}, **changes})

    async def download(self, *arguments: str, wanted: str = "", **environment: str) -> tuple[int, str]:
        told = {"EASEL_DOWNLOAD": wanted or self.wanted(), "PYTHONPATH": str(self.root), "HUB": str(self.served)}
        return await script("download.py", *arguments, **told, **environment)


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    return Hub(tmp_path)


async def test_a_download_is_checked_and_marked(hub: Hub) -> None:
    code, output = await hub.download()
    assert code == 0, output
    assert {path.name for path in hub.folder.iterdir()} == {"config.json", "model.safetensors", ".easel-complete"}
    asked = (hub.root / "asked").read_text()
    code, output = await hub.download()
    assert code == 0, output
    assert (hub.root / "asked").read_text() == asked, "what is complete is not asked for again"


async def test_a_download_goes_on_where_it_broke_off(hub: Hub) -> None:
    code, _ = await hub.download(BREAK="model.safetensors")
    assert code != 0
    assert not hub.folder.exists(), "nobody takes half a checkpoint for a whole one"
    kept = hub.folder.with_name(".model-1.part") / "config.json"
    before = kept.stat().st_mtime_ns
    code, output = await hub.download()
    assert code == 0, output
    assert (hub.folder / "config.json").stat().st_mtime_ns == before


async def test_what_was_spoilt_is_taken_again(hub: Hub) -> None:
    code, output = await hub.download(SPOIL="model.safetensors")
    assert code == 1
    assert "model.safetensors: its sha256 is not" in output
    assert not hub.folder.exists()
    code, output = await hub.download()
    assert code == 0, output


async def test_checksums_of_ones_own(hub: Hub) -> None:
    right = hashlib.sha256(b"contents of config.json").hexdigest()
    code, output = await hub.download(wanted=hub.wanted(sha256={"config.json": "1" * 64, "no.json": right}))
    assert code == 1
    assert "config.json: its sha256 is not" in output
    assert "no.json: the repository has no such file" in output
    code, output = await hub.download(wanted=hub.wanted(sha256={"config.json": right}))
    assert code == 0, output


async def test_another_wish_is_another_download(hub: Hub) -> None:
    assert (await hub.download())[0] == 0
    (hub.served / "config.json").write_text("new")
    code, output = await hub.download(wanted=hub.wanted(files=["*.json", "*.safetensors"]))
    assert code == 0, output
    assert (hub.folder / "config.json").read_text() == "new"
    assert {path.name for path in hub.folder.parent.iterdir()} == {"model-1", ".model-1.lock"}


async def test_nothing_fits(hub: Hub) -> None:
    code, output = await hub.download(wanted=hub.wanted(files=["*.gguf"]))
    assert code == 1
    assert "has no file that fits" in output


async def test_pods_wait_for_the_mark(hub: Hub) -> None:
    waiting = asyncio.create_task(hub.download("--wait"))
    first, second = await asyncio.gather(hub.download(), hub.download())
    assert first[0] == second[0] == 0
    assert (hub.root / "asked").read_text().count("config.json") == 1, "one downloads, the other waits for it"
    code, output = await waiting
    assert code == 0, output


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

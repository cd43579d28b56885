"""The chart's download with the real client of the hub, against a hub on loopback: checked, resumed, marked."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.chart.cases import CASES
from tests.chart.helm import CHART, render

COMMIT, LATER = "0" * 40, "1" * 40
WEIGHTS = bytes(range(256)) * 4096 * 32
"""32 MiB: the client writes what it has in pieces of 10 MB."""
FILES = {"config.json": b'{"model_type": "x"}', "model.safetensors": WEIGHTS, "notes.bin": b"not asked for"}
LIMITED = (
    "import runpy, sys, huggingface_hub.constants as c; c.MAX_HTTP_DOWNLOAD_SIZE = {limit}; "
    "sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
)
REVISIONS = {COMMIT: FILES, LATER: FILES | {"config.json": b'{"model_type": "y"}'}}


class Hub:
    """As much of a hub as a download needs."""

    def __init__(self) -> None:
        self.breaks_after: int | None = None
        """Bytes of the weights after which the connection ends, once; then nobody answers."""
        self.gone = False
        self.spoiled = False
        self.asked: list[str] = []
        self.ranges: list[int] = []
        """Where each request for the weights began."""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def do_GET(self) -> None:
                hub.answer(self, body=True)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler, body: bool) -> None:
        request.close_connection = True
        self.asked.append(request.path)
        if self.gone:
            return
        path = request.path.split("?")[0]
        commit = next(commit for commit in REVISIONS if commit in path)
        files = REVISIONS[commit]
        if path == f"/api/models/owner/model/revision/{commit}":
            self.send(request, json.dumps(self.info(commit)).encode(), {"Content-Type": "application/json"}, body)
        elif path.startswith(f"/owner/model/resolve/{commit}/") and (name := path.rsplit("/", 1)[1]) in files:
            data = files[name]
            headers = {"ETag": f'"{digest(data)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
            if name == "model.safetensors" and self.spoiled:
                data = b"?" + data[1:]
            self.send(request, data, headers, body, name == "model.safetensors")
        else:
            request.send_error(404)

    def info(self, commit: str) -> dict[str, Any]:
        siblings = []
        for name, data in REVISIONS[commit].items():
            item: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": digest(data)[:40]}
            if name.endswith(".safetensors"):
                item["lfs"] = {"sha256": digest(data), "size": len(data), "pointerSize": 134}
            siblings.append(item)
        return {"id": "owner/model", "modelId": "owner/model", "sha": commit, "siblings": siblings, "tags": []}

    def send(
        self, request: BaseHTTPRequestHandler, data: bytes, headers: dict[str, str], body: bool, weights: bool = False
    ) -> None:
        begin = 0
        if asked := request.headers.get("Range"):
            begin = int(asked.removeprefix("bytes=").split("-")[0])
            headers |= {"Content-Range": f"bytes {begin}-{len(data) - 1}/{len(data)}"}
        request.send_response(206 if begin else 200)
        for name, value in {**headers, "Content-Length": str(len(data) - begin)}.items():
            request.send_header(name, value)
        request.end_headers()
        if not body:
            return
        if weights:
            self.ranges.append(begin)
            if self.breaks_after is not None:
                request.wfile.write(data[begin : self.breaks_after])
                self.gone = True
                return
        request.wfile.write(data[begin:])


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def hub() -> Iterator[Hub]:
    pytest.importorskip("huggingface_hub")
    hub = Hub()
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


class Volume:
    """Where the Job or init container downloads to."""

    def __init__(self, root: Path, hub: Hub) -> None:
        self.root, self.hub, self.folder = root, hub, root / "cache/model-1"

    def told(self, **changes: Any) -> dict[str, str]:
        """The environment that the chart's Job has, but for this hub and this folder."""
        container = render(CASES["download-claim"]).one("Job")["spec"]["template"]["spec"]["containers"][0]
        given = {item["name"]: item["value"] for item in container["env"] if "value" in item}
        wanted = json.loads(given["EASEL_DOWNLOAD"])
        assert (wanted["folder"], wanted["revision"]) == ("/models/model-1", COMMIT)
        wanted |= {"folder": str(self.folder), "sha256": {}, **changes}
        here = {"HF_ENDPOINT": self.hub.url, "HOME": str(self.root), "PATH": os.environ["PATH"]}
        return {**given, "HTTPS_PROXY": "", "EASEL_DOWNLOAD": json.dumps(wanted), **here}

    def start(self, *arguments: str, limit: int | None = None, **changes: Any) -> subprocess.Popen[str]:
        """`limit`: bytes above which the client takes no file, instead of its own 50 GB."""
        limited = [] if limit is None else ["-c", LIMITED.format(limit=limit)]
        command = [sys.executable, *limited, str(CHART / "files/download.py"), *arguments]
        both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, env=self.told(**changes), **both)

    def download(self, *arguments: str, **changes: Any) -> tuple[int, str]:
        """Exit code and output."""
        process = self.start(*arguments, **changes)
        output, _ = process.communicate(timeout=100)
        return process.returncode, output

    @property
    def files(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


@pytest.fixture
def volume(tmp_path: Path, hub: Hub) -> Volume:
    return Volume(tmp_path, hub)


def test_it_takes_what_is_asked_for_and_marks_it(hub: Hub, volume: Volume) -> None:
    code, output = volume.download()
    assert code == 0, output
    assert volume.files == {"config.json", "model.safetensors", ".easel-complete"}
    assert (volume.folder / "model.safetensors").read_bytes() == WEIGHTS
    assert output.splitlines()[-1] == f"{volume.folder}: owner/model at {COMMIT}"
    asked = list(hub.asked)
    assert volume.download()[0] == 0
    assert hub.asked == asked, "nobody is asked for what is complete"


def test_what_broke_off_is_gone_on_with(hub: Hub, volume: Volume) -> None:
    hub.breaks_after = 25_000_000
    code, output = volume.download()
    assert code != 0
    assert not volume.folder.exists(), "nobody takes half a checkpoint for a whole one"
    config = volume.folder.with_name(".model-1.part") / "config.json"
    before = config.stat().st_mtime_ns
    hub.breaks_after, hub.gone = None, False
    code, output = volume.download()
    assert code == 0, output
    assert (volume.folder / "model.safetensors").read_bytes() == WEIGHTS
    assert (volume.folder / "config.json").stat().st_mtime_ns == before
    assert hub.ranges[0] == 0
    assert hub.ranges[-1] >= 20_000_000, f"the weights were asked for from {hub.ranges}"


def test_what_was_begun_of_another_revision_is_not_mixed_in(hub: Hub, volume: Volume) -> None:
    """The hub keeps no checksum of small files, so nothing else would tell."""
    hub.breaks_after = 25_000_000
    assert volume.download()[0] != 0
    hub.breaks_after, hub.gone = None, False
    code, output = volume.download(revision=LATER)
    assert code == 0, output
    assert (volume.folder / "config.json").read_bytes() == REVISIONS[LATER]["config.json"]
    assert volume.files == {"config.json", "model.safetensors", ".easel-complete"}


def test_what_was_spoilt_is_taken_again(hub: Hub, volume: Volume) -> None:
    hub.spoiled = True
    code, output = volume.download()
    assert code == 1
    assert "model.safetensors: its sha256 is not" in output
    assert not volume.folder.exists()
    hub.spoiled = False
    assert volume.download()[0] == 0
    assert (volume.folder / "model.safetensors").read_bytes() == WEIGHTS


def test_checksums_of_ones_own(volume: Volume) -> None:
    right = digest(FILES["config.json"])
    code, output = volume.download(sha256={"config.json": "1" * 64, "no.json": right})
    assert code == 1
    assert "config.json: its sha256 is not" in output
    assert "no.json: the repository has no such file" in output
    code, output = volume.download(sha256={"config.json": right})
    assert code == 0, output


def test_a_file_that_the_client_does_not_take_whole_is_named_with_what_does(hub: Hub, volume: Volume) -> None:
    code, output = volume.download(limit=len(WEIGHTS) - 1)
    assert code == 1
    assert "Traceback" not in output
    part = volume.folder.with_name(".model-1.part")
    command = f"hf download owner/model model.safetensors --revision {COMMIT} --local-dir {part}"
    assert f"model.safetensors: {len(WEIGHTS)} bytes, and the client takes no file above" in output
    assert command in output
    assert not hub.ranges, "said before anything comes"
    (part / "model.safetensors").write_bytes(WEIGHTS)  # as that command does
    code, output = volume.download(limit=len(WEIGHTS) - 1)
    assert code == 0, output
    assert volume.files == {"config.json", "model.safetensors", ".easel-complete"}


def test_another_wish_is_another_download(volume: Volume) -> None:
    assert volume.download()[0] == 0
    code, output = volume.download(files=["*.json", "*.bin"])
    assert code == 0, output
    assert volume.files == {"config.json", "notes.bin", ".easel-complete"}
    assert {path.name for path in volume.folder.parent.iterdir()} == {"model-1", ".model-1.lock"}


def test_nothing_fits(volume: Volume) -> None:
    code, output = volume.download(files=["*.gguf"])
    assert code == 1
    assert "has no file that fits" in output


def test_pods_wait_for_the_mark(hub: Hub, volume: Volume) -> None:
    waiting, first, second = volume.start("--wait"), volume.start(), volume.start()
    told = [process.communicate(timeout=100)[0] for process in (first, second, waiting)]
    assert [first.returncode, second.returncode, waiting.returncode] == [0, 0, 0], told
    assert hub.ranges == [0], "one downloads, the others wait for it"


def test_a_folder_that_is_not_ours_is_said_so(tmp_path: Path) -> None:
    """As a node's folder that the kubelet made: root's."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None or not Path("/usr/bin/python3").exists():
        pytest.skip("needs root, to be another, and an interpreter that everybody may run")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o755)
    for path in (tmp_path, *tmp_path.parents):
        if "pytest" in path.name:
            path.chmod(0o755)
    told = {"EASEL_DOWNLOAD": json.dumps({"repository": "a/b", "folder": str(closed / "model")}), "PATH": "/usr/bin"}
    who = ["setpriv", "--reuid=10001", "--regid=10001", "--clear-groups"]
    script = (CHART / "files/download.py").read_text()
    done = subprocess.run([*who, "/usr/bin/python3", "-c", script], env=told, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"user 10001 may not write to {closed}" in done.stderr
    assert "install -d -o 10001" in done.stderr

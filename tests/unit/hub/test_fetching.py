"""Checkpoints from a hub: the command as a user runs it, in a process of its own, against a hub on loopback."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import pytest

from easel.errors import ConfigurationError
from easel.hub import fetching, resumed
from easel.hub.reference import HubReference, cached_folder, hub_reference
from easel.settings import ModelSettings
from tests.unit.hub.stand_in import COMMIT, Hub

ROOT = Path(__file__).parents[3]
MIB = 1 << 20
SIZE = 24 * MIB
SOME = ("model-1.safetensors", "model-2.safetensors")
CODE = "from easel.cli import main; main()"
SMALL_LIMIT = f"import huggingface_hub.constants as c; c.MAX_HTTP_DOWNLOAD_SIZE = {20 * MIB}; {CODE}"
"""The same where the library takes no file above 20 MiB; its own limit is 50 GB."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    files = {name: random.Random(name).randbytes(SIZE) for name in SOME}
    files |= {"config.json": b'{"model_type": "diffusion_gemma"}', "tokenizer.json": b"{}", "chat_template.jinja": b"x",
              "README.md": b"not taken", "pytorch_model.bin": b"not taken"}  # fmt: skip
    with Hub(files) as hub:
        yield hub


def environment(hub: Hub | None, home: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return kept | {
        "PYTHONPATH": str(ROOT / "platform"), "HF_HOME": str(home),
        "HF_ENDPOINT": hub.url if hub else "http://127.0.0.1:9", **more,
    }  # fmt: skip


def pull(hub: Hub | None, home: Path, *arguments: str, code: str = CODE, **more: str) -> tuple[int, str]:
    command = [sys.executable, "-c", code, "pull", *(arguments or ("owner/model",))]
    done = subprocess.run(
        command, env=environment(hub, home, **more), capture_output=True, text=True, check=False, timeout=100
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr


def folder_of(home: Path) -> Path:
    return home / "hub" / "models--owner--model" / "snapshots" / COMMIT


def is_whole(folder: Path, hub: Hub) -> bool:
    found = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    return found == {name: hub.files[name] for name in hub.files if name not in ("README.md", "pytorch_model.bin")}


def test_a_checkpoint_is_fetched_once_and_found_again_without_the_hub(hub: Hub, tmp_path: Path) -> None:
    code, output = pull(hub, tmp_path)
    assert code == 0, output
    assert f"owner/model@{COMMIT}\n{folder_of(tmp_path)}\n" in output
    assert "50.3 MB of large ones to fetch" in output
    assert "50.3 MB of 50.3 MB, " in output
    assert is_whole(folder_of(tmp_path), hub)
    assert not list(tmp_path.rglob("*.part"))
    others = {path for _, path, _ in hub.asked if "owner/model" not in path and "/storage/" not in path}
    assert not others, "nothing is reported, and nothing else is looked up"
    sent = hub.sent
    code, output = pull(hub, tmp_path)
    assert code == 0, output
    assert "0.0 MB of large ones to fetch" in output
    assert hub.sent == sent == 2 * SIZE
    code, output = pull(None, tmp_path)
    assert code == 0, output
    assert "cannot be reached" in output
    assert "Going on with what was fetched earlier" in output
    code, output = pull(None, tmp_path, HF_HUB_OFFLINE="1")
    assert code == 0, output
    assert str(folder_of(tmp_path)) in output


def test_a_folder_of_ones_own(hub: Hub, tmp_path: Path) -> None:
    to = tmp_path / "own" / "model"
    code, output = pull(hub, tmp_path, "owner/model", "--revision", "v1", "--to", str(to))
    assert code == 0, output
    assert is_whole(to, hub)
    asked = [path for _, path, _ in hub.asked if path.startswith("/api/") and path.endswith("/v1")]
    assert len(asked) == 1, "where a tag or branch is, is asked once: it may move on meanwhile"
    assert not list((tmp_path / "hub").rglob("*.safetensors"))
    (to / SOME[0]).write_bytes(b"?" * SIZE)  # of the right size
    sent = hub.sent
    code, output = pull(hub, tmp_path, "owner/model@v1", "--to", str(to))
    assert code == 0, output
    assert is_whole(to, hub)
    assert hub.sent - sent == SIZE


def test_a_connection_that_breaks_is_taken_up_where_it_broke(hub: Hub, tmp_path: Path) -> None:
    hub.break_after, hub.breaks = 11 * MIB, 1
    code, output = pull(hub, tmp_path)
    assert code == 0, output
    assert is_whole(folder_of(tmp_path), hub)
    # The library writes ten megabytes at a time, and what did not come to as much is asked for again.
    assert hub.sent == 2 * SIZE + MIB
    assert [asked for _, path, asked in hub.asked if asked and "/storage/" in path] == [f"bytes={10 * MIB}-"]


def test_a_killed_process_leaves_what_it_had(hub: Hub, tmp_path: Path) -> None:
    hub.pause_s = 0.2
    command = [sys.executable, "-c", CODE, "pull", "owner/model"]

    def sizes() -> list[int]:
        with contextlib.suppress(OSError):  # it is being renamed
            return [part.stat().st_size for part in tmp_path.rglob("*.part")]
        return []

    with subprocess.Popen(command, env=environment(hub, tmp_path), stdout=subprocess.DEVNULL) as process:
        # What it has written, not what was sent: megabytes of that may lie in the kernel.
        while len(there := sizes()) < 2 or sum(there) < 10 * MIB:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    hub.pause_s = 0.0
    had = sum(sizes())
    assert len(sizes()) == 2
    assert had >= 10 * MIB
    assert not folder_of(tmp_path).exists()
    code, output = pull(None, tmp_path, HF_HUB_OFFLINE="1")
    assert code == 2
    assert "nor whole in the cache" in output
    hub.sent = 0
    code, output = pull(hub, tmp_path)
    assert code == 0, output
    assert is_whole(folder_of(tmp_path), hub)
    assert hub.sent == 2 * SIZE - had


def test_a_server_that_cannot_go_on_in_the_middle_sends_all_of_it_again(hub: Hub, tmp_path: Path) -> None:
    hub.break_after, hub.breaks, hub.ranges = 11 * MIB, 1, False
    code, output = pull(hub, tmp_path)
    assert code == 0, output
    assert is_whole(folder_of(tmp_path), hub)
    assert hub.sent == 2 * SIZE + 11 * MIB


def test_who_waited_for_another_goes_on_where_that_one_ended(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not where the part file ended when it was opened."""
    content, part = hub.files[SOME[0]], tmp_path / "model.part"
    part.write_bytes(content[:MIB])

    def waited(file: BinaryIO, how: int) -> None:
        with part.open("ab") as other:
            other.write(content[MIB : 3 * MIB])

    monkeypatch.setattr(resumed.fcntl, "flock", waited)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    progress = resumed.Progress(SIZE, lambda line: None)
    sha256 = hashlib.sha256(content).hexdigest()
    resumed.fetch_file(f"{hub.url}/storage/{SOME[0]}", {}, tmp_path / "model", SIZE, sha256, progress)
    assert (tmp_path / "model").read_bytes() == content
    assert (progress.done, hub.sent) == (SIZE, SIZE - 3 * MIB)


@pytest.mark.parametrize("name", [SOME[1], "tokenizer.json"])
def test_a_corrupt_file_is_named_removed_and_fetched_again(hub: Hub, tmp_path: Path, name: str) -> None:
    hub.spoil.add(name)
    code, output = pull(hub, tmp_path)
    assert code == 2
    assert "run the command again" in output
    if not name.endswith(".safetensors"):  # the others are kept by checksum
        assert f"{name}: not what the hub keeps, by checksum" in output
    hub.spoil.clear()
    code, output = pull(hub, tmp_path)
    assert code == 0, output
    assert is_whole(folder_of(tmp_path), hub)


def test_what_the_disk_spoilt_is_found_by_pulling_again(hub: Hub, tmp_path: Path) -> None:
    assert pull(hub, tmp_path)[0] == 0
    (folder_of(tmp_path) / SOME[0]).resolve().write_bytes(b"?" * SIZE)
    code, output = pull(hub, tmp_path)
    assert code == 2
    assert f"{SOME[0]}: not what the hub keeps, by checksum" in output
    assert pull(hub, tmp_path)[0] == 0
    assert is_whole(folder_of(tmp_path), hub)


def test_a_token_goes_to_the_hub_that_asks_for_it(hub: Hub, tmp_path: Path) -> None:
    hub.token = "hf_secret"
    code, output = pull(hub, tmp_path)
    assert code == 2
    assert "is neither a folder here nor a model on" in output
    assert "set HF_TOKEN" in output
    code, output = pull(hub, tmp_path, HF_TOKEN="hf_secret")
    assert code == 0, output
    assert "hf_secret" not in output
    assert {token for path, token in hub.tokens if "/storage/" in path} == {None}, "storage is another's"


def test_what_is_wrong_is_said(hub: Hub, tmp_path: Path) -> None:
    hub.gated = True
    code, output = pull(hub, tmp_path)
    assert (code, "is gated: ask for access on its page" in output, "HF_TOKEN" in output) == (2, True, True)
    hub.gated = False
    code, output = pull(hub, tmp_path, "owner/model@v2")
    assert (code, "owner/model has no revision v2" in output) == (2, True)
    code, output = pull(hub, tmp_path, "other/model")
    assert (code, "other/model is neither a folder here nor a model on" in output) == (2, True)
    code, output = pull(hub, tmp_path, "nonsense")
    assert (code, "nonsense: not OWNER/NAME" in output) == (2, True)
    code, output = pull(hub, tmp_path, "owner/model@v1", "--revision", "main")
    assert (code, "names one already" in output) == (2, True)
    code, output = pull(None, tmp_path)
    assert (code, "cannot be reached" in output) == (2, True)
    code, output = pull(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert (code, "HF_HUB_OFFLINE is set, and owner/model is neither" in output) == (2, True)
    hub.claimed[SOME[0]] = 10**18
    code, output = pull(hub, tmp_path)
    assert (code, "GB are to come and" in output) == (2, True)
    assert hub.sent == 0
    del hub.files["config.json"]
    code, output = pull(hub, tmp_path)
    assert (code, "is no checkpoint that Easel can read" in output) == (2, True)


def test_a_file_that_the_library_does_not_take_whole_is_named_with_what_does(hub: Hub, tmp_path: Path) -> None:
    hub.files[SOME[1]] = b"small"
    code, output = pull(hub, tmp_path, code=SMALL_LIMIT)
    assert code == 2
    assert f"{SOME[0]}: 25.2 MB, and the library takes no file above 21.0 MB in one piece" in output
    assert f"`hf download owner/model {SOME[0]} --revision {COMMIT}`" in output
    assert hub.sent == 0, "said before anything comes"
    to = tmp_path / "own folder"
    code, output = pull(hub, tmp_path, "owner/model", "--to", str(to), code=SMALL_LIMIT)
    assert code == 2
    assert f"--revision {COMMIT} --local-dir '{to}'`" in output
    to.mkdir()
    (to / SOME[0]).write_bytes(hub.files[SOME[0]])  # as that command does
    code, output = pull(hub, tmp_path, "owner/model", "--to", str(to), code=SMALL_LIMIT)
    assert code == 0, output
    assert is_whole(to, hub)


def test_names_of_a_hub_and_folders_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub_reference("owner/model") == HubReference("owner/model")
    assert hub_reference("owner/model@refs/pr/1") == HubReference("owner/model", "refs/pr/1")
    assert str(hub_reference("owner/m.1-x_y@v1")) == "owner/m.1-x_y@v1"
    for folder in ("model", "/owner/model", "./owner/model", "~/model", "a/b/c", "embedded:sudoku", "owner/model@"):
        assert hub_reference(folder) is None
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "model").mkdir(parents=True)
    assert hub_reference("owner/model") is None


def test_settings_find_what_was_fetched_and_nothing_else(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pull(hub, tmp_path)[0] == 0
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for checkpoint in ("owner/model", f"owner/model@{COMMIT}"):
        assert ModelSettings(checkpoint=checkpoint).folder == folder_of(tmp_path)
    with pytest.raises(ConfigurationError, match="easel pull owner/model@v1") as refused:
        _ = ModelSettings(checkpoint="owner/model@v1").folder
    assert refused.value.param == "checkpoint"
    (folder_of(tmp_path) / SOME[0]).unlink()
    with pytest.raises(ConfigurationError, match="nor whole in the cache"):
        cached_folder(HubReference("owner/model"))


def test_serving_pins_what_it_fetched(hub: Hub, tmp_path: Path) -> None:
    code = (
        "from easel.cli.serving import _fetched, _settings; "
        "print(_fetched(_settings(None, 'owner/model', None, None)).app.model.checkpoint)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(hub, tmp_path), capture_output=True, text=True, timeout=100
    )
    assert done.stdout.splitlines()[-1] == f"owner/model@{COMMIT}", done.stderr
    assert is_whole(folder_of(tmp_path), hub)


def test_a_disk_too_small_is_said_before_anything_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
    fetching._ensure_room(tmp_path / "not" / "there", 10**9)
    with pytest.raises(ConfigurationError, match=r"2\.00 GB are to come and 1\.00 GB are free"):
        fetching._ensure_room(tmp_path / "not" / "there", 2 * 10**9)

"""The key file: what it may hold, who is found in it, and that a change is taken up while a mistake is not."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from blockbuster import blockbuster_ctx

from easel.api.keys import Key, KeyStore, read
from easel.errors import ConfigurationError
from easel.telemetry.names import KEY_RELOADS
from easel.telemetry.recorder import MemoryRecorder


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def write(path: Path, *keys: dict[str, object]) -> None:
    """Whole at once, as a secret's mount changes: nobody reads half of it."""
    new = path.with_suffix(".new")
    new.write_text(yaml.safe_dump({"keys": list(keys)}))
    os.replace(new, path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "keys.yaml"
    write(path, {"id": "a", "sha256": sha256("secret-a"), "requests_per_minute": 5})
    return path


def store(path: Path, **more: object) -> KeyStore:
    return KeyStore(path, look_s=0.0, **more)  # type: ignore[arg-type]


async def test_finds_a_key_by_its_text_alone(path: Path) -> None:
    keys = store(path)
    found = await keys.find("secret-a")
    assert found is not None
    assert (found.id, found.owner, found.requests_per_minute) == ("a", "a", 5)
    for wrong in ("secret-b", "", "a", sha256("secret-a"), "x" * 100_000, "\udcff"):
        assert await keys.find(wrong) is None


async def test_a_changed_file_is_taken_up(path: Path) -> None:
    heard: list[list[str]] = []

    def changed(keys: Sequence[Key]) -> None:
        heard.append([key.id for key in keys])

    keys = store(path, changed=changed)
    write(path, {"id": "b", "sha256": sha256("secret-b"), "tenant": "team"})
    assert await keys.find("secret-a") is None
    found = await keys.find("secret-b")
    assert found is not None
    assert found.owner == "team"
    assert heard == [["a"], ["b"]]


async def test_a_swapped_link_is_a_changed_file(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "keys.yaml", {"id": name, "sha256": sha256(name)})
    (tmp_path / "..data").symlink_to("old")
    keys = store(tmp_path / "..data" / "keys.yaml")
    assert await keys.find("old")
    (tmp_path / "link").symlink_to("new")
    os.replace(tmp_path / "link", tmp_path / "..data")
    assert await keys.find("new")
    assert not await keys.find("old")


async def test_a_file_that_became_wrong_changes_nothing(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recorder = MemoryRecorder()
    keys = store(path, recorder=recorder)
    path.write_text("keys: [{id: a, sha256: short}]")
    assert await keys.find("secret-a")
    path.unlink()
    assert await keys.find("secret-a")
    assert await keys.find("secret-a")
    path.write_text("keys: 2001-99-99")  # no error of the YAML library's own
    assert await keys.find("secret-a")
    assert recorder.total(KEY_RELOADS, result="failed") == 3
    assert "keys stay as they were" in caplog.text
    write(path, {"id": "b", "sha256": sha256("secret-b")})
    assert await keys.find("secret-b")
    assert recorder.total(KEY_RELOADS, result="ok") == 1


async def test_looks_at_the_file_no_more_often_than_it_should(path: Path) -> None:
    now = 0.0
    keys = KeyStore(path, clock=lambda: now, look_s=1.0)
    write(path)
    assert await keys.find("secret-a")
    now = 1.0
    assert not await keys.find("secret-a")


async def test_many_who_ask_at_once_look_once_and_block_nothing(path: Path) -> None:
    keys = store(path)
    write(path, {"id": "b", "sha256": sha256("secret-b")})
    with blockbuster_ctx():
        found = await asyncio.gather(*(keys.find("secret-b") for _ in range(20)))
    assert all(found)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("keys: [", "not YAML, line 1"),
        ("keys: [{id: a, tenant: 2001-99-99}]", "not YAML"),
        ("keys: [{id: a}]", "keys.0.sha256: Field required"),
        ("keys: [{id: a, sha256: XY}]", "keys.0.sha256"),
        (f"keys: [{{id: a, sha256: '{'0' * 64}', limit: 3}}]", "keys.0.limit"),
        (f"keys: [{{id: a, sha256: '{'0' * 64}'}}, {{id: a, sha256: '{'1' * 64}'}}]", "two keys have the same id"),
        (f"keys: [{{id: a, sha256: '{'0' * 64}'}}, {{id: b, sha256: '{'0' * 64}'}}]", "two keys have the same sha256"),
        (f"keys: [{{id: a, sha256: '{'0' * 64}', max_concurrent: 0}}]", "keys.0.max_concurrent"),
    ],
)
def test_a_wrong_file_is_refused_by_field(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as error:
        read(path)
    assert says in error.value.message
    assert "0" * 64 not in error.value.message, "no hash is shown"


def test_no_file_at_the_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        KeyStore(tmp_path / "none.yaml")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        read(tmp_path / "binary")


def test_an_empty_file_holds_no_key(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("")
    assert read(tmp_path / "empty").keys == ()

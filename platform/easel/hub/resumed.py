"""One large file of a hub, gone on with where an earlier attempt broke off, and checked before it counts.

The library resumes within a process only: what a killed one had fetched is gone, up to gigabytes of every file. So
large files are fetched here, by the library's own transfer, into a part file that stays. Owns: the part file, its lock,
the checksum. Refuses to know: which files, and where they end up (`fetching`).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from easel.errors import ConfigurationError

PROGRESS_S = 2.0


class Interrupted(Exception):
    """The command ends: what is there stays for the next time."""


class Progress:
    """Bytes of all files together, said every now and then. Called from many threads."""

    def __init__(self, total: int, say: Callable[[str], None]) -> None:
        self.total, self.done, self.stopped = total, 0, False
        self._say, self._fetched, self._lock = say, 0, threading.Lock()
        self._began = self._said = time.monotonic()

    def kept(self, count: int) -> None:
        """So many bytes lay there already. Less than none: they had to be thrown away."""
        with self._lock:
            self.done += count

    def add(self, count: int) -> None:
        """So many bytes came. Raises `Interrupted` where no more are wanted."""
        if self.stopped:
            raise Interrupted
        with self._lock:
            self.done += count
            self._fetched += count
            now = time.monotonic()
            if now - self._said < PROGRESS_S and self.done < self.total:
                return
            self._said = now
            rate = self._fetched / 1e6 / max(now - self._began, 1e-3)
        self._say(f"{size_of(self.done)} of {size_of(self.total)}, {rate:.0f} MB/s")


class _Counted:
    """A file whose bytes are counted as they are written: what the library's transfer writes to."""

    def __init__(self, file: BinaryIO, progress: Progress) -> None:
        self._file, self._progress = file, progress

    def write(self, data: bytes) -> int:
        self._progress.add(len(data))
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int) -> int:
        # Only where a server does not go on in the middle: everything comes again.
        self._progress.kept(offset - self._file.tell())
        return self._file.seek(offset)

    def truncate(self) -> int:
        return self._file.truncate()


def fetch_file(url: str, headers: dict[str, str], target: Path, size: int, sha256: str, progress: Progress) -> None:
    """Fetch `url`, of `size` bytes, to `target`, which is there in the end, whole and right.

    Raises `ConfigurationError` where what came has another checksum, and whatever the library does.
    """
    from huggingface_hub.file_download import http_get

    part = part_of(target)
    part.parent.mkdir(parents=True, exist_ok=True)
    with part.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # somebody else may fetch the same
        if target.exists():
            part.unlink(missing_ok=True)
            progress.kept(size)
            return
        have = file.seek(0, os.SEEK_END)  # whoever had the lock may have gone on
        if have > size:
            file.truncate(0)
            have = 0
        progress.kept(have)
        counted: Any = _Counted(file, progress)
        http_get(url, counted, resume_size=have, headers=headers, expected_size=size, tqdm_class=silent_bar())
        file.flush()
        if sha256_of(part) != sha256:
            part.unlink()
            raise ConfigurationError(
                f"{target.name}: what came is not what the hub keeps: its sha256 is not {sha256}. It was removed; "
                "run the command again",
                "checkpoint",
            )
        part.rename(target)


def part_of(target: Path) -> Path:
    """Where a file lies until it is whole."""
    return target.with_name(f"{target.name}.part")


def size_of(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def sha256_of(path: Path) -> str:
    """Of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_sha1_of(path: Path) -> str:
    """What git calls a file of that content: all that a hub says of small files."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    digest.update(path.read_bytes())
    return digest.hexdigest()


def silent_bar() -> type[Any]:
    """A progress bar that shows nothing, in the place of the library's: there is one line for all files."""
    from tqdm import tqdm

    class Silent(tqdm):  # type: ignore[misc]
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **(options | {"disable": True}))

    return Silent

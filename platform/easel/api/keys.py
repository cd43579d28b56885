"""API keys: a file of their hashes, read again when it changes.

Only SHA-256 of a key is kept, in the file and here. That is enough for keys that are random: there is nothing to guess.
The file may be a mounted Kubernetes secret: what counts is what the path leads to, so the kubelet's swap of a link is
seen. A file that became wrong changes nothing: the last right one goes on to hold, and the log and a metric say so.

Owns: the file's shape, and which key a call came with. Refuses to know: how limits are enforced, and HTTP.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator

from easel.errors import ConfigurationError
from easel.settings import KeyLimits, Name
from easel.settings_base import Settings
from easel.settings_errors import read_yaml
from easel.telemetry.names import KEY_RELOADS
from easel.telemetry.recorder import NullRecorder, Recorder

logger = logging.getLogger("easel.api")

LOOK_S = 1.0
"""Between two looks at whether the file has changed: a key that is taken out is refused that much later at most."""
MOST_CHARACTERS = 512
"""Longer keys are nobody's, and not hashed."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Key(KeyLimits):
    """One key: who it is, and what it may do."""

    id: Name
    """What logs and metrics call it. Never the key itself."""
    sha256: Sha256
    """`printf %s "$KEY" | sha256sum`."""
    tenant: str = Field("", max_length=128)
    """Keys of one tenant share its part of the service. Empty: the key's id."""
    weight: float = Field(1.0, gt=0.0, le=1000.0)
    """The tenant's share against others when there is more work than the service can do. Of a tenant's keys the largest
    counts."""
    models: tuple[Name, ...] = ()
    """Names of the models that it may use. Empty: all."""
    max_priority: int = Field(0, ge=-10, le=10)
    """Highest `easel.priority` that its requests may have; below 0, also what those have that ask for none."""

    @property
    def owner(self) -> str:
        """The tenant."""
        return self.tenant or self.id


class KeyFile(Settings):
    """The whole file."""

    keys: tuple[Key, ...] = ()

    @field_validator("keys")
    @classmethod
    def _unique(cls, keys: tuple[Key, ...]) -> tuple[Key, ...]:
        for field in ("id", "sha256"):
            first: dict[str, str] = {}
            for key in keys:
                value = getattr(key, field)
                if value in first:
                    whose = value if field == "id" else f"{first[value]} and {key.id}"
                    raise ValueError(f"two keys have the same {field}: {whose}")
                first[value] = key.id
        return keys


Changed = Callable[[Sequence[Key]], None]


def read(path: Path) -> KeyFile:
    """The file's keys. Raises `ConfigurationError` that names what is wrong, and never shows a hash."""
    data = read_yaml(path, "keys_file", secret=True)
    try:
        return KeyFile.model_validate({} if data is None else data)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors(include_input=False)]
        raise ConfigurationError(f"{path}: {'; '.join(wrong)}", "keys_file") from None


class KeyStore:
    """Knows the keys. `changed` is called with all of them whenever they do, and once at the start.

    Raises `ConfigurationError` where the file is missing or wrong at the start.
    """

    def __init__(
        self,
        path: Path,
        recorder: Recorder = NullRecorder(),  # noqa: B008
        changed: Changed = lambda keys: None,
        clock: Callable[[], float] = time.monotonic,
        look_s: float = LOOK_S,
    ) -> None:
        self._path = path
        self._recorder = recorder
        self._changed = changed
        self._clock = clock
        self._look_s = look_s
        # Looked up by a hash that only this process can compute, so that nothing can be learned from how long it takes.
        self._pepper = secrets.token_bytes(32)
        self._keys: dict[bytes, Key] = {}
        self._seen = _signature(path)
        self._looked_at = clock()
        self._looking: asyncio.Task[None] | None = None
        self._take(read(path))

    async def find(self, presented: str) -> Key | None:
        """The key of that text, if it is one. Looks at the file first if that is due."""
        if self._clock() - self._looked_at >= self._look_s:
            if self._looking is None or self._looking.done():
                self._looking = asyncio.get_running_loop().create_task(self._look())
            await asyncio.shield(self._looking)  # a caller who leaves does not take the look from the others
        if len(presented) > MOST_CHARACTERS:
            return None
        digest = hashlib.sha256(presented.encode("utf-8", "surrogateescape")).hexdigest()
        key = self._keys.get(self._place(digest))
        return key if key is not None and hmac.compare_digest(key.sha256, digest) else None

    async def _look(self) -> None:
        seen, found = await asyncio.to_thread(_look, self._path, self._seen)
        self._looked_at = self._clock()
        if seen == self._seen:
            return
        self._seen = seen
        if isinstance(found, KeyFile):
            self._take(found)
            self._recorder.add(KEY_RELOADS, result="ok")
            logger.info("%s: %d keys", self._path, len(self._keys))
        else:
            self._recorder.add(KEY_RELOADS, result="failed")
            logger.error("keys stay as they were: %s", found)

    def _take(self, file: KeyFile) -> None:
        self._keys = {self._place(key.sha256): key for key in file.keys}
        self._changed(file.keys)

    def _place(self, digest: str) -> bytes:
        return hmac.digest(self._pepper, digest.encode(), "sha256")


def _signature(path: Path) -> tuple[Any, ...]:
    """What differs when the file has changed; empty where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return (status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev)


def _look(path: Path, seen: tuple[Any, ...]) -> tuple[tuple[Any, ...], KeyFile | ConfigurationError | None]:
    """The file's signature, and what it holds if that is not the one seen before. Blocks."""
    now = _signature(path)
    if now == seen:
        return now, None
    try:
        return now, read(path)
    except ConfigurationError as error:
        return now, error

"""What a checkpoint's name on a hub looks like, and where one that was fetched lies.

Owns: the spelling `OWNER/NAME` or `OWNER/NAME@REVISION`, and which files of a repository a checkpoint is. Refuses to
know: the network. What is not in the cache is not looked for elsewhere, so that replicas of one service cannot come to
serve different things.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easel.errors import ConfigurationError

FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")
"""Patterns of what is taken: what the chart's download takes too."""
DEFAULT_REVISION = "main"

_SPELLING = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@([A-Za-z0-9][\w./-]*))?")


@dataclass(frozen=True, slots=True)
class HubReference:
    """One repository of a hub at one revision."""

    repository: str
    revision: str | None = None
    """A branch, a tag or a commit. None: the default branch."""

    def __str__(self) -> str:
        return self.repository if self.revision is None else f"{self.repository}@{self.revision}"


def hub_reference(checkpoint: str) -> HubReference | None:
    """What a `checkpoint` setting names on a hub; None where it is a folder here, or cannot be such a name."""
    match = _SPELLING.fullmatch(checkpoint)
    if match is None or Path(checkpoint).is_dir():
        return None
    return HubReference(match[1], match[2])


def cached_folder(reference: HubReference) -> Path:
    """Where it lies, whole. Raises `ConfigurationError` where it was not fetched, or not to the end."""
    huggingface_hub = library()
    try:
        return Path(
            huggingface_hub.snapshot_download(
                reference.repository,
                revision=reference.revision or DEFAULT_REVISION,
                allow_patterns=list(FILES),
                local_files_only=True,
            )
        )
    except huggingface_hub.errors.LocalEntryNotFoundError:
        raise ConfigurationError(
            f"{reference} is neither a folder here nor whole in the cache of models, "
            f"{huggingface_hub.constants.HF_HUB_CACHE}: easel pull {reference}",
            "checkpoint",
        ) from None


def library() -> Any:
    """huggingface_hub, told to report nothing unless the environment says otherwise.

    Raises `ConfigurationError` where it is not installed.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.file_download
        import huggingface_hub.utils
    except ImportError:
        raise ConfigurationError(
            "checkpoints of a hub need more than this installation has (huggingface_hub): "
            "pip install 'easel-serve[serve]'",
            "checkpoint",
        ) from None
    return huggingface_hub

"""Where checkpoints lie: those that come with the package, one folder each, served as `embedded:NAME`, with a prompt to
try with each; folders of one's own; and what was fetched from a hub.
"""

from __future__ import annotations

from pathlib import Path

from easel.errors import ConfigurationError
from easel.hub.reference import cached_folder, hub_reference

EMBEDDED = "embedded:"
"""Prefix of checkpoints that come with the package, as in `embedded:sudoku`."""

EXAMPLES = {
    "embedded:sudoku": "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79",
    "embedded:tiny": "reverse: canvas",
}
"""A chat message that shows what the checkpoint can do."""


def folder_of(checkpoint: str) -> Path:
    """The folder that a `checkpoint` setting names. Raises `ConfigurationError` where there is none."""
    if checkpoint.startswith(EMBEDDED):
        root = Path(__file__).parent
        folder = root / checkpoint.removeprefix(EMBEDDED)
        if not (folder / "config.json").is_file() or folder.parent != root:
            known = ", ".join(sorted(EMBEDDED + p.parent.name for p in root.glob("*/config.json"))) or "none"
            raise ConfigurationError(f"no embedded checkpoint {checkpoint!r}; there are: {known}", "checkpoint")
        return folder
    if (reference := hub_reference(checkpoint)) is not None:
        return cached_folder(reference)
    folder = Path(checkpoint).expanduser()
    if not (folder / "config.json").is_file():
        raise ConfigurationError(f"no config.json in {folder}: is it a checkpoint's folder?", "checkpoint")
    return folder

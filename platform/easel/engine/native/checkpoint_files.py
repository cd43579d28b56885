"""A checkpoint's safetensors files as one table of tensors: where each lies, and whether all are there.

Owns: finding the files, their headers, and comparing what they hold with the table in `tensors`. A tensor that is
missing, unexpected or of another shape is refused by name, because a model that runs without one answers with noise and
no error. Vision tensors are known and skipped: there is no tower. Refuses to know: what the weights are for, and how to
read many of them fast (`reading`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from easel.engine.native.config import ModelConfig, read_json
from easel.engine.native.tensors import Expected, Stored, expected_tensors, tied_copies, vision_tensors
from easel.errors import ConfigurationError

log = logging.getLogger(__name__)

STORED_TYPES: Mapping[Stored, tuple[str, ...]] = {
    "float": ("BF16", "F16", "F32"),
    "codes": ("U8",),
    "scales": ("F8_E4M3",),
    "scalar": ("F32",),
}
MOST_NAMES = 8
"""Problems listed in one error. The rest are counted."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor as it lies in a file."""

    path: Path
    dtype: str
    """As the format spells it: BF16, U8, F8_E4M3."""
    shape: tuple[int, ...]
    start: int
    """In bytes from the beginning of the file."""
    end: int


class CheckpointFiles:
    """The safetensors files of a folder as one mapping."""

    def __init__(self, folder: Path) -> None:
        """Reads headers only. Raises `ConfigurationError` for files that are missing, broken or unlike their index."""
        self.folder = folder
        self.entries: dict[str, Entry] = {}
        self._open: dict[Path, Any] = {}  # safetensors' handles carry no types
        index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
        if index.is_file():
            file_of = read_json(index).get("weight_map")
            if not isinstance(file_of, dict) or not all(isinstance(file, str) for file in file_of.values()):
                raise ConfigurationError(f"{index}: weight_map: a mapping of names to files is needed", "weight_map")
            for file in sorted(set(file_of.values())):
                inside, listed = self._header(folder / file), {name for name, its in file_of.items() if its == file}
                if inside.keys() != listed:
                    raise ConfigurationError(f"{file} and its index differ: {_some(sorted(inside.keys() ^ listed))}")
                self.entries |= inside
        elif single.is_file():
            self.entries = self._header(single)
        else:
            raise ConfigurationError(f"{folder}: neither model.safetensors nor model.safetensors.index.json")

    def check(self, config: ModelConfig) -> None:
        """Compare with the table. Raises `ConfigurationError` listing every kind of difference."""
        expected, vision, copies = expected_tensors(config), vision_tensors(config), tied_copies(config)
        known = expected | (vision if any(name in self.entries for name in vision) else {})
        problems = [f"missing: {name}" for name in known if name not in self.entries]
        problems += [f"unexpected: {name}" for name in self.entries if name not in known and name not in copies]
        for name, tensor in known.items():
            if name in self.entries:
                problems += self._differences(name, tensor)
        if problems:
            raise ConfigurationError(f"{self.folder} does not hold the model it describes: {_some(problems)}")
        if skipped := [name for name in self.entries if name in vision]:
            log.info("%d vision tensors skipped: this engine reads text only", len(skipped))

    def read(self, name: str) -> torch.Tensor:
        """One tensor as it is stored, on the CPU."""
        tensor: torch.Tensor = self._handle(self.entries[name].path).get_tensor(name)
        return tensor

    def stack(self, names: Sequence[str]) -> torch.Tensor:
        """Tensors of one shape and type as one with a dimension more in front, on the CPU."""
        return torch.stack([self.read(name) for name in names])

    def _handle(self, path: Path) -> Any:
        if path not in self._open:
            try:
                self._open[path] = safe_open(path, framework="pt", device="cpu")
            except (OSError, SafetensorError) as error:
                raise ConfigurationError(f"{path}: {error}") from None
        return self._open[path]

    def _header(self, path: Path) -> dict[str, Entry]:
        """Where each tensor lies. The library checks the header first, and that the file is as long as it says; it
        does not tell offsets, which are what the format is about."""
        self._handle(path)
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        data = 8 + length
        return {
            name: Entry(path, tensor["dtype"], tuple(tensor["shape"]), *(data + at for at in tensor["data_offsets"]))
            for name, tensor in header.items()
            if name != "__metadata__"
        }

    def _differences(self, name: str, expected: Expected) -> list[str]:
        entry = self.entries[name]
        # A scalar is written as [] by some and as [1] by others.
        if entry.shape != expected.shape and not (expected.stored == "scalar" and entry.shape == (1,)):
            return [f"shape of {name}: {list(entry.shape)} instead of {list(expected.shape)}"]
        if entry.dtype not in STORED_TYPES[expected.stored]:
            return [f"type of {name}: {entry.dtype} instead of {' or '.join(STORED_TYPES[expected.stored])}"]
        return []


def _some(problems: list[str]) -> str:
    shown = "; ".join(problems[:MOST_NAMES])
    return shown if len(problems) <= MOST_NAMES else f"{shown}; and {len(problems) - MOST_NAMES} more"

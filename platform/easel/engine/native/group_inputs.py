"""What a step over groups of 256 rows reads from the host: one pinned buffer, copied to the device in one piece.

A group is a prefill chunk, a commit or a canvas. Canvases come first, because only they reach the vocabulary; the
groups behind those in use are idle (length 0). Every field has one row a group, so that the first G rows are what a
graph captured for G groups reads. Owns: this layout and how a group is written into it. Refuses to know: which groups
a step has (`cuda_runner`), and what is done with them (`cuda_model`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from easel.engine.native.config import LayerKind
from easel.engine.native.kernels.groups import Groups
from easel.engine.native.kv_cache import BlockTable
from easel.protocol import GROUP_ROWS

Ints = npt.NDArray[np.int32]

SIZES = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 96, 128)
"""Numbers of groups that graphs are captured for, up to what the engine can hold."""


def sizes_up_to(most: int) -> tuple[int, ...]:
    """The numbers of groups to capture, ending with `most`."""
    return (*(size for size in SIZES if size < most), most)


@dataclass(frozen=True, slots=True)
class Field:
    """Where a field lies in the buffer, in int32 elements."""

    offset: int
    width: int


class GroupInputs:
    """See the module. `host[name]` [groups, width] is filled, `upload` copies, `device(name, n)` is what kernels read.

    Fields: `start`, `length`, `causal` as in `Groups`; `read_seat` and `write_seat`: where the state of a canvas is
    kept, before and after; `fresh`: 1 where the tokens come from `tokens` and not from the seat; `tokens` [256];
    `table_KIND` and `first_KIND`: the sequence's blocks in the pool of that kind, and the position of the first token
    in them.
    """

    def __init__(
        self, groups: int, table_widths: Mapping[LayerKind, int], device: torch.device, rows: int = GROUP_ROWS
    ) -> None:
        """`table_widths`: most blocks of one sequence in each pool. `rows`: of a group; tests use fewer."""
        self.groups, self.rows = groups, rows
        widths = dict.fromkeys(("start", "length", "causal", "read_seat", "write_seat", "fresh"), 1)
        widths["tokens"] = rows
        for kind, width in table_widths.items():
            widths |= {f"first_{kind}": 1, f"table_{kind}": max(1, width)}
        self._fields: dict[str, Field] = {}
        end = 0
        for name, width in widths.items():
            self._fields[name] = Field(end, width)
            end += -(-groups * width // 32) * 32  # rows begin at multiples of 128 bytes
        pinned = device.type == "cuda"
        self._host = torch.zeros(end, dtype=torch.int32, pin_memory=pinned)
        self._device = torch.zeros(end, dtype=torch.int32, device=device)
        flat: Ints = self._host.numpy()
        self.host: dict[str, Ints] = {
            name: flat[f.offset : f.offset + groups * f.width].reshape(groups, f.width)
            for name, f in self._fields.items()
        }

    def device(self, name: str, groups: int) -> torch.Tensor:
        """The first `groups` rows of a field on the device: int32 [groups], or [groups, width] where width > 1."""
        field = self._fields[name]
        flat = self._device[field.offset : field.offset + groups * field.width]
        wide = name == "tokens" or name.startswith("table_")
        return flat.view(groups, field.width) if wide else flat

    def of(self, groups: int) -> Groups:
        """The first `groups` of them, as kernels take them."""
        return Groups(*(self.device(name, groups) for name in ("start", "length", "causal")))

    def clear(self) -> None:
        """Make all groups idle. Lengths alone decide that; other fields of an idle group are never used."""
        self.host["length"][:] = 0
        self.host["causal"][:] = 1

    def put(self, group: int, start: int, length: int, causal: bool, tables: Mapping[LayerKind, BlockTable],
            block_tokens: int) -> None:  # fmt: skip
        """Write one group. `start`: position of its first row; `length`: rows in use."""
        host = self.host
        host["start"][group] = start
        host["length"][group] = length
        host["causal"][group] = causal
        for kind, table in tables.items():
            host[f"first_{kind}"][group] = table.dropped * block_tokens
            host[f"table_{kind}"][group, : len(table.blocks)] = table.blocks

    def upload(self) -> None:
        """Copy everything, in the order of the current stream. Write nothing before that copy is done."""
        self._device.copy_(self._host, non_blocking=True)

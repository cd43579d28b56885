"""What a step's rows are, as the kernels read it: groups of rows, and each group's view of a paged pool.

Owns: the two records that every kernel over rows takes. All of it lies on the device, so that one captured graph serves
whatever mix of groups the next step brings. Refuses to know: who fills them (the step's inputs), and what for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Groups:
    """`count` groups of equally many rows; group g owns the rows from `g * rows / count` on."""

    start: torch.Tensor
    """int32 [G]: position of the group's first row: as many tokens of its sequence lie before it."""
    length: torch.Tensor
    """int32 [G]: rows that hold something. 0: an idle group. What comes out of the other rows is finite, no more."""
    causal: torch.Tensor
    """int32 [G]: 1: encodes (part of a prompt, or a commit) and writes the cache. 0: a canvas, which reads it."""

    @property
    def count(self) -> int:
        """Groups, idle ones included."""
        return self.start.shape[0]

    def rows_each(self, rows: int) -> int:
        """Rows of one group where `rows` are all of them. Raises `ValueError` where they do not divide."""
        each, rest = divmod(rows, self.count)
        if rest or each == 0:
            raise ValueError(f"{rows} rows do not make {self.count} groups of equal size")
        return each


@dataclass(frozen=True, slots=True)
class PagedKv:
    """One layer's keys and values, and where each group's tokens lie in them."""

    keys: torch.Tensor
    """bf16 [blocks * block_tokens, kv_heads, head_dim]."""
    values: torch.Tensor
    """Like `keys`."""
    table: torch.Tensor
    """int32 [G, most blocks]: block i of a group's sequence. For causal groups it reaches over the group's own rows."""
    first: torch.Tensor
    """int32 [G]: position of the first token of the table's first block: older blocks were given back."""
    block_tokens: int


def on_hopper(x: torch.Tensor) -> bool:
    """Whether it lies on a GPU that has the instructions of `hopper_product` and `hopper_attention`."""
    return x.is_cuda and torch.cuda.get_device_capability(x.device)[0] == 9

"""Short and long examples in rows of one length, so that one compiled graph serves both.

A row of 480 positions holds either two short examples (128 prompt + 96 canvas each, 32 positions idle) or one long one
(384 + 96). Prompts are padded on the left; rotary positions are relative, so neither padding nor
place changes anything.
Owns who sees whom: a prompt looks back, a canvas at its prompt and itself, idle positions at themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.sudoku.notation import CANVAS, LONG, SHORT

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
ROW = LONG + CANVAS
PAIR = 2 * (SHORT + CANVAS)
BLOCK = 128

# Key blocks that each block of queries needs: in a row of two short examples, and in a row of one long one.
PAIR_BLOCKS = ((0,), (0, 1), (1, 2, 3), (1, 2, 3))
LONG_BLOCKS = ((0,), (0, 1), (0, 1, 2), (0, 1, 2, 3))


@dataclass
class Prompts:
    """Token ids of short [n_short, 128] and long [n_long, 384] prompts, and the pad tokens on their left. Examples are
    numbered short ones first, also where canvases [n_short + n_long, 96] are concerned."""

    short: Tensor
    long: Tensor
    short_pad: Tensor
    long_pad: Tensor


class Packing:
    """Rows for `n_short` (even) short and `n_long` long examples. `look_at` must be called when the padding changes."""

    def __init__(self, n_short: int, n_long: int, device: torch.device) -> None:
        if n_short % 2:
            raise ValueError(f"n_short must be even, got {n_short}")
        self.n_short, self.n_long, self.pairs = n_short, n_long, n_short // 2
        self.rows = self.pairs + n_long
        at = torch.arange(ROW, device=device)
        in_pair = at < PAIR
        part = torch.where(in_pair, at // (SHORT + CANVAS), -1)
        offset = torch.where(in_pair, at % (SHORT + CANVAS), 0)
        self.in_canvas = torch.empty(self.rows, ROW, dtype=torch.bool, device=device)
        self.in_canvas[: self.pairs] = in_pair & (offset >= SHORT)
        self.in_canvas[self.pairs :] = at >= LONG
        self.part, self.offset = part, offset
        self.document = torch.zeros(self.rows, ROW, dtype=torch.int32, device=device)

    def look_at(self, prompts: Prompts) -> None:
        """Take over the padding of these prompts, in place."""
        pads = prompts.short_pad.view(self.pairs, 2)[:, self.part.clamp(min=0)]
        seen = (self.part >= 0) & (self.offset >= pads)
        self.document[: self.pairs] = torch.where(seen, self.part, -1)
        at = torch.arange(ROW, device=self.part.device)
        self.document[self.pairs :] = torch.where(at >= prompts.long_pad[:, None], 0, -1)

    def visible(self, row: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """Whether position q of a row sees position k of it."""
        here = self.document[row, q]
        together = (here == self.document[row, k]) & (here >= 0)
        # An idle query needs one key; nobody reads what it gets.
        return (together & ((k <= q) | self.in_canvas[row, q])) | (q == k)

    def counted(self) -> Tensor:
        """1.0 where a position [R, 480] holds a token of an example, 0.0 at padding."""
        return (self.document >= 0).float()

    def pack_tokens(self, prompts: Prompts) -> Tensor:
        """All prompt tokens in one flat tensor, short ones first."""
        return torch.cat((prompts.short.flatten(), prompts.long.flatten()))

    def place(self, embedded: Tensor, canvases: Tensor) -> Tensor:
        """Rows [R, 480, H] from embedded prompt tokens (as `pack_tokens` orders them) and canvases [N, 96, H]."""
        n, width = self.n_short, embedded.shape[-1]
        short = torch.cat((embedded[: n * SHORT].view(n, SHORT, width), canvases[:n]), dim=1)
        # Not zeros: the derivative of a norm at zero is 1000, and twelve layers of them overflow.
        pairs = F.pad(short.view(self.pairs, PAIR, width), (0, 0, 0, ROW - PAIR), value=1.0)
        long = torch.cat((embedded[n * SHORT :].view(self.n_long, LONG, width), canvases[n:]), dim=1)
        return torch.cat((pairs, long))

    def canvases(self, rows: Tensor) -> Tensor:
        """The canvas positions [N, 96, H] of rows [R, 480, H]."""
        short = self.short_examples(rows)[:, SHORT:]
        return torch.cat((short, rows[self.pairs :, LONG:]))

    def short_examples(self, rows: Tensor) -> Tensor:
        """The short examples [n_short, 224, H] of rows [R, 480, H]."""
        return rows[: self.pairs, :PAIR].reshape(self.n_short, SHORT + CANVAS, rows.shape[-1])

    def masked_attention(self) -> Attend:
        """Attention with an explicit mask, on any device."""
        at = torch.arange(ROW, device=self.part.device)
        rows = torch.arange(self.rows, device=self.part.device)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            mask = self.visible(rows[:, None, None], at[:, None], at[None, :])[:, None]
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0, enable_gqa=True)

        return attend

    def flex_attention(self) -> Attend:
        """The same through FlexAttention, for a GPU."""
        from torch.nn.attention.flex_attention import BlockMask, flex_attention

        document, in_canvas, device = self.document, self.in_canvas, self.part.device

        def mask_mod(row: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            here = document[row, q]
            together = (here == document[row, k]) & (here >= 0)
            return (together & ((k <= q) | in_canvas[row, q])) | (q == k)

        blocks = (ROW + BLOCK - 1) // BLOCK
        counts = torch.zeros(2, blocks, dtype=torch.int32)
        indices = torch.zeros(2, blocks, blocks, dtype=torch.int32)
        for kind, table in enumerate((PAIR_BLOCKS, LONG_BLOCKS)):
            for query, keys in enumerate(table):
                counts[kind, query] = len(keys)
                rest = [b for b in range(blocks) if b not in keys]
                indices[kind, query] = torch.tensor([*keys, *rest], dtype=torch.int32)
        kind_of_row = (torch.arange(self.rows) >= self.pairs).long()
        # All as partial blocks: the mask is consulted in each.
        block_mask = BlockMask.from_kv_blocks(
            counts[kind_of_row][:, None].to(device), indices[kind_of_row][:, None].to(device),
            BLOCK_SIZE=BLOCK, mask_mod=mask_mod, seq_lengths=(ROW, ROW),
        )  # fmt: skip

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return flex_attention(q, k, v, block_mask=block_mask, scale=1.0, enable_gqa=True)  # type: ignore[return-value]

        return attend

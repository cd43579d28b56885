"""Attention of a ragged batch over a paged KV cache, in plain torch.

Owns: the pools' tensors, which cached positions a segment sees, and the product itself, one segment at a time. The
window is the reference's: on a sliding layer an encoded token sees the last `window` tokens including itself, and a
whole canvas sees the last `window - 1` cached tokens, counted from where it starts, and all of itself. Refuses to
know: which blocks belong to whom (`kv_cache`), projections, norms and rotary positions (`model`).

A kernel that replaces this takes the same `Batch` and `KvTensors`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch.nn.functional import scaled_dot_product_attention

from easel.engine.native.config import LayerKind, ModelConfig

Mode = Literal["encode", "decode"]


@dataclass(frozen=True, slots=True)
class Cached:
    """Where one sequence's cached tokens lie in one pool."""

    first: int
    """Position of the first token that is still there."""
    slots: torch.Tensor
    """int64 [n]: the row of the pool that holds position `first + i`. Reaches over the rows of an encode segment."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive rows of one sequence in a batch."""

    mode: Mode
    rows: slice
    start: int
    """Position of the first row: as many tokens of the sequence are cached before it."""
    cached: dict[LayerKind, Cached]

    @property
    def length(self) -> int:
        """Rows."""
        return int(self.rows.stop - self.rows.start)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of many sequences, flattened: those that encode first, those that decode after them."""

    tokens: torch.Tensor
    """int64 [rows]."""
    positions: torch.Tensor
    """int64 [rows]."""
    encode_rows: int
    segments: tuple[Segment, ...]
    """In the order of their rows."""
    soft: torch.Tensor | None
    """[decode rows, hidden]: soft embeddings of the step before, zeros on a canvas's first step. None: all zeros."""

    @property
    def rows(self) -> int:
        """All of them."""
        return self.tokens.shape[0]


class KvTensors:
    """Keys and values of every layer, as rows of `blocks * block_tokens` in the pool of the layer's kind."""

    def __init__(self, config: ModelConfig, rows: dict[LayerKind, int], dtype: torch.dtype, device: str) -> None:
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        for layer in config.layers:
            shape = (rows[layer.kind], layer.kv_heads, layer.head_dim)
            self.keys.append(torch.zeros(shape, dtype=dtype, device=device))
            self.values.append(torch.zeros(shape, dtype=dtype, device=device))


@dataclass(slots=True)
class _View:
    """What one segment reads and writes on layers of one kind: the same for all of them, so made once a batch."""

    read: torch.Tensor  # int64 [visible cached tokens]
    write: torch.Tensor | None  # int64 [rows]; None: a canvas is never written
    mask: torch.Tensor | None  # bool [rows, visible + rows]; None: all visible


@dataclass(slots=True)
class TorchAttention:
    """Attention for one batch. Made anew for each."""

    config: ModelConfig
    kv: KvTensors
    batch: Batch
    _views: dict[tuple[int, LayerKind], _View] = field(default_factory=dict)

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put the encoded rows of `keys` and `values` [rows, kv_heads, head_dim] into the cache.

        All of a layer's writes come before its reads, so that a canvas may follow, in the same batch, the tokens that
        it continues.
        """
        for index, segment in enumerate(self.batch.segments):
            if segment.mode == "encode":
                slots = self._view(index, self.config.layers[layer].kind).write
                assert slots is not None, "encoded rows have a place to be written to"
                self.kv.keys[layer].index_copy_(0, slots, keys[segment.rows])
                self.kv.values[layer].index_copy_(0, slots, values[segment.rows])

    def attend(
        self, layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, first_row: int = 0
    ) -> torch.Tensor:
        """What each row reads. `queries` [rows, heads, head_dim]; returns [rows - first_row, heads * head_dim].

        Rows before `first_row`, the end of a segment, are left out: nobody needs what encoded rows read on the last
        layer.
        """
        kind = self.config.layers[layer].kind
        out = queries.new_empty(queries.shape[0] - first_row, *queries.shape[1:])
        for index, segment in enumerate(self.batch.segments):
            if segment.rows.stop <= first_row:
                continue
            view, rows = self._view(index, kind), segment.rows
            # [1, heads, rows or visible, head_dim]
            q, own_k, own_v = (t[rows].transpose(0, 1).unsqueeze(0) for t in (queries, keys, values))
            old_k = self.kv.keys[layer].index_select(0, view.read).transpose(0, 1).unsqueeze(0)
            old_v = self.kv.values[layer].index_select(0, view.read).transpose(0, 1).unsqueeze(0)
            k, v = torch.cat((old_k, own_k), dim=2), torch.cat((old_v, own_v), dim=2)
            mixed = scaled_dot_product_attention(q, k, v, attn_mask=view.mask, scale=1.0, enable_gqa=True)
            out[rows.start - first_row : rows.stop - first_row] = mixed.squeeze(0).transpose(0, 1)
        return out.flatten(1)

    def _view(self, index: int, kind: LayerKind) -> _View:
        key = (index, kind)
        if key not in self._views:
            self._views[key] = self._make_view(self.batch.segments[index], kind)
        return self._views[key]

    def _make_view(self, segment: Segment, kind: LayerKind) -> _View:
        cached, start, length = segment.cached[kind], segment.start, segment.length
        window = self.config.window if kind == "sliding" else None
        oldest = 0 if window is None else max(0, start - (window - 1))
        read = cached.slots[oldest - cached.first : start - cached.first]
        if segment.mode == "decode":
            return _View(read, None, None)
        write = cached.slots[start - cached.first : start - cached.first + length]
        of_row = torch.arange(start, start + length).unsqueeze(1)
        of_key = torch.arange(oldest, start + length).unsqueeze(0)
        mask = of_key <= of_row
        if window is not None:
            mask &= of_key > of_row - window
        return _View(read, write, mask.to(read.device))

"""Groups of several sequences for the kernels' tests, and the plain batch that says what must come out."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from easel.engine.native.attention import Batch, Cached, KvTensors, Segment, TorchAttention
from easel.engine.native.config import LayerConfig, LayerKind, ModelConfig
from easel.engine.native.kernels.groups import Groups, PagedKv


@dataclass(frozen=True, slots=True)
class Part:
    """One group: rows of a sequence. `length` 0: idle."""

    sequence: int
    start: int
    length: int
    causal: bool


@dataclass(frozen=True, slots=True)
class Case:
    """Groups of `rows_each` rows over pools in which every sequence's blocks are scattered."""

    parts: tuple[Part, ...]
    rows_each: int
    block_tokens: int
    window: int | None
    dropped: int = 0
    """Blocks that every sequence has given back."""

    def groups(self, device: str = "cpu") -> Groups:
        columns = zip(*((p.start, p.length, int(p.causal)) for p in self.parts), strict=True)
        start, length, causal = (torch.tensor(column, dtype=torch.int32, device=device) for column in columns)
        return Groups(start, length, causal)

    def blocks_of(self, part: Part) -> list[int]:
        """The sequence's blocks from `dropped` on: none shared, in no order."""
        most = -(-max(p.start + p.length for p in self.parts) // self.block_tokens)
        sequences = max(p.sequence for p in self.parts) + 1
        order = torch.randperm(most * sequences, generator=torch.Generator().manual_seed(5)).tolist()
        return order[part.sequence * most + self.dropped : (part.sequence + 1) * most]

    def pool(self, kv_heads: int, dim: int, dtype: torch.dtype, device: str = "cpu") -> PagedKv:
        """Random pools, of numbers that bf16 has: what lies in no visible slot must not matter."""
        tables = [self.blocks_of(part) for part in self.parts]
        most = max(p.sequence for p in self.parts) + 1
        slots = most * (len(tables[0]) + self.dropped) * self.block_tokens
        keys, values = (torch.randn(slots, kv_heads, dim, device=device).bfloat16().to(dtype) for _ in "kv")
        first = [self.dropped * self.block_tokens if p.length else 0 for p in self.parts]
        table = torch.tensor(tables, dtype=torch.int32, device=device)
        return PagedKv(keys, values, table, torch.tensor(first, dtype=torch.int32, device=device), self.block_tokens)

    def rows(self, part: int) -> slice:
        """Valid rows of group `part`."""
        return slice(part * self.rows_each, part * self.rows_each + self.parts[part].length)

    def plain(self, config: ModelConfig, kv: PagedKv, kind: LayerKind) -> TorchAttention:
        """The plain attention of the same rows, over copies of the pools, in fp32."""
        cells = torch.arange(self.block_tokens)
        segments = []
        for number, part in enumerate(self.parts):
            if part.length == 0:
                continue
            blocks = torch.tensor(self.blocks_of(part))
            slots = (blocks[:, None] * self.block_tokens + cells).flatten()
            cached = Cached(self.dropped * self.block_tokens, slots.to(kv.keys.device))
            mode = "encode" if part.causal else "decode"
            segments.append(Segment(mode, self.rows(number), part.start, {kind: cached}))
        tensors = KvTensors.__new__(KvTensors)
        tensors.keys, tensors.values = [kv.keys.float()], [kv.values.float()]
        nothing = torch.empty(0, dtype=torch.int64)
        return TorchAttention(config, tensors, Batch(nothing, nothing, 0, tuple(segments), None))


def layer_config(kind: LayerKind, heads: int, kv_heads: int, dim: int, window: int | None) -> ModelConfig:
    """As much of a configuration as attention reads."""
    config = ModelConfig.__new__(ModelConfig)
    values = {"heads": heads, "layers": (LayerConfig(0, kind, dim, kv_heads),), "window": window or 0, "eps": 1e-6}
    for name, value in values.items():
        object.__setattr__(config, name, value)
    return config


def valid(case: Case) -> torch.Tensor:
    """bool [rows]: which hold something."""
    mask = torch.zeros(len(case.parts) * case.rows_each, dtype=torch.bool)
    for number in range(len(case.parts)):
        mask[case.rows(number)] = True
    return mask


RAGGED = (
    Part(0, 13, 5, causal=True),
    Part(0, 18, 16, causal=False),  # continues what the group before writes in the same launch
    Part(1, 0, 11, causal=True),
    Part(2, 0, 0, causal=False),
    Part(3, 37, 16, causal=True),
    Part(3, 53, 3, causal=True),  # two chunks of one sequence at once
    Part(4, 41, 9, causal=False),
    Part(5, 0, 16, causal=False),  # a canvas after nothing
)

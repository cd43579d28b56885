"""How many blocks the KV pools get: what settings ask for, or what a GPU has room for.

A block of the full pool and one of the sliding pool differ in size, and a sequence needs few sliding blocks however
long it is. Room is shared out in the proportion in which whole sequences need the two. Owns: this arithmetic. Refuses
to know: tensors, and how much room there is (`cuda_assembly`).
"""

from __future__ import annotations

from dataclasses import dataclass

from easel.engine.native.config import LayerKind, ModelConfig
from easel.engine.native.kv_cache import KvCache
from easel.errors import ConfigurationError

Blocks = tuple[int, int]
"""Of the full pool, then of the sliding one."""


@dataclass(frozen=True, slots=True)
class PoolSizes:
    """`wanted` for every slot at full length, or for `kv_tokens`; `one` for a single sequence."""

    wanted: Blocks
    one: Blocks
    exact: bool
    """Whether `kv_tokens` asked for this size: then it is neither more nor less."""

    @staticmethod
    def of(
        slots: int, context: int, most_written: int, window: int, block_tokens: int, kv_tokens: int | None
    ) -> PoolSizes:
        """For `slots` sequences of up to `context` tokens, each of which writes at most `most_written` in a step."""
        sizes = KvCache(0, 0, block_tokens, window)
        one = sizes.blocks_for(context), sizes.sliding_blocks_for(context, most_written)
        full = sizes.blocks_for(kv_tokens) if kv_tokens else slots * one[0]
        return PoolSizes((full, min(full, slots * one[1])), one, kv_tokens is not None)

    def within(self, room: int, block_bytes: Blocks, grow: bool) -> Blocks:
        """Blocks that fit into `room` bytes: all that do with `grow`, else no more than wanted.

        Raises `ConfigurationError` where not even one sequence fits, or not what `kv_tokens` asks for.
        """
        if self.exact:
            if _bytes(self.wanted, block_bytes) > room:
                raise ConfigurationError(
                    f"kv_tokens: {_gb(_bytes(self.wanted, block_bytes))} of KV cache, and {_gb(room)} are left beside "
                    "weights and work space; lower kv_tokens or slots, or leave kv_tokens out",
                    param="kv_tokens",
                )
            return self.wanted
        if _bytes(self.one, block_bytes) > room:
            raise ConfigurationError(
                f"context_tokens: one sequence needs {_gb(_bytes(self.one, block_bytes))} of KV cache, and "
                f"{_gb(max(room, 0))} are left beside weights and work space; lower context_tokens or slots, or raise "
                "gpu_memory_fraction",
                param="context_tokens",
            )
        share = room / _bytes(self.wanted, block_bytes)
        if not grow:
            share = min(share, 1.0)
        full, sliding = (max(one, int(blocks * share)) for one, blocks in zip(self.one, self.wanted, strict=True))
        # A pool that was raised to what one sequence needs takes from the other.
        left_for_sliding = (room - full * block_bytes[0]) // block_bytes[1]
        sliding = max(self.one[1], min(sliding, left_for_sliding))
        return min(full, (room - sliding * block_bytes[1]) // block_bytes[0]), sliding


def block_bytes(config: ModelConfig, block_tokens: int, element_bytes: int) -> Blocks:
    """Bytes of one block, keys and values of all layers of its kind."""

    def of(kind: LayerKind) -> int:
        widths = (layer.kv_heads * layer.head_dim for layer in config.of_kind(kind))
        return max(1, 2 * sum(widths) * block_tokens * element_bytes)

    return of("full"), of("sliding")


def _bytes(blocks: Blocks, each: Blocks) -> int:
    return sum(count * size for count, size in zip(blocks, each, strict=True))


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"

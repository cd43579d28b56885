"""KV pools take what there is room for, never less than one sequence needs, and say what to change where that fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easel.engine.native.config import read_model_config
from easel.engine.native.kv_cache import KvCache
from easel.engine.native.pool_sizes import PoolSizes, block_bytes
from easel.errors import ConfigurationError

EACH = (100, 1000)


def sizes(slots: int = 4, context: int = 1024, kv_tokens: int | None = None) -> PoolSizes:
    return PoolSizes.of(slots, context, most_written=64, window=100, block_tokens=16, kv_tokens=kv_tokens)


def used(blocks: tuple[int, int]) -> int:
    return blocks[0] * EACH[0] + blocks[1] * EACH[1]


def test_every_slot_at_full_length_is_wanted_unless_tokens_are_asked_for() -> None:
    assert sizes().wanted == (4 * 64, 4 * 12)  # 99 + 64 tokens, and one block more
    assert sizes(kv_tokens=640).wanted == (40, 40)


@given(st.integers(1, 16), st.integers(64, 4096), st.integers(0, 10**6), st.booleans())
def test_what_fits_stays_within_the_room_and_holds_one_sequence(
    slots: int, context: int, room: int, grow: bool
) -> None:
    wanted = sizes(slots, context)
    if room < used(wanted.one):
        with pytest.raises(ConfigurationError, match=r"context_tokens: one sequence needs .* GB .*gpu_memory_fraction"):
            wanted.within(room, EACH, grow)
        return
    full, sliding = wanted.within(room, EACH, grow)
    assert used((full, sliding)) <= room
    assert KvCache(full, sliding, 16, 100).fits(context, 64)
    if room >= used(wanted.wanted):
        assert full >= wanted.wanted[0]
        assert sliding >= wanted.wanted[1]
        assert grow or (full, sliding) == wanted.wanted
    if grow and room > 4 * used(wanted.one):
        assert used((full, sliding)) > 0.7 * room, "room is left over"


def test_tokens_that_were_asked_for_are_neither_more_nor_less() -> None:
    asked = sizes(kv_tokens=640)
    assert asked.within(10**9, EACH, grow=True) == asked.wanted
    with pytest.raises(ConfigurationError, match=r"kv_tokens: 0\.00 GB of KV cache"):
        asked.within(used(asked.wanted) - 1, EACH, grow=True)


def test_a_block_has_keys_and_values_of_all_layers_of_its_kind(checkpoint: Path) -> None:
    config = read_model_config(checkpoint)

    def of(kind: str) -> int:
        return sum(2 * 8 * layer.kv_heads * layer.head_dim * 2 for layer in config.layers if layer.kind == kind)

    assert block_bytes(config, 8, 2) == (of("full"), of("sliding"))

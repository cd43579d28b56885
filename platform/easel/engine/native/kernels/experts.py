"""The routed experts of one layer, read as NVFP4: two grouped products.

Weights are the products' rows (the 64 rows of a warpgroup's instruction, from registers), slots their columns: a tile
of slots belongs to one expert and may be as narrow as its rows are few. A code becomes a bfloat16 in registers, exact
with its group's scale; the experts' factors come last, in fp32. Each product runs over all its columns in one program,
in one order: a row's result does not depend on which other rows there are, but on the tile, which is chosen by their
number unless the routing has one tile for all.

Owns: the products. Refuses to know: who chose the experts, how files hold them, and the sum over a row's experts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from easel.engine.native.kernels import hopper_product
from easel.engine.native.kernels.groups import on_hopper
from easel.engine.native.kernels.hopper_product import HopperShape
from easel.engine.native.kernels.packing import SCALE_BIAS, TILE_COLUMNS, PackedExperts, PackedMatrix
from easel.engine.native.kernels.routing import Routing, most_tiles, tile_slots
from easel.engine.native.kernels.routing import route as route

_BIAS = tl.constexpr(SCALE_BIAS | SCALE_BIAS << 16)


@dataclass(frozen=True, slots=True)
class Workspace:
    """What lies between the products, for up to `rows` rows."""

    wide: torch.Tensor
    """bf16 [rows * top_k, padded width]: `gelu(gate x) * up x` of each slot."""
    narrow: torch.Tensor
    """bf16 [rows * top_k, hidden]: the expert's output of each slot."""

    @classmethod
    def for_rows(cls, rows: int, top_k: int, width: int, hidden: int, device: torch.device | str) -> Workspace:
        """For experts of `width` columns between gate and down."""
        padded = -(-width // TILE_COLUMNS) * TILE_COLUMNS
        pairs = rows * top_k
        return cls(
            torch.zeros(pairs, padded, dtype=torch.bfloat16, device=device),
            torch.zeros(pairs, hidden, dtype=torch.bfloat16, device=device),
        )


@dataclass(frozen=True, slots=True)
class Shape:
    """How one product is run. Chosen by the number of rows alone."""

    warps: int
    stages: int
    parts: int = 1
    """Row tiles that a program multiplies together: with two, inputs are read half as often."""


FORCED_SHAPE: Shape | HopperShape | None = None
"""What a bench tries instead."""


def shapes(tile: int, hopper: bool) -> tuple[Shape | HopperShape, Shape | HopperShape]:
    """Of gate and up, and of down, for tiles of that many slots."""
    if FORCED_SHAPE is not None:
        return FORCED_SHAPE, FORCED_SHAPE
    # More stages hide more of the memory's latency, and cost more in resident programs than that gains.
    plain = Shape(8, 3, 2 if tile == 128 else 1) if tile >= 128 else Shape(4, 3)
    if not hopper:
        return plain, plain
    if tile > 128:  # gate and up decode their weights half as often; down is too short for one program at a time
        return HopperShape(8, 240, 2, stages=6), HopperShape(16, 128, 2, width=128)
    if tile == 128:
        return HopperShape(8, 128, 2), HopperShape(16, 128, 2)
    # Down is over after eleven steps, and what counts is how many programs a multiprocessor holds.
    first = {
        32: HopperShape(8, 80, 1, stages=6),
        64: HopperShape(8, 128, 1, stages=6),
        80: HopperShape(8, 128, 1, 16, 6),
    }
    return first.get(tile, plain), plain


def run_experts(x: torch.Tensor, routing: Routing, packed: PackedExperts, workspace: Workspace) -> None:
    """`workspace.narrow[slot[r, k]] = expert[index[r, k]](x[r])`. What is left is the weighted sum of each row's slots,
    which `rows.after_feed_forward` does on its way.

    `x` bf16 [rows, hidden]; `routing` filled by `route` for the same rows. Raises `ValueError` for other shapes.
    """
    rows, hidden = x.shape
    top_k = routing.weights.shape[1]
    if hidden != packed.hidden or x.stride(1) != 1:
        raise ValueError(f"x {list(x.shape)} does not fit experts of {packed.hidden} columns")
    if routing.weights.shape[0] < rows or workspace.wide.shape[0] < rows * top_k:
        raise ValueError(f"routing and workspace are made for fewer than {rows} rows")
    for launch in launches(x, routing, packed, workspace):
        launch()


def launches(
    x: torch.Tensor, routing: Routing, packed: PackedExperts, workspace: Workspace
) -> tuple[Callable[[], None], Callable[[], None]]:
    """The two launches of `run_experts`, which checks what these take for granted: a bench times them apart."""
    rows, hidden = x.shape
    top_k = routing.weights.shape[1]
    tile = routing.tile or tile_slots(rows, packed.experts, top_k)
    most = most_tiles(rows, packed.experts, top_k, routing.tile)
    first, second = shapes(tile, on_hopper(x) and hidden % TILE_COLUMNS == 0)

    def gate_up() -> None:
        _launch(x, packed.gate_up, workspace.wide, routing, first, tile, most, gated=True)

    def down() -> None:
        _launch(workspace.wide, packed.down, workspace.narrow, routing, second, tile, most, gated=False)

    return gate_up, down


def _launch(
    x: torch.Tensor,
    matrix: PackedMatrix,
    out: torch.Tensor,
    routing: Routing,
    shape: Shape | HopperShape,
    tile: int,
    most: int,
    gated: bool,
) -> None:
    if isinstance(shape, HopperShape):
        hopper_product.launch(
            x, matrix.words, matrix.scales, matrix.factors, out, routing.row, routing.tiles, routing.used, most, tile,
            shape, gated,
        )  # fmt: skip
        return
    row_tiles, column_tiles = matrix.words.shape[1:3]
    wide = 1 << (tile.bit_length() - 1)
    _grouped[(most * triton.cdiv(row_tiles, shape.parts),)](
        x, matrix.words, matrix.scales, matrix.factors, out, routing.row, routing.tiles, routing.used,
        row_tiles, column_tiles, x.shape[1], out.shape[1], x.stride(0), out.stride(0), routing.tiles.stride(0),
        SLOTS=wide, EXTRA=tile - wide, STAGES=shape.stages, PARTS=shape.parts, WHOLE=row_tiles % shape.parts == 0,
        GATED=gated,
        EVEN=x.shape[1] % TILE_COLUMNS == 0, ASSEMBLER=x.is_cuda, num_warps=shape.warps,
    )  # fmt: skip


@triton.jit
def _weights(words, scales, J: tl.constexpr, ASSEMBLER: tl.constexpr):
    """Columns 16 J to 16 J + 15 of a tile: codes times group scales, times 2^-7.

    bf16 on a GPU. The same numbers in fp32 under the interpreter, which knows no assembler and no product of bf16.
    """
    # Twice the same bfloat16, for the two columns that an instruction multiplies.
    scale = ((scales >> (8 * J)) & 0xFF) * 0x00100010 + _BIAS
    scale = tl.broadcast_to(scale[:, None], words.shape)
    if ASSEMBLER:
        if J == 0:
            return tl.inline_asm_elementwise(
                "{ .reg .b32 t; and.b32 t, $1, 0x81C081C0; mul.rn.bf16x2 $0, t, $2; }",
                "=r,r,r,r", [words, scale], dtype=tl.bfloat16, is_pure=True, pack=2,
            )  # fmt: skip
        elif J == 1:  # noqa: RET505 - branches of a constant: only one is compiled
            return tl.inline_asm_elementwise(
                "{ .reg .b32 t; shl.b32 t, $1, 3; and.b32 t, t, 0x81C081C0; mul.rn.bf16x2 $0, t, $2; }",
                "=r,r,r,r", [words, scale], dtype=tl.bfloat16, is_pure=True, pack=2,
            )  # fmt: skip
        elif J == 2:
            return tl.inline_asm_elementwise(
                "{ .reg .b32 t, u; shl.b32 t, $1, 6; and.b32 t, t, 0x01C001C0; shl.b32 u, $1, 2;"
                " lop3.b32 t, u, 0x80008000, t, 0xEA; mul.rn.bf16x2 $0, t, $2; }",
                "=r,r,r,r", [words, scale], dtype=tl.bfloat16, is_pure=True, pack=2,
            )  # fmt: skip
        else:
            return tl.inline_asm_elementwise(
                "{ .reg .b32 t, u; shr.b32 t, $1, 3; and.b32 t, t, 0x01C001C0; shl.b32 u, $1, 1;"
                " lop3.b32 t, u, 0x80008000, t, 0xEA; mul.rn.bf16x2 $0, t, $2; }",
                "=r,r,r,r", [words, scale], dtype=tl.bfloat16, is_pure=True, pack=2,
            )  # fmt: skip
    else:
        word = words.to(tl.int32)
        if J == 0:
            bits = word & 0x81C0
        elif J == 1:
            bits = (word << 3) & 0x81C0
        elif J == 2:
            bits = ((word << 6) & 0x01C0) | ((word << 2) & 0x8000)
        else:
            bits = ((word >> 3) & 0x01C0) | ((word << 1) & 0x8000)
        code = (bits << 16).to(tl.float32, bitcast=True)
        return code * (scale & -65536).to(tl.float32, bitcast=True)


@triton.jit
def _grouped(
    x, words, scales, factors, out, slot_row, tiles, used,
    row_tiles, column_tiles, columns, out_columns, x_stride, out_stride, tiles_stride,
    SLOTS: tl.constexpr, EXTRA: tl.constexpr, STAGES: tl.constexpr, PARTS: tl.constexpr, WHOLE: tl.constexpr,
    GATED: tl.constexpr, EVEN: tl.constexpr, ASSEMBLER: tl.constexpr,
):  # fmt: skip
    """PARTS tiles of 128 weight rows by SLOTS + EXTRA slots. GATED: `x` is gathered by row, gate and up become one.

    All tiles' first halves come first, so that a gate and its up lie in one thread.

    EXTRA is 0 or a second, narrower product with the same weights, because a product's width is a power of two.
    """
    tl.assume(column_tiles > 0)  # else the assembler lets no two products overlap, for the sake of a loop of no turns
    programs = (row_tiles + PARTS - 1) // PARTS
    tile = tl.program_id(0) // programs
    part = tl.program_id(0) % programs * PARTS
    if tile >= tl.load(used):
        return
    expert = tl.load(tiles + tile)
    first = tl.load(tiles + tiles_stride + tile)
    end = tl.load(tiles + 2 * tiles_stride + tile)
    k = tl.arange(0, 16)
    block = (expert * row_tiles + part).to(tl.int64) * column_tiles
    r = tl.arange(0, 128 * PARTS)
    which = r // 64 % PARTS
    lane = r // (64 * PARTS) * 64 + r % 64  # within its tile
    there = part + which < row_tiles
    word_at = words + block * 2048 + (which * column_tiles * 2048 + lane * 16)[:, None] + k[None, :]
    scale_at = scales + block * 128 + which * column_tiles * 128 + lane

    slot = first + tl.arange(0, SLOTS)
    row = tl.load(slot_row + slot, mask=slot < end, other=0) if GATED else slot
    x_at = x + row[None, :].to(tl.int64) * x_stride + k[:, None]
    total = tl.zeros((128 * PARTS, SLOTS), tl.float32)
    if EXTRA:
        slot_2 = first + SLOTS + tl.arange(0, EXTRA)
        row_2 = tl.load(slot_row + slot_2, mask=slot_2 < end, other=0) if GATED else slot_2
        x_at_2 = x + row_2[None, :].to(tl.int64) * x_stride + k[:, None]
        total_2 = tl.zeros((128 * PARTS, EXTRA), tl.float32)
    for step in tl.range(0, column_tiles, num_stages=STAGES):
        if WHOLE:
            word = tl.load(word_at + step * 2048)
            scale = tl.load(scale_at + step * 128)
        else:
            word = tl.load(word_at + step * 2048, mask=there[:, None], other=0)
            scale = tl.load(scale_at + step * 128, mask=there, other=0)
        for j in tl.static_range(4):
            column = step * 64 + j * 16
            weights = _weights(word, scale, j, ASSEMBLER)
            some = (slot < end)[None, :] if EVEN else (slot < end)[None, :] & (column + k < columns)[:, None]
            inputs = tl.load(x_at + column, mask=some, other=0.0)
            total = tl.dot(weights, inputs if ASSEMBLER else inputs.to(tl.float32), total)
            if EXTRA:
                some = (slot_2 < end)[None, :] if EVEN else (slot_2 < end)[None, :] & (column + k < columns)[:, None]
                inputs = tl.load(x_at_2 + column, mask=some, other=0.0)
                total_2 = tl.dot(weights, inputs if ASSEMBLER else inputs.to(tl.float32), total_2)
    factor = tl.load(factors + expert * 2)
    factor_2 = tl.load(factors + expert * 2 + 1)
    _finish(total, factor, factor_2, out, slot, end, part, out_stride, out_columns, PARTS, GATED)
    if EXTRA:
        _finish(total_2, factor, factor_2, out, slot_2, end, part, out_stride, out_columns, PARTS, GATED)


@triton.jit
def _finish(
    total, factor, factor_2, out, slot, end, part, out_stride, out_columns, PARTS: tl.constexpr, GATED: tl.constexpr
):
    """Factors, the gate, and the way out. Slots of one expert lie one after another: their rows are written whole."""
    out_at = out + slot[None, :].to(tl.int64) * out_stride
    live = (slot < end)[None, :]
    if GATED:
        gate, up = tl.split(tl.permute(tl.reshape(total, (2, 64 * PARTS, slot.shape[0])), (1, 2, 0)))
        gate *= factor
        up *= factor_2
        # gelu by tanh: 0.5 x (1 + tanh y) = x sigmoid(2 y)
        inner = 1.5957691216057308 * gate * (1.0 + 0.044715 * gate * gate)
        value = gate / (1.0 + tl.exp(-tl.maximum(inner, -80.0))) * up
        column = part * 64 + tl.arange(0, 64 * PARTS)
    else:
        value = total * factor
        r = tl.arange(0, 128 * PARTS)
        column = part * 128 + r // 64 % PARTS * 128 + r // (64 * PARTS) * 64 + r % 64
    inside = live & (column < out_columns)[:, None]
    tl.store(out_at + column[:, None], value.to(tl.bfloat16), mask=inside)

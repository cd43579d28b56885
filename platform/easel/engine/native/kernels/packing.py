"""NVFP4 experts in the order in which the kernel reads them, and back.

A matrix `[N, K]` becomes tiles of 128 rows by 64 columns. Column `16 j + c` of a tile (j from 0 to 3) shares a 16-bit
word with the three others of the same c, so that four products over 16 columns each read one word a row, and the 16
columns of a product are one group with one scale. Within a word each code stands where one shift brings its magnitude
to bits 6 to 8 and its sign to bit 15: there it is a bfloat16 that is 2^-126 times its value. Scales become 5 bits of
exponent and 3 of significand, so that one shift and one addition make a bfloat16 of them: the code's sign takes in the
scale's, and a group whose scale is zero has zero codes. 4.5 bits a weight, as the checkpoint has.

Owns: the layout. Refuses to know: names, files, and Triton.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

TILE_ROWS = 128
"""Rows of a matrix that one program multiplies. For gate and up: 64 of each, gate first."""
TILE_COLUMNS = 64
GROUP = 16
MAGNITUDE_BIT = (6, 3, 0, 9)
SIGN_BIT = (15, 12, 13, 14)
"""Where the codes of columns c, 16 + c, 32 + c, 48 + c lie in word c."""
SCALE_BIAS = 0x7600
"""`(scale byte << 4) + SCALE_BIAS` are the bits of a bfloat16 that is 2^119 times the scale."""
EXPERTS_AT_ONCE = 16
PRODUCT = 2.0**7
"""What the product of a code and a scale so made must be multiplied by."""


@dataclass(frozen=True, slots=True)
class Nvfp4:
    """One projection of all experts as a checkpoint stores it."""

    codes: torch.Tensor
    """uint8 [experts, N, K / 2]: two codes a byte, the even column in the low half."""
    scales: torch.Tensor
    """E4M3 [experts, N, K / 16]."""
    scale_2: torch.Tensor
    """fp32 [experts]: what every weight of the expert is multiplied by."""


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """One matrix of all experts."""

    words: torch.Tensor
    """int16 [experts, row tiles, column tiles, 128, 16]."""
    scales: torch.Tensor
    """int32 [experts, row tiles, column tiles, 128]: byte j is the scale of columns 16 j to 16 j + 15."""
    factors: torch.Tensor
    """fp32 [experts, 2]: the factor of the tile's first 64 rows, and of the others."""


@dataclass(frozen=True, slots=True)
class PackedExperts:
    """The routed experts of one layer."""

    gate_up: PackedMatrix
    down: PackedMatrix
    hidden: int
    wide: int
    """Columns of gate and up, unpadded."""

    @property
    def experts(self) -> int:
        """How many there are."""
        return self.gate_up.words.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        parts = (self.gate_up, self.down)
        return sum(t.nbytes for part in parts for t in (part.words, part.scales, part.factors))


def pack_experts(gate: Nvfp4, up: Nvfp4, down: Nvfp4) -> PackedExperts:
    """Pack one layer, on the device where its tensors lie. Sizes are padded to whole tiles with zeros.

    Raises `ValueError` for shapes that do not fit each other and for scales that are not numbers.
    """
    count, wide, half = gate.codes.shape
    hidden = 2 * half
    if up.codes.shape != gate.codes.shape or tuple(down.codes.shape) != (count, hidden, wide // 2):
        shapes = [list(part.codes.shape) for part in (gate, up, down)]
        raise ValueError(f"codes of gate, up and down do not belong together: {shapes}")
    gate_words, gate_scales = _pack(gate, TILE_ROWS // 2)
    up_words, up_scales = _pack(up, TILE_ROWS // 2)
    down_words, down_scales = _pack(down, TILE_ROWS)
    return PackedExperts(
        gate_up=PackedMatrix(
            torch.cat((gate_words, up_words), dim=3),
            torch.cat((gate_scales, up_scales), dim=3),
            torch.stack((gate.scale_2, up.scale_2), dim=1).float() * PRODUCT,
        ),
        down=PackedMatrix(down_words, down_scales, torch.stack((down.scale_2, down.scale_2), dim=1).float() * PRODUCT),
        hidden=hidden,
        wide=wide,
    )


def unpack_matrix(matrix: PackedMatrix, wide: bool = True) -> torch.Tensor:
    """fp32 [experts, row tiles * 128, column tiles * 64] in the tiles' order: what `_pack` undoes, for tests.

    `wide`: with the experts' factors; else exactly what the kernel multiplies, which any bfloat16 holds.
    """
    words = matrix.words.to(torch.int32)
    values = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], device=words.device)
    columns = []
    for j in range(4):
        magnitude = values[(words >> MAGNITUDE_BIT[j]) & 7]
        signed = torch.where((words >> SIGN_BIT[j]) & 1 == 1, -magnitude, magnitude)
        byte = (matrix.scales >> (8 * j)) & 0xFF
        scale = torch.ldexp(1 + (byte & 7) / 8, (byte >> 3) - 10)
        columns.append(signed * scale.unsqueeze(-1))
    tiles = torch.stack(columns, dim=-2).flatten(-2)  # [experts, row tiles, column tiles, 128, 64]
    if wide:
        factors = (matrix.factors / PRODUCT).repeat_interleave(TILE_ROWS // 2, dim=1)
        tiles = tiles * factors[:, None, None, :, None]
    experts, row_tiles, column_tiles, rows, width = tiles.shape
    return tiles.transpose(2, 3).reshape(experts, row_tiles * rows, column_tiles * width)


def _pack(part: Nvfp4, tile_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Words [experts, row tiles, column tiles, tile_rows, 16] and scales without the last dimension."""
    count, rows, half = part.codes.shape
    columns = 2 * half
    if columns % GROUP or tuple(part.scales.shape) != (count, rows, columns // GROUP):
        raise ValueError(f"scales {list(part.scales.shape)} do not fit codes {list(part.codes.shape)}")
    row_tiles, column_tiles = -(-rows // tile_rows), -(-columns // TILE_COLUMNS)
    device = part.codes.device
    words = torch.zeros(count, row_tiles, column_tiles, tile_rows, GROUP, dtype=torch.int16, device=device)
    scales = torch.zeros(count, row_tiles, column_tiles, tile_rows, dtype=torch.int32, device=device)
    table, flips, keeps = _scale_tables(device)
    raw = part.scales.view(torch.uint8)
    if bool(((raw & 0x7F) == 0x7F).any()):
        raise ValueError("a group scale is not a number")
    # Some experts at a time: few launches, and what lies between, sixteen times the packed size, stays small.
    for start in range(0, count, EXPERTS_AT_ONCE):
        some = slice(start, start + EXPERTS_AT_ONCE)
        together = part.codes[some].shape[0]
        shape = (together, row_tiles * tile_rows)
        codes = torch.zeros(*shape, column_tiles * TILE_COLUMNS, dtype=torch.uint8, device=device)
        codes[:, :rows, 0:columns:2] = part.codes[some] & 0xF
        codes[:, :rows, 1:columns:2] = part.codes[some] >> 4
        stored = torch.zeros(*shape, column_tiles * 4, dtype=torch.int64, device=device)
        stored[:, :rows, : columns // GROUP] = raw[some].long()
        codes = codes.view(*shape, -1, GROUP) ^ flips[stored].unsqueeze(-1)
        codes &= keeps[stored].unsqueeze(-1)
        # [experts, row tiles, tile_rows, column tiles, j, c] -> [experts, row tiles, column tiles, tile_rows, j, c]
        tiles = codes.view(together, row_tiles, tile_rows, column_tiles, 4, GROUP).transpose(2, 3)
        bytes_ = table[stored].view(together, row_tiles, tile_rows, column_tiles, 4).transpose(2, 3)
        word = torch.zeros(words[some].shape, dtype=torch.int32, device=device)
        for j in range(4):
            code = tiles[..., j, :].to(torch.int32)
            word |= (code & 7) << MAGNITUDE_BIT[j] | (code >> 3) << SIGN_BIT[j]
            scales[some] |= bytes_[..., j] << (8 * j)
        words[some] = word.to(torch.int16)
    return words, scales


def _scale_tables(device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each of the 256 E4M3 bytes: the packed byte (int32), the bits to flip in its codes, the bits to keep."""
    value = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().nan_to_num(1.0)
    significand, exponent = torch.frexp(value.abs())  # in [0.5, 1)
    byte = ((exponent.int() - 1 + 10) << 3) | ((2 * significand - 1) * 8).int()
    zero = value == 0
    table = torch.where(zero, 0, byte).int()
    flips = torch.where(torch.signbit(value), 8, 0).to(torch.uint8)
    keeps = torch.where(zero, 0, 15).to(torch.uint8)
    return table.to(device), flips.to(device), keeps.to(device)

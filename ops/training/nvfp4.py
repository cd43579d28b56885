"""NVFP4 in the modelopt layout: quantise, dequantise, and the straight-through form for training.

A weight `W [..., N, K]` is stored as 4-bit E2M1 codes (two a byte, the low nibble is the even column), one E4M3 scale
for 16 columns of a row, and one fp32 scale for the tensor: `W = E2M1[code] * scale * global_scale`.
Leading dimensions are separate tensors, each with its global scale.

`fake_quantize(W)` equals `dequantize(quantize(W))` bit for bit, so what was trained is what is served.
Refuses to know: tensor names, files, models.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

GROUP = 16
E2M1_MAX = 6.0
E4M3_MAX = 448.0
E4M3_TINY = 2.0**-9
"""Smallest positive E4M3 number: a group that is not all zero never gets the scale 0."""

E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)

# Multiples of the amax scale that the error search tries. Below 1 the largest values saturate and the small ones gain
# resolution; 1.5 puts the largest value on the code 4, past which E2M1 is coarse.
_SEARCH_RATIOS = (1.0, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.05, 1.1, 1.2, 1.3, 1.4, 1.5)


class NVFP4(NamedTuple):
    """One quantised weight; `...` are the leading dimensions of the original."""

    codes: torch.Tensor  # uint8 [..., N, K/2]
    scale: torch.Tensor  # float8_e4m3fn [..., N, K/16]
    global_scale: torch.Tensor  # float32 [...]


def check_shape(shape: tuple[int, ...] | torch.Size) -> None:
    """Refuse a weight that cannot be stored: both of its last dimensions must be multiples of 16.

    Raises:
        ValueError: naming the shape. K needs whole groups; N is refused as well because the kernels' tiles are.
    """
    if len(shape) < 2 or shape[-1] % GROUP or shape[-2] % GROUP or not shape[-1] or not shape[-2]:
        raise ValueError(f"NVFP4 needs the last two dimensions to be multiples of {GROUP}, got shape {tuple(shape)}")


def _round_e2m1(magnitude: torch.Tensor) -> torch.Tensor:
    """Nearest E2M1 value of numbers in 0..6, ties to the even code (which `torch.round` gives on each binade)."""
    step = torch.where(magnitude < 2.0, 0.5, torch.where(magnitude < 4.0, 1.0, 2.0))
    return torch.round(magnitude / step) * step


def _global_scale(weight: torch.Tensor) -> torch.Tensor:
    """fp32 scale a tensor, `amax / (6 * 448)`: the largest group's scale becomes 448. Shape [..., 1, 1, 1]."""
    amax = weight.abs().amax(dim=(-2, -1))[..., None, None, None]
    return torch.where(amax > 0, amax / (E2M1_MAX * E4M3_MAX), torch.ones_like(amax))


def _group_scale(groups: torch.Tensor, global_scale: torch.Tensor, ratio: float = 1.0) -> torch.Tensor:
    """E4M3 scale of each group as fp32; 0 only where the group is all zero. Shape [..., N, K/16, 1]."""
    amax = groups.abs().amax(dim=-1, keepdim=True)
    wanted = (amax * (ratio / E2M1_MAX) / global_scale).clamp(E4M3_TINY, E4M3_MAX)
    rounded = wanted.to(torch.float8_e4m3fn).to(torch.float32)
    return torch.where(amax > 0, rounded, torch.zeros_like(rounded))


def _round_groups(groups: torch.Tensor, scale: torch.Tensor, global_scale: torch.Tensor) -> torch.Tensor:
    """Signed E2M1 values of each group, given its scales; same shape as `groups`."""
    unit = scale * global_scale
    safe = torch.where(unit > 0, unit, torch.ones_like(unit))
    magnitude = (groups.abs() / safe).clamp(max=E2M1_MAX)
    return torch.copysign(_round_e2m1(magnitude), groups)


def _searched_scale(groups: torch.Tensor, global_scale: torch.Tensor) -> torch.Tensor:
    """The E4M3 scale of each group with the least squared error among those tried."""
    best_scale = _group_scale(groups, global_scale)
    best_error = torch.full_like(best_scale, float("inf"))
    for ratio in _SEARCH_RATIOS:
        scale = _group_scale(groups, global_scale, ratio)
        values = _round_groups(groups, scale, global_scale) * scale * global_scale
        error = (values - groups).square().sum(dim=-1, keepdim=True)
        better = error < best_error
        best_scale = torch.where(better, scale, best_scale)
        best_error = torch.where(better, error, best_error)
    return best_scale


def quantize(weight: torch.Tensor, *, search: bool = False) -> NVFP4:
    """Quantise `weight [..., N, K]`, any float dtype.

    Args:
        search: choose each group's scale by least squared error instead of by its largest value. For weights that
            were not trained with `fake_quantize`; those that were must keep the default, or they change.

    Raises:
        ValueError: a dimension is not a multiple of 16, or a value is not finite.
    """
    check_shape(weight.shape)
    weight = weight.detach().to(torch.float32)
    if not torch.isfinite(weight).all():
        raise ValueError("NVFP4 cannot hold values that are not finite")
    global_scale = _global_scale(weight)
    groups = weight.unflatten(-1, (-1, GROUP))
    scale = _searched_scale(groups, global_scale) if search else _group_scale(groups, global_scale)
    values = _round_groups(groups, scale, global_scale)
    magnitude = values.abs()
    code = torch.where(magnitude <= 2.0, magnitude * 2.0, torch.where(magnitude == 6.0, 7.0, magnitude + 2.0))
    nibbles = (code.to(torch.uint8) | (torch.signbit(values).to(torch.uint8) << 3)).flatten(-2)
    packed = nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)
    return NVFP4(packed, scale.squeeze(-1).to(torch.float8_e4m3fn), global_scale[..., 0, 0, 0].clone())


def dequantize(quantized: NVFP4, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The weight `[..., N, K]` back, computed in fp32 and rounded once to `dtype`."""
    codes, scale, global_scale = quantized
    table = torch.tensor([*E2M1_VALUES, *(-value for value in E2M1_VALUES)], device=codes.device)
    nibbles = torch.stack((codes & 0x0F, codes >> 4), dim=-1).flatten(-2)
    groups = table[nibbles.long()].unflatten(-1, (-1, GROUP))
    values = groups * scale.to(torch.float32)[..., None] * global_scale[..., None, None, None]
    return values.flatten(-2).to(dtype)


def fake_quantize(weight: torch.Tensor) -> torch.Tensor:
    """What `weight [..., N, K]` becomes when it is stored, with the gradient of the identity.

    Only elementwise operations and reductions of a fixed shape: `torch.compile(fullgraph=True)` takes it. The result
    has the dtype of `weight`; compute in fp32 or bf16 around it as you like.
    """
    check_shape(weight.shape)
    master = weight.detach().to(torch.float32)
    global_scale = _global_scale(master)
    groups = master.unflatten(-1, (-1, GROUP))
    scale = _group_scale(groups, global_scale)
    stored = (_round_groups(groups, scale, global_scale) * scale * global_scale).flatten(-2).to(weight.dtype)
    # Not weight + (stored - weight): in floating point that is not exactly `stored`.
    return _StraightThrough.apply(weight, stored)  # type: ignore[no-any-return]


class _StraightThrough(torch.autograd.Function):
    """Forward: the stored value. Backward: as if nothing had happened to the weight."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, weight: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
        return stored.clone()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None

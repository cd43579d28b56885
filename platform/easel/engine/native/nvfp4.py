"""NVFP4 weights as modelopt stores them, and back to floats.

`W[n, k] = E2M1[code] * weight_scale[n, k // 16] * weight_scale_2`: two codes to a byte, the low nibble is the even
column; group scales in E4M3; one fp32 scale for the tensor. On a CPU they are unpacked once, at load; on a GPU they
stay packed, as `kernels.packing` lays them out. Refuses to know: names, files, and activations (`input_scale` is for
engines that quantise those too).
"""

from __future__ import annotations

import torch

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Values of the codes 0 to 7; 8 to 15 are their negatives."""


def dequantise(codes: torch.Tensor, scales: torch.Tensor, scale_2: torch.Tensor, group: int = 16) -> torch.Tensor:
    """fp32 weights `[N, K]` from `codes` uint8 `[N, K/2]`, `scales` E4M3 `[N, K/group]` and the scalar `scale_2`."""
    table = torch.tensor([*E2M1, *(-value for value in E2M1)], dtype=torch.float32)
    pairs = torch.stack((codes & 0x0F, codes >> 4), dim=-1)  # [N, K/2, 2]
    values = table[pairs.to(torch.int32)].view(codes.shape[0], -1, group)
    # A 2-bit times a 4-bit significand is exact in any float: only the last product rounds.
    return ((values * scales.to(torch.float32).unsqueeze(-1)) * scale_2.to(torch.float32)).view(codes.shape[0], -1)

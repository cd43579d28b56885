"""Starting a launch while the one before it still runs: its programs take their places and wait there.

Between two launches of a stream some two microseconds pass in which nothing runs: a forward has about 300 of them. A
launch with `options` begins as soon as all programs of the launch before it have a place; `wait` then holds it until
that launch is done and what it wrote can be seen. Hopper and later; elsewhere both do nothing.

Owns: this one way to overlap. Refuses to know: which launches follow one another. A launch after one of another stream
must not use it.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

ALLOWED = False
"""What a bench switches off."""


@triton.jit
def wait(EARLY: tl.constexpr):
    """Call it first: before it, nothing that another launch writes may be read, and nothing written."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


def options(tensor: torch.Tensor) -> dict[str, Any]:
    """What to pass to a launch on the tensor's device, whose kernel takes EARLY."""
    if ALLOWED and tensor.is_cuda and torch.cuda.get_device_capability(tensor.device)[0] >= 9:
        return {"EARLY": True, "launch_pdl": True}
    return {"EARLY": False}

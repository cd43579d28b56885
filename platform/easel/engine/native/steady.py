"""Whether a GPU's matrix products give a row the same bits in any company.

The library chooses a kernel by the number of rows. Most of its kernels add up a row's products in the same order, but
those that cut the sum into pieces do not. So it is tried, with each weight's shape and every number of groups that a
step may have: what is chosen for a shape does not change while a process runs.

Owns: the trial. Refuses to know: what is done about a shape that fails it (`cuda_model`).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch


def unsteady_shapes(weights: Iterable[torch.Tensor], rows: int, counts: Iterable[int]) -> frozenset[torch.Size]:
    """Shapes of those `weights` [N, K] whose product with a group of `rows` rows is not the same among other groups.

    `counts`: the numbers of groups to try.
    """
    generator, found = torch.Generator().manual_seed(0), set[torch.Size]()
    with torch.inference_mode():
        for weight in {weight.shape: weight for weight in weights}.values():
            one = torch.randn(rows, weight.shape[1], generator=generator).to(weight)
            alone = torch.mm(one, weight.t())
            for count in counts:
                among = torch.mm(one.repeat(count, 1), weight.t()).view(count, *alone.shape)
                if not torch.equal(among, alone.expand_as(among)):
                    found.add(weight.shape)
                    break
    return frozenset(found)

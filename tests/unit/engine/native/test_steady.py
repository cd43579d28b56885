"""Which products are found to depend on company."""

from __future__ import annotations

import pytest
import torch

from easel.engine.native import steady


def test_a_product_that_sums_otherwise_among_many_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = torch.mm

    def in_pieces(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """As a library may do it for many rows of one shape."""
        if weight.shape == (64, 8) and len(x) > 20:
            return (
                plain(x[:, :32].float(), weight[:32].float()) + plain(x[:, 32:].float(), weight[32:].float())
            ) * 1.01
        return plain(x.float(), weight.float())

    monkeypatch.setattr(torch, "mm", in_pieces)
    narrow, wide = torch.randn(8, 64), torch.randn(16, 64)
    assert steady.unsteady_shapes([narrow, wide, narrow], 4, (1, 2, 3, 4, 5)) == frozenset()
    assert steady.unsteady_shapes([narrow, wide, narrow], 4, (1, 2, 3, 6)) == frozenset({narrow.shape})

"""Row kernels at the model's sizes: bf16 against fp32."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("groups", [1, 8])
def test_every_output(groups: int) -> None:
    from tests.gpu.row_cases import errors

    found = errors(groups)
    assert len(found) == 10
    assert all(error < 1e-2 for error in found.values()), found

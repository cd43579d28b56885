"""What is generated is committed and up to date."""

from __future__ import annotations

from pathlib import Path

import pytest

from ops.generate import GENERATED

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", GENERATED)
def test_is_what_make_gen_would_write(name: str) -> None:
    assert (ROOT / name).read_text() == GENERATED[name](), f"{name} is out of date: run make gen"

"""Nothing that is shipped goes without a licence."""

from __future__ import annotations

import pytest

from ops.licences import page, spdx


def test_every_package_says_its_licence() -> None:
    rows = [line for line in page().splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 50
    assert not [row for row in rows if "not said" in row]


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ("Apache Software License", "Apache-2.0"),
        ("The MIT License", "MIT"),
        ("3-Clause BSD License", "BSD-3-Clause"),
        ("MPL-2.0 AND MIT", "MPL-2.0 AND MIT"),
        ("Something of their own", "Something of their own"),
    ],
)
def test_spellings(told: str, name: str) -> None:
    assert spdx(told) == name

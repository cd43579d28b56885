"""Hosts by their names: who reaches them, and how URLs spell them."""

from __future__ import annotations

import pytest

from easel.chat.service import Service
from easel.hosts import in_url, is_loopback


@pytest.mark.parametrize(
    ("host", "spelled", "own"),
    [
        ("localhost", "localhost", True),
        ("127.0.0.2", "127.0.0.2", True),
        ("::1", "[::1]", True),
        ("[::1]", "[::1]", True),
        ("0.0.0.0", "0.0.0.0", False),
        ("::", "[::]", False),
        ("10.0.0.1", "10.0.0.1", False),
        ("easel.test", "easel.test", False),
    ],
)
async def test_who_reaches_a_host_and_how_a_url_spells_it(host: str, spelled: str, own: bool) -> None:
    assert (is_loopback(host), in_url(host)) == (own, spelled)
    async with Service(f"http://{spelled}:8000")._client() as client:
        assert client.trust_env is not own, "a proxy from the environment is for other hosts"

"""One engine of each kind for all tests of a module: loading takes longer than what is tried on it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from easel.protocol import Engine
from tests.contract.engines.kinds import Kind, parameters


@dataclass(frozen=True)
class Case:
    """What a test holds."""

    kind: Kind
    engine: Engine


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=parameters())
async def case(request: pytest.FixtureRequest) -> AsyncIterator[Case]:
    kind: Kind = request.param
    engine = kind.make()
    await engine.start()
    yield Case(kind, engine)
    await engine.stop()

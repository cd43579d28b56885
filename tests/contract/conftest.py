"""What tests of the contract share."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from tests.unit.api.edge import edge, saying, served, write_checkpoint


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The application behind a server in a thread with an event loop of its own."""
    checkpoint = write_checkpoint(tmp_path_factory.mktemp("checkpoint"))
    started, found = threading.Event(), []
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        async with edge(checkpoint, saying("Some text.")) as e, served(e.app) as address:
            found.append(address)
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert started.wait(60)
    yield found[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()

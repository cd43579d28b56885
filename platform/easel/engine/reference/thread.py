"""The thread in which transformers loads and decodes.

Owns: the thread, and the way of what it returns back to the event loop. Refuses to know: what it is given to do.

Not a `ThreadPoolExecutor`: Python waits for the threads of those before it exits, and what hangs in one hangs for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

T = TypeVar("T")


class DecodingThread:
    """Does what it is given, one after the other. Called from one event loop."""

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def call(self, do: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
        """What `do` returns or raises, when its turn has come. The first call starts the thread."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def call() -> None:
            settle: Callable[[], None]
            try:
                settle = partial(future.set_result, do(*arguments))
            except BaseException as error:
                settle = partial(future.set_exception, error)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
                loop.call_soon_threadsafe(lambda: None if future.done() else settle())

        self._calls.put(call)
        if self._thread.ident is None:
            self._thread.start()
        return future

    def end(self) -> None:
        """End the thread when it has done what it was given. Does not wait for it."""
        self._calls.put(None)

    def join(self) -> None:
        """Wait until it has ended. Blocks."""
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()

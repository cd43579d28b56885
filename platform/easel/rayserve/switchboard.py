"""Where Serve's request router, which Serve makes, finds this ingress's router, which the ingress makes.

Owns: one entry for each application in this process, and the crossing between event loops: with Serve's defaults its
router has a loop and thread of its own, in throughput mode it shares ours. Refuses to know: what is asked.

A module of its own because Serve pickles the module of a request-router class by value: a global in that one would be
another one in each copy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from easel.router.router import Router

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Line:
    """A router and the event loop that alone may call it."""

    router: Router
    loop: asyncio.AbstractEventLoop

    async def ask(self, question: Callable[..., T], *arguments: Any) -> T:
        """What it answers, from whichever loop this is awaited in."""
        if asyncio.get_running_loop() is self.loop:
            return question(*arguments)

        async def there() -> T:
            return question(*arguments)

        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(there(), self.loop))

    def tell(self, message: Callable[..., object], *arguments: Any) -> None:
        """At once in its own loop, otherwise soon."""
        try:
            here = asyncio.get_running_loop() is self.loop
        except RuntimeError:
            here = False
        if here:
            message(*arguments)
        elif not self.loop.is_closed():
            self.loop.call_soon_threadsafe(message, *arguments)


_LINES: dict[str, Line] = {}


def connect(application: str, router: Router, loop: asyncio.AbstractEventLoop) -> None:
    """From now on this is the application's router in this process."""
    _LINES[application] = Line(router, loop)


def line(application: str) -> Line | None:
    """None in a process that has no ingress of that application."""
    return _LINES.get(application)

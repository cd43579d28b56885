"""One question and its answer: reading as it comes, showing at a pace that an eye can follow.

Owns: that showing never slows reading, and that leaving early closes the connection. Refuses to know: what is shown.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

from easel.chat.canvas import Answer
from easel.chat.service import Service, ServiceFailure

Show = Callable[[Answer], None]


async def ask(service: Service, path: str, body: Mapping[str, Any], show: Show, pace_s: float = 0.0) -> Answer:
    """The whole answer. `show` is called after each event; a canvas's states stay for `pace_s` seconds at least.

    Cancelling closes the connection, which frees the slot. Raises `ServiceFailure`.
    """
    arrived: asyncio.Queue[tuple[dict[str, Any], float] | None] = asyncio.Queue()
    reading = asyncio.create_task(_read(service, path, body, arrived))
    answer = Answer()
    try:
        while (item := await arrived.get()) is not None:
            event, seconds = item
            states = answer.states
            try:
                answer.take(event, seconds)
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                raise ServiceFailure(f"the service sent an event that this client cannot read ({error!r})") from None
            show(answer)
            if pace_s and answer.states > states:
                await asyncio.sleep(pace_s)
        await reading
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    return answer


async def _read(service: Service, path: str, body: Mapping[str, Any], arrived: asyncio.Queue[Any]) -> None:
    began = time.perf_counter()
    events = service.stream(path, body)
    try:
        async for event in events:
            arrived.put_nowait((event, time.perf_counter() - began))
    finally:
        await events.aclose()
        arrived.put_nowait(None)

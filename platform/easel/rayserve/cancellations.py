"""Cancels on their way to the ingress that holds the request, whichever that is.

An ingress that is asked for a request it does not hold asks the work-reporting actor. Every ingress keeps one call to
the actor open, which is answered as soon as something is to be cancelled; with the next one it says whether it held
that. The actor knows from the reports who has to answer, so "nobody has it" is known and no guess.

Owns: both ends of that. Refuses to know: what a request is, and how an ingress ends one.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from easel.errors import NotReady

logger = logging.getLogger("ray.serve")

LISTEN_S = 1.0
"""How long the actor keeps a call open that it has nothing to say to."""
ASK_S = 5.0
"""How long all ingresses together have for their answers. One that has died stops counting after 3 s."""
LOOK_S = 0.01
"""Between two looks at the answers, while there is something to cancel."""
LOST_S = 0.5
"""Between two tries to reach the actor."""

Wanted = tuple[str, str, str]
"""A number of its own, the owner, the request's id."""


@dataclass(slots=True)
class _Cancel:
    owner: str
    request_id: str
    answers: dict[str, bool] = field(default_factory=dict)
    """By ingress: whether it held such a request."""


class Cancellations:
    """The actor's end: what is to be cancelled, and who has answered. One event loop calls it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._cancels: dict[str, _Cancel] = {}
        self._news = asyncio.Event()

    async def ask(
        self, owner: str, request_id: str, ingresses: Callable[[], Collection[str]], known_at: float = 0.0
    ) -> bool | None:
        """Whether one of those that `ingresses` says, at any time, held it; None: not all of them answered in time.
        Before `known_at` on the clock, it may not say all of them yet."""
        number = secrets.token_hex(8)
        cancel = self._cancels[number] = _Cancel(owner, request_id)
        self._news.set()
        self._news = asyncio.Event()
        until = self._clock() + ASK_S
        try:
            while True:
                if any(cancel.answers.values()):
                    return True
                if self._clock() >= known_at and cancel.answers.keys() >= set(ingresses()):
                    return False
                if self._clock() >= until:
                    return None
                await asyncio.sleep(LOOK_S)
        finally:
            del self._cancels[number]

    async def listen(self, ingress: str, answers: Mapping[str, bool]) -> list[Wanted]:
        """What is to be cancelled and this ingress has not answered yet; its answers to earlier ones come along. Waits
        for something, but not long."""
        for number, held in answers.items():
            if number in self._cancels:
                self._cancels[number].answers[ingress] = held
        until = self._clock() + LISTEN_S
        while True:
            news = self._news
            wanted = [
                (number, cancel.owner, cancel.request_id)
                for number, cancel in self._cancels.items()
                if ingress not in cancel.answers
            ]
            left = until - self._clock()
            if wanted or left <= 0:
                return wanted
            await asyncio.wait({waiting := asyncio.ensure_future(news.wait())}, timeout=left)
            waiting.cancel()


class CancelLine:
    """An ingress's end. `find` returns the actor's handle and may block."""

    def __init__(self, ingress: str, find: Callable[[], Any]) -> None:
        self._ingress = ingress
        self._find = find
        self._actor: Any = None
        self._reached = True

    async def elsewhere(self, owner: str, request_id: str) -> bool:
        """Cancels in every ingress. Whether one of them held it. Raises `NotReady` where that cannot be told."""
        held = await self._call(lambda actor: actor.cancel.remote(owner, request_id), ASK_S + LISTEN_S)
        if held is None:
            raise NotReady("Not every ingress said whether it has that request; ask again.", retry_after_s=1.0)
        return bool(held)

    async def run(self, cancel: Callable[[str, str], bool]) -> None:
        """Until cancelled: what is wanted is cancelled here. `cancel` says whether there was such a request."""
        answers: dict[str, bool] = {}
        while True:
            told = dict(answers)
            wanted = await self._call(lambda actor, told=told: actor.listen.remote(self._ingress, told), 2 * LISTEN_S)  # type: ignore[misc]
            if wanted is None:  # what was told may not have arrived, and is told again
                await asyncio.sleep(LOST_S)
                continue
            answers = {number: cancel(owner, request_id) for number, owner, request_id in wanted}

    async def _call(self, method: Callable[[Any], Awaitable[Any]], timeout_s: float) -> Any:
        """None where the actor did not answer: it is restarting, or was started by an older release."""
        try:
            if self._actor is None:
                self._actor = await asyncio.to_thread(self._find)
            answer = await asyncio.wait_for(method(self._actor), timeout_s)
        except Exception as error:
            if self._reached:  # told once, and not twice a second until it is back
                logger.warning("cancels reach this ingress only: the actor did not answer: %s", type(error).__name__)
            self._actor, self._reached = None, False
            return None
        self._reached = True
        return answer

"""Cancels between ingresses, over the work-reporting actor, without a cluster."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest

from easel.errors import NotReady
from easel.rayserve import cancellations
from easel.rayserve.cancellations import ASK_S, Cancellations, CancelLine
from easel.rayserve.ledger import FRESH_S, WorkLedger
from tests.unit.api.edge import until


def ledger() -> WorkLedger:
    """One that has been there for a while."""
    ahead = [0.0]
    made = WorkLedger(lambda: time.monotonic() + ahead[0])
    ahead[0] = FRESH_S
    return made


class Actor:
    """A ledger as a handle to it looks. Each call fails as often as told."""

    def __init__(self, ledger: WorkLedger, failures: int = 0) -> None:
        self.ledger, self.failures = ledger, failures
        self.cancel = SimpleNamespace(remote=self._through(ledger.cancel))
        self.listen = SimpleNamespace(remote=self._through(ledger.listen))

    def _through(self, method: Any) -> Any:
        async def call(*arguments: Any) -> Any:
            if self.failures:
                self.failures -= 1
                raise ConnectionError("restarting")
            return await method(*arguments)

        return call


class Ingress:
    """Holds some requests, by owner and id, and listens."""

    def __init__(self, name: str, actor: Actor, *holds: tuple[str, str]) -> None:
        self.line = CancelLine(name, lambda: actor)
        self.holds = set(holds)
        self.told: list[tuple[str, str]] = []
        self.task = asyncio.create_task(self.line.run(self.cancel))

    def cancel(self, owner: str, request_id: str) -> bool:
        self.told.append((owner, request_id))
        return (owner, request_id) in self.holds


async def ingresses(actor: Actor, **holds: tuple[str, str]) -> list[Ingress]:
    """Those of these names, reporting. One that holds nothing holds ("", "")."""
    made = [Ingress(name, actor, what) for name, what in holds.items()]
    for name in holds:
        await actor.ledger.put({"ingress": name}, {})
    return made


async def end(made: list[Ingress]) -> None:
    for one in made:
        one.task.cancel()
    await asyncio.gather(*(one.task for one in made), return_exceptions=True)


async def test_the_one_that_holds_it_cancels_it_whichever_was_asked() -> None:
    made = await ingresses(Actor(ledger()), a=("", ""), b=("ann", "x"), c=("", ""))
    assert await made[0].line.elsewhere("ann", "x") is True
    assert made[1].told == [("ann", "x")]
    assert await made[2].line.elsewhere("bob", "x") is False
    assert all(("bob", "x") in one.told for one in made), "everybody was asked before it was said not to be there"
    await end(made)


async def test_many_at_once_are_told_apart() -> None:
    made = await ingresses(Actor(ledger()), a=("k", "1"), b=("k", "2"))
    asked = [made[0].line.elsewhere("k", str(number)) for number in range(4)]
    assert await asyncio.gather(*asked) == [False, True, True, False]
    await end(made)


async def test_one_that_has_died_stops_counting() -> None:
    now = [0.0]
    shared = WorkLedger(lambda: now[0])
    made = await ingresses(Actor(shared), a=("", ""))
    await shared.put({"ingress": "dead"}, {})
    asking = asyncio.create_task(made[0].line.elsewhere("k", "x"))
    await until(lambda: made[0].told)
    assert not asking.done()
    now[0] = FRESH_S + 0.1
    await shared.put({"ingress": "a"}, {})
    assert await asking is False
    await end(made)


async def test_an_actor_that_has_just_restarted_knows_of_no_ingress_that_there_is_none() -> None:
    now = [0.0]
    actor = Actor(WorkLedger(lambda: now[0]))
    made = await ingresses(actor, a=("", ""))
    asking, nobodys = (asyncio.create_task(made[0].line.elsewhere("k", name)) for name in "xy")
    await until(lambda: len(made[0].told) == 2)
    for _ in range(20):
        await asyncio.sleep(cancellations.LOOK_S)
    assert not asking.done(), "the other one has not reported to it yet"
    made += await ingresses(actor, b=("k", "x"))
    assert await asking is True
    assert not nobodys.done()
    now[0] = FRESH_S
    assert await nobodys is False
    await end(made)


async def test_one_that_lives_and_does_not_answer_makes_it_unknown() -> None:
    now = [0.0]
    cancels = Cancellations(lambda: now[0])
    asking = asyncio.create_task(cancels.ask("k", "x", lambda: ["deaf"]))
    await asyncio.sleep(0)
    now[0] = ASK_S
    assert await asking is None


async def test_an_actor_that_restarts_is_looked_up_again_and_what_was_said_is_said_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cancellations, "LOST_S", 0.0)
    actor = Actor(ledger())
    made = await ingresses(actor, a=("", ""), b=("k", "x"))
    original = made[1].cancel

    def then_the_actor_is_away(owner: str, request_id: str) -> bool:
        actor.failures = 1
        return original(owner, request_id)

    made[1].task.cancel()
    made[1].task = asyncio.create_task(made[1].line.run(then_the_actor_is_away))
    assert await made[0].line.elsewhere("k", "x") is True
    await end(made)


async def test_without_an_actor_the_caller_is_told_to_ask_again() -> None:
    class Old:
        """Started by a release that knew no cancels."""

    line = CancelLine("a", Old)
    with pytest.raises(NotReady) as told:
        await line.elsewhere("k", "x")
    assert told.value.retry_after_s == 1.0

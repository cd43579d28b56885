"""Asking the controller seldom, together, and believing the last answer while it is away."""

from __future__ import annotations

import asyncio
import threading

from easel.rayserve.watch import ReplicaWatch


class Controller:
    """Counts how often it is asked; answers or fails as told."""

    def __init__(self) -> None:
        self.asked = 0
        self.answer: int | Exception = 1

    def __call__(self) -> int:
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


async def test_asks_once_for_many_and_again_when_the_answer_is_old() -> None:
    controller, now = Controller(), [0.0]
    watch = ReplicaWatch(controller, max_age_s=1.0, clock=lambda: now[0])
    assert await asyncio.gather(*(watch.running() for _ in range(20))) == [1] * 20
    assert controller.asked == 1
    controller.answer = 2
    assert await watch.running() == 1
    now[0] = 1.0
    assert await watch.running() == 2
    assert controller.asked == 2


async def test_the_last_answer_holds_while_the_controller_is_away() -> None:
    controller, now = Controller(), [0.0]
    watch = ReplicaWatch(controller, clock=lambda: now[0])
    assert await watch.running() == 1
    now[0], controller.answer = 5.0, TimeoutError("no controller")
    assert await watch.running() == 1
    now[0], controller.answer = 10.0, KeyError("easel")
    assert await watch.running() == 0


async def test_one_that_leaves_does_not_take_the_answer_from_the_others() -> None:
    controller = Controller()
    watch = ReplicaWatch(controller)
    leaving, staying = asyncio.create_task(watch.running()), asyncio.create_task(watch.running())
    await asyncio.sleep(0)
    leaving.cancel()
    assert await staying == 1
    assert controller.asked == 1


async def test_a_controller_that_says_nothing_holds_up_nobody() -> None:
    """As one that is being restarted: the call to it returns when it is back."""
    controller, now, back = Controller(), [0.0], threading.Event()

    def count() -> int:
        if now[0] > 0.0:
            assert back.wait(60)
        return controller()

    watch = ReplicaWatch(count, clock=lambda: now[0], answer_s=0.01)
    assert await watch.running() == 1
    now[0], controller.answer = 5.0, 2
    try:
        async with asyncio.timeout(30):
            assert await watch.running() == 1
            now[0] = 6.0  # from here on nobody waits at all
            assert [await watch.running() for _ in range(100)] == [1] * 100
    finally:
        back.set()
    while controller.asked < 2 or await watch.running() == 1:
        await asyncio.sleep(0.001)
    assert await watch.running() == 2
    assert controller.asked == 2, "asked once, however many wanted to know meanwhile"

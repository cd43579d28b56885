"""Slow readers cost little and lose nothing that is final."""

from __future__ import annotations

import asyncio

from easel.engine.native.mailbox import Mailbox
from easel.protocol import CanvasProgress, Started, merge_progress


def _progress(step: int, canvas: int = 0, **tokens: int) -> CanvasProgress:
    positions = tuple(int(name[1:]) for name in tokens)
    count = len(positions)
    return CanvasProgress(canvas, step, positions, tuple(tokens.values()), (0.1 * step,) * count, (step > 1,) * count)


async def test_unread_progress_is_one_event_that_tells_all() -> None:
    mailbox = Mailbox()
    mailbox.put(Started(at=1.0))
    for step in range(1, 100):
        mailbox.put(_progress(step, p5=step, **{f"p{step % 3}": step}))
    assert len(mailbox) == 2
    assert await mailbox.get() == Started(at=1.0)
    merged = await mailbox.get()
    assert isinstance(merged, CanvasProgress)
    assert (merged.step, merged.positions, merged.token_ids) == (99, (0, 1, 2, 5), (99, 97, 98, 99))
    assert merged.accepted == (True,) * 4


async def test_waits_for_the_next_event() -> None:
    mailbox = Mailbox()
    reader = asyncio.create_task(mailbox.get())
    await asyncio.sleep(0)
    assert not reader.done()
    mailbox.put(Started(at=2.0))
    assert await reader == Started(at=2.0)


def test_progress_of_an_older_canvas_is_worth_nothing() -> None:
    newer = _progress(1, canvas=1, p0=4)
    assert merge_progress(_progress(9, p3=7), newer) == newer

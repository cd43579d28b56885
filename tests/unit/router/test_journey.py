"""What is told of a request's way through the router: its wait, where it went, and that every span ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from easel.errors import EaselError, EngineFailed, QueueTimeout
from easel.prefixes import prefix_hashes
from easel.protocol import Event, Finished, GenerationRequest, Started, Usage
from easel.router.router import Router
from easel.router.simulation import virtual_time
from easel.settings import RouterSettings
from easel.telemetry import spans
from easel.telemetry.names import PLACEMENT_SECONDS, PLACEMENTS, QUEUED_STEPS
from easel.telemetry.recorder import MemoryRecorder
from easel.telemetry.tracing import KeptSpan, MemoryTracer
from tests.unit.router.making import request, stats

PARENT = f"00-{'a' * 32}-{'b' * 16}-01"


class Told:
    """A router over one replica, "a", with one slot. `script`: what each try does, a number being a wait."""

    def __init__(self, *script: list[Any], **more: Any) -> None:
        self.recorder, self.tracer = MemoryRecorder(), MemoryTracer()
        self.script = list(script)
        now = asyncio.get_running_loop().time
        self.router = Router(
            RouterSettings(surplus_requests=0),
            self.send,
            256,
            "m",
            recorder=self.recorder,
            clock=now,
            wall=now,
            tracer=self.tracer,
        )
        self.router.replicas(["a"])
        self.router.replica_said("a", stats(at=0.0, slots=1, **more))

    async def send(self, asked: GenerationRequest) -> AsyncIterator[Event]:
        await asyncio.sleep(0.25)
        self.router.destination(asked, ["a"])
        self.router.went(asked, "a")
        for item in self.script.pop(0) if len(self.script) > 1 else self.script[0]:
            if isinstance(item, EaselError):
                raise item
            if isinstance(item, float):
                await asyncio.sleep(item)
            else:
                yield item

    async def ask(self, name: str, **more: Any) -> None:
        async for _ in self.router.generate(request(name, traceparent=PARENT, **more)):
            pass

    def of(self, span: spans.SpanName) -> list[KeptSpan]:
        return [kept for kept in self.tracer.spans if kept.span is span]


WHOLE: list[Any] = [Started(0.0), 4.0, Finished("stop", Usage())]


def test_each_wait_and_each_placement_is_a_span() -> None:
    async def run() -> None:
        told = Told([Started(0.0), EngineFailed("gone")], WHOLE)
        asking = asyncio.create_task(told.ask("first"))
        await asyncio.sleep(1.0)
        waiting = asyncio.create_task(told.ask("second"))
        await asyncio.sleep(1.0)
        told.router.report()
        assert told.recorder.total(QUEUED_STEPS) > 10
        await asyncio.gather(asking, waiting)
        assert {span.parent for span in told.tracer.spans} == {PARENT}
        assert [span.attributes["easel.queue.outcome"] for span in told.of(spans.QUEUE)] == ["admitted"] * 2
        assert [span.attributes["easel.replica"] for span in told.of(spans.PLACEMENT)] == ["a"] * 3
        assert all(span.ended is not None for span in told.tracer.spans)
        [seconds] = told.recorder.values[PLACEMENT_SECONDS.name, (("model", "m"),)][:1]
        assert seconds == pytest.approx(0.25)
        told.recorder.values.clear()
        told.router.report()
        assert told.recorder.total(QUEUED_STEPS) == pytest.approx(0.0, abs=1e-6)

    virtual_time.run(run())


def test_who_waits_in_vain_leaves_a_span_that_says_so() -> None:
    async def run() -> None:
        told = Told(WHOLE)
        asking = asyncio.create_task(told.ask("first"))
        await asyncio.sleep(0.5)
        with pytest.raises(QueueTimeout):
            await told.ask("second", queue_timeout_s=1.0)
        cancelled = asyncio.create_task(told.ask("third"))
        await asyncio.sleep(0.5)
        cancelled.cancel()
        await asyncio.gather(asking, cancelled, return_exceptions=True)
        _, second, third = told.of(spans.QUEUE)
        assert second.attributes["easel.queue.outcome"] == second.error == "evicted_queue_timeout"
        assert third.attributes["easel.queue.outcome"] == "evicted_client_gone"
        assert all(span.ended is not None for span in told.tracer.spans)

    virtual_time.run(run())


@pytest.mark.parametrize(("held", "prefix"), [(True, "hit"), (False, "miss")])
def test_a_placement_is_a_hit_where_the_prefix_was_before(held: bool, prefix: str) -> None:
    """Not where it is only by this very request, which placement believes to be there as soon as it is sent."""

    async def run() -> None:
        prompt = tuple(range(600))
        digest = tuple(prefix_hashes(prompt if held else prompt[::-1]))
        told = Told(WHOLE, prefix_digest=digest)
        await told.ask("one", tokens=prompt)
        assert told.recorder.total(PLACEMENTS, prefix=prefix) == told.recorder.total(PLACEMENTS) == 1

    virtual_time.run(run())

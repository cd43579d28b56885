"""The engine handle over a stand-in for Serve's: what a client may learn of each failure, and what waits how long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, cast

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RequestCancelledError

from easel.errors import ContextLengthExceeded, EaselError, EngineFailed, InternalError, NotReady, QueueFull
from easel.protocol import Event, Finished, GenerationRequest, Started, Usage
from easel.rayserve.backend import EngineHandle, translate
from easel.rayserve.watch import ReplicaWatch

STARTED, FINISHED = Started(at=0.0), Finished("length", Usage())
REQUEST = GenerationRequest("r", (1, 2), 8)


class Response:
    """What `handle.remote()` gives: an iterator of events or failures, or one that waits for ever."""

    def __init__(self, script: list[Any]) -> None:
        self.script = list(script)
        self.cancelled = False

    def __aiter__(self) -> AsyncIterator[tuple[Event, ...]]:
        return self

    async def __anext__(self) -> tuple[Event, ...]:
        if not self.script:
            raise StopAsyncIteration
        item = self.script.pop(0)
        if item == "wait":
            await asyncio.Event().wait()
        if isinstance(item, BaseException):
            raise item
        return (cast("Event", item),)

    def cancel(self) -> None:
        self.cancelled = True


class Handle:
    """Gives one prepared response a call."""

    def __init__(self, *scripts: list[Any]) -> None:
        self.responses = [Response(script) for script in scripts]
        self.given: list[Response] = []

    def options(self, method_name: str, stream: bool) -> Handle:
        assert (method_name, stream) == ("generate", True)
        return self

    def remote(self, request: GenerationRequest) -> Response:
        assert request == REQUEST
        self.given.append(self.responses.pop(0))
        return self.given[-1]


def backend(handle: Handle, running: Callable[[], int] = lambda: 1, patience_s: float = 0.05) -> EngineHandle:
    return EngineHandle(handle, ReplicaWatch(running, max_age_s=0.0), patience_s=patience_s, look_s=0.01)


async def events(made: EngineHandle) -> list[Event]:
    return [event async for event in made.send(REQUEST)]


def remote(error: Exception) -> RayTaskError:
    """As it arrives from another process: a class made on the fly, whose text is a remote traceback."""
    try:
        raise error
    except Exception as raised:
        made = RayTaskError("generate", "Traceback: /home/secret/file.py", raised)
    return cast("RayTaskError", made.as_instanceof_cause())


async def test_passes_events_on_and_lets_go_of_the_response() -> None:
    handle = Handle([STARTED, FINISHED])
    assert await events(backend(handle)) == [STARTED, FINISHED]
    assert handle.given[0].cancelled


async def test_closing_cancels_the_call() -> None:
    handle = Handle([STARTED, "wait"])
    async with aclosing(cast("Any", backend(handle).send(REQUEST))) as stream:
        assert await anext(stream) == STARTED
        assert not handle.given[0].cancelled
    assert handle.given[0].cancelled


async def test_cancelling_while_the_first_event_is_awaited_cancels_the_call() -> None:
    handle = Handle(["wait"])
    task = asyncio.create_task(events(backend(handle, patience_s=60)))
    while not handle.given:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert handle.given[0].cancelled


async def test_waits_for_a_slot_as_long_as_a_replica_runs() -> None:
    task = asyncio.create_task(events(backend(Handle(["wait"]), patience_s=0.02)))
    done, _ = await asyncio.wait({task}, timeout=0.2)
    assert not done
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_gives_up_when_no_replica_runs_and_says_when_to_come_back() -> None:
    handle = Handle(["wait"])
    with pytest.raises(NotReady) as raised:
        await events(backend(handle, running=lambda: 0))
    assert raised.value.retry_after_s
    assert handle.given[0].cancelled


async def test_a_dead_replica_is_an_engine_failed_from_a_single_try() -> None:
    """Whether it is tried again is the router's to say."""
    handle = Handle([ActorDiedError()], [STARTED, FINISHED])
    with pytest.raises(EngineFailed):
        await events(backend(handle))
    assert len(handle.given) == 1
    assert handle.given[0].cancelled


async def test_what_an_error_says_of_itself_crosses_with_it() -> None:
    failure = EngineFailed("a bad request")
    failure.retryable = False
    with pytest.raises(EngineFailed) as raised:
        await events(backend(Handle([remote(failure)])))
    assert type(raised.value) is EngineFailed
    assert raised.value.retryable is False


async def test_a_request_that_had_begun_is_not_run_twice() -> None:
    handle = Handle([STARTED, ActorDiedError()], [STARTED, FINISHED])
    stream = backend(handle).send(REQUEST)
    assert await anext(stream) == STARTED
    with pytest.raises(EngineFailed):
        await anext(stream)
    assert len(handle.given) == 1


async def test_an_error_of_ours_arrives_as_itself() -> None:
    handle = Handle([remote(ContextLengthExceeded("too long", "prompt"))])
    with pytest.raises(ContextLengthExceeded) as raised:
        await events(backend(handle))
    assert type(raised.value) is ContextLengthExceeded
    assert (raised.value.message, raised.value.param) == ("too long", "prompt")


async def test_no_answer_at_all_is_an_error() -> None:
    with pytest.raises(InternalError):
        await events(backend(Handle([])))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ActorDiedError(), EngineFailed),
        (ActorUnavailableError("gone", b"0" * 16), EngineFailed),
        (RequestCancelledError("r"), EngineFailed),
        (ConnectionResetError(), EngineFailed),
        (BackPressureError(num_queued_requests=3, max_queued_requests=2), QueueFull),
        (DeploymentUnavailableError(type("Id", (), {"name": "engine"})()), NotReady),  # type: ignore[arg-type]
        (remote(ValueError("secret")), InternalError),
        (RuntimeError("secret"), InternalError),
        (remote(QueueFull("full", retry_after_s=3)), QueueFull),
    ],
)
def test_says_nothing_of_what_is_not_a_clients_business(error: Exception, expected: type[EaselError]) -> None:
    made = translate(error)
    assert type(made) is expected
    assert "secret" not in made.message
    assert "Traceback" not in made.message

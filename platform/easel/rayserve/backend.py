"""A handle to the engine deployment, as the router sends requests through it.

Owns: what happens between the router and a replica: events over the handle, cancelling, what to do when no replica
runs, and the translation of Ray's failures into Easel's. Refuses to know: how a replica is chosen, and whether a
request is tried again.

Errors from another process arrive as Ray's own, with a remote traceback for a text: their `str()` never leaves here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc  # type: ignore[import-untyped]
from ray.exceptions import RayError, RaySystemError, RayTaskError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
    RequestCancelledError,
)

from easel.errors import EaselError, EngineFailed, InternalError, NotReady, QueueFull, from_code
from easel.protocol import Event, GenerationRequest
from easel.rayserve.bundles import Bundle
from easel.rayserve.watch import ReplicaWatch

logger = logging.getLogger("easel.backend")

PATIENCE_S = 30.0
"""How long a request that was let in waits while no engine replica runs: the last one died, or was to be the first."""

RETRY_AFTER_S = 5.0
"""When to come back, where no replica runs."""

LOOK_S = 1.0
"""Between two looks at whether a replica runs, while a request waits for its first event."""

GONE = "The engine stopped while it worked on this request."


class EngineHandle:
    """`engine` is a `DeploymentHandle` of the engine deployment; `watch` counts its replicas."""

    def __init__(
        self,
        engine: Any,
        watch: ReplicaWatch,
        patience_s: float = PATIENCE_S,
        look_s: float = LOOK_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._generate = engine.options(method_name="generate", stream=True)
        self._watch = watch
        self._patience_s = patience_s
        self._look_s = look_s
        self._clock = clock

    async def send(self, request: GenerationRequest) -> AsyncIterator[Event]:
        """The events of one request, from a single try. Raises `EaselError` only; `EngineFailed` means that the replica
        is gone. What its engine fails with while it lives is a `Failed` event. See `easel.router.router.Send`."""
        response = self._generate.remote(request)
        try:
            for event in await self._first(response):
                yield event
            async for bundle in response:
                for event in bundle:
                    yield event
        except StopAsyncIteration:
            raise InternalError("The engine gave no answer.") from None
        except Exception as error:
            raise translate(error) from None
        finally:
            # After the last event this does nothing; before it, the replica closes the engine's iterator.
            response.cancel()

    async def _first(self, response: Any) -> Bundle:
        """The first events. Gives up where no replica has run for `patience_s`: Serve's handle would wait for ever."""
        waiting = asyncio.ensure_future(anext(response))
        missing_since: float | None = None
        try:
            while True:
                done, _ = await asyncio.wait({waiting}, timeout=self._look_s)
                if done:
                    bundle: Bundle = waiting.result()
                    return bundle
                if await self._watch.running():
                    missing_since = None
                    continue
                missing_since = self._clock() if missing_since is None else missing_since
                if self._clock() - missing_since >= self._patience_s:
                    raise NotReady("No engine runs at the moment; try again.", retry_after_s=RETRY_AFTER_S)
        finally:
            if not waiting.done():
                response.cancel()
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)


def translate(error: BaseException) -> EaselError:
    """What a client may know of a failure on the way to a replica or in it."""
    if isinstance(error, EaselError):
        return _plain(error)
    if isinstance(error, BackPressureError):
        return QueueFull("The service is at its limit; try again.", retry_after_s=RETRY_AFTER_S)
    if isinstance(error, DeploymentUnavailableError):
        return NotReady("The model is not available at the moment; try again.", retry_after_s=RETRY_AFTER_S)
    if isinstance(error, RayTaskError) and not isinstance(error, RaySystemError):
        # The replica lives, and its code raised something that is no EaselError: our mistake.
        logger.error("the engine replica raised %s", error)
        return InternalError("The server made a mistake.")
    if isinstance(error, RayError | grpc.RpcError | ReplicaUnavailableError | RequestCancelledError | ConnectionError):
        logger.warning("the engine replica is gone: %s", type(error).__name__)
        return EngineFailed(GONE)
    logger.error("unexpected failure on the way to the engine", exc_info=error)
    return InternalError("The server made a mistake.")


def _plain(error: EaselError) -> EaselError:
    """The error without what Ray wrapped around it: `type()` of an error that crossed is a class made on the fly."""
    # What an instance says of itself is on the error that Ray wrapped, what its class says on both.
    error = getattr(error, "cause", error)
    made = from_code(error.code, error.message, error.param, error.retryable)
    made.retry_after_s = error.retry_after_s
    return made

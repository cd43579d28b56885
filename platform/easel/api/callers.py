"""Who calls, and what that lets them do: the key of a call, its limits and its usage.

Owns: the check of the key before anything else of a call is looked at, the refusals in OpenAI's words, the headers that
tell where a key stands, and the count of what each key used. Refuses to know: where keys come from (`easel.api.keys`)
and how limits work (`easel.router.limits` does; it comes in through a protocol).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, Protocol, cast

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from easel.api.backend import Backend
from easel.api.failures import error_response
from easel.api.keys import Key, KeyStore
from easel.api.request_log import RequestNotes, note, notes
from easel.errors import Forbidden, InvalidRequest, RateLimited, Unauthenticated
from easel.protocol import CanvasCommitted, Event, Finished, GenerationRequest
from easel.settings import KeyLimits
from easel.telemetry.names import KEY_REFUSALS, KEY_REQUESTS, KEY_STEPS, KEY_TOKENS, KEY_WORK
from easel.telemetry.recorder import Recorder

LIMIT_HEADERS = tuple(
    f"x-ratelimit-{what}-{name}"
    for name in ("requests", "tokens", "denoising-steps")
    for what in ("limit", "remaining", "reset")
)
"""All that may come with an answer."""

GUARDED = "/v1/"
"""What lies below it needs a key; probes, the version and the playground's page do not."""
GUARDED_ROOTS = frozenset({"/tokenize", "/detokenize"})
"""Routes outside it that need one too: other servers have them there."""

NO_KEY = (
    "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer auth "
    "(i.e. Authorization: Bearer YOUR_KEY)."
)
WRONG_KEY = "Incorrect API key provided."


class Standing(Protocol):
    """Where a key stands with one limit."""

    @property
    def name(self) -> str: ...
    @property
    def limit(self) -> int: ...
    @property
    def remaining(self) -> int: ...
    @property
    def reset_s(self) -> float: ...


class Grant(Protocol):
    """A call that may run."""

    def used(self, tokens: int, steps: int) -> None: ...
    def end(self) -> None: ...


class Limits(Protocol):
    """What enforces limits: `easel.router.limits.Limiter`."""

    def take(self, key: str, limits: KeyLimits, prompt_tokens: int) -> Grant: ...
    def standing(self, key: str, limits: KeyLimits) -> Sequence[Standing]: ...


class KeyCheck:
    """401 for calls of guarded routes without one of our keys, before their body is read."""

    def __init__(self, app: ASGIApp, store: KeyStore, recorder: Recorder) -> None:
        self._app = app
        self._store = store
        self._recorder = recorder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # A browser asks with OPTIONS whether it may send a key at all.
        if scope["type"] != "http" or not is_guarded(scope) or scope["method"] == "OPTIONS":
            await self._app(scope, receive, send)
            return
        presented = _bearer(Headers(scope=scope).get("authorization", ""))
        key = await self._store.find(presented) if presented else None
        if key is None:
            self._recorder.add(KEY_REFUSALS, reason="wrong" if presented else "missing")
            error = Unauthenticated(WRONG_KEY if presented else NO_KEY)
            note(scope, error)
            await error_response(error, **{"www-authenticate": "Bearer"})(scope, receive, send)
            return
        notes(scope).key = key
        await self._app(scope, receive, send)


def is_guarded(scope: Scope) -> bool:
    """Whether the path needs a key, wherever the application is mounted: ASGI's `path` includes `root_path`."""
    path, root = scope["path"], scope.get("root_path", "").rstrip("/")
    below = path[len(root) :] if root and path.startswith(root + "/") else path
    return any(_guards(one) for one in (path, below))


def _guards(path: str) -> bool:
    """Slashes too many change nothing: a root that ends in one eats one of two."""
    path = "/" + path.strip("/") + "/"
    return path.startswith(GUARDED) or path[:-1] in GUARDED_ROOTS


def _bearer(header: str) -> str:
    scheme, _, text = header.partition(" ")
    return text.strip() if scheme.lower() == "bearer" else ""


class Callers:
    """Lets calls in by what their key may do. Without keys everybody may do everything."""

    def __init__(self, limits: Limits | None, recorder: Recorder) -> None:
        self._limits = limits
        self._recorder = recorder

    def allows(self, known: RequestNotes, names: Sequence[str]) -> bool:
        """Whether the caller may use the model of these names."""
        key = known.key
        return key is None or not key.models or bool(set(key.models) & set(names))

    def check(self, known: RequestNotes, names: Sequence[str]) -> None:
        """Raises `Forbidden` where the caller may not use the model of these names."""
        if not self.allows(known, names):
            raise Forbidden(f"This API key may not use the model '{names[0]}'.", "model")

    def let_in(
        self, known: RequestNotes, names: Sequence[str], choices: Sequence[GenerationRequest], prompt_tokens: int
    ) -> Meter:
        """Takes the call on. Raises `Forbidden`, `InvalidRequest` or `RateLimited`."""
        key = known.key
        if key is None:
            return Meter(None, None, self._recorder)
        self.check(known, names)
        if choices[0].priority > key.max_priority:
            raise InvalidRequest(
                f"Invalid 'easel.priority': this API key may ask for at most {key.max_priority}.", "easel.priority"
            )
        grant = None
        if self._limits is not None:
            try:
                grant = self._limits.take(key.id, key, prompt_tokens)
            except RateLimited:
                self._recorder.add(KEY_REFUSALS, reason="limit")
                raise
            finally:
                known.headers.update(_headers(self._limits.standing(key.id, key)))
        self._recorder.add(KEY_REQUESTS, key=key.id, tier=choices[0].tier or "default")
        return Meter(key, grant, self._recorder)


class Meter:
    """What one call uses, charged to its key as it is used."""

    def __init__(self, key: Key | None, grant: Grant | None, recorder: Recorder) -> None:
        self._key = key
        self._grant = grant
        self._recorder = recorder

    def over(self, backend: Backend) -> Backend:
        """The backend, with its events counted on the way."""
        return backend if self._key is None else _Metered(backend, self)

    def saw(self, request: GenerationRequest, event: Event) -> None:
        """An event of one of the call's requests."""
        if self._key is None:
            return
        labels = {"key": self._key.id, "tier": request.tier or "default"}
        if isinstance(event, CanvasCommitted):
            if self._grant is not None:
                self._grant.used(len(event.token_ids), event.steps)
            self._recorder.add(KEY_TOKENS, len(event.token_ids), kind="output", **labels)
            self._recorder.add(KEY_STEPS, event.steps, **labels)
        elif isinstance(event, Finished):
            self._recorder.add(KEY_TOKENS, event.usage.prompt_tokens, kind="prompt", **labels)
            self._recorder.add(KEY_WORK, event.usage.work, **labels)

    def end(self) -> None:
        """The call has ended, however it did. Again does nothing."""
        if self._grant is not None:
            self._grant.end()


class _Metered:
    def __init__(self, backend: Backend, meter: Meter) -> None:
        self._backend = backend
        self._meter = meter

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
        async with aclosing(cast("Any", self._backend.generate(request))) as events:
            async for event in events:
                self._meter.saw(request, event)
                yield event

    async def ready(self) -> str | None:
        return await self._backend.ready()


def _headers(standings: Sequence[Standing]) -> dict[str, str]:
    """As OpenAI sends them."""
    found = {}
    for one in standings:
        found[f"x-ratelimit-limit-{one.name}"] = str(one.limit)
        found[f"x-ratelimit-remaining-{one.name}"] = str(one.remaining)
        found[f"x-ratelimit-reset-{one.name}"] = duration(one.reset_s)
    return found


def duration(seconds: float) -> str:
    """`0s`, `120ms`, `6m0s`, `1h0m3s`."""
    if seconds < 1.0:
        thousandths = round(seconds * 1000)
        return f"{thousandths}ms" if thousandths else "0s"
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if whole >= 60 else "") + f"{whole % 60}s"

"""What is known of a request while it runs, for its log line, its metrics and its id header.

Owns: the notes that a route leaves for the middleware. Refuses to know: what is done with them.
"""

from __future__ import annotations

import time
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

from easel.api.denoising import ANY_PRIORITY
from easel.api.keys import Key
from easel.errors import ClientGone, EaselError, QueueFull, RateLimited, RequestCancelled
from easel.telemetry.tracing import NoSpan, OpenSpan

KEY = "easel.request"

Scope = MutableMapping[str, Any]
"""ASGI's scope of one request."""


@dataclass(slots=True)
class RequestNotes:
    """Filled in on the way."""

    id: str
    traceparent: str | None = None
    """W3C trace context of the call's span, where there is one, else the client's."""
    span: OpenSpan = field(default_factory=lambda: NoSpan(None))
    arrived: float = field(default_factory=time.perf_counter)
    """Seconds, on a clock that only goes forward."""
    status: int = 0
    """As sent; 0: nothing was sent."""
    model: str = "none"
    """Served name; `none` until the request is known to be for one. Never what a client made up."""
    key: Key | None = None
    """Whose call it is; None: nobody's, no key is asked for."""
    headers: dict[str, str] = field(default_factory=dict)
    """To be sent with the answer, whatever that is."""
    error: EaselError | None = None
    """What went wrong, in a stream too."""
    operation: str | None = None
    """`chat` or `text_completion`. None: no generation call."""
    tier: str = "none"
    call: str | None = None
    """Id of the answer."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    canvases: int = 0
    denoising_steps: int = 0
    finish_reasons: list[str] = field(default_factory=list)

    @property
    def tenant(self) -> str:
        """Whose work it is, for fair sharing."""
        return self.key.owner if self.key else ""

    @property
    def max_priority(self) -> int:
        """The most that a request of the caller's may ask for."""
        return self.key.max_priority if self.key else ANY_PRIORITY


def notes(scope: Scope) -> RequestNotes:
    """The notes on the request of this scope."""
    found = scope.setdefault("state", {}).get(KEY)
    if not isinstance(found, RequestNotes):  # used without the middleware
        found = scope["state"][KEY] = RequestNotes(id="")
    return found


def note(scope: Scope, error: EaselError) -> None:
    """Remember what the request failed with."""
    notes(scope).error = error


def outcome(error: EaselError | None) -> str:
    """Whose doing it was, for metrics: `ok`, `gone`, `refused`, `invalid` or `failed`."""
    if error is None:
        return "ok"
    if isinstance(error, ClientGone | RequestCancelled):
        return "gone"
    if isinstance(error, RateLimited | QueueFull):
        return "refused"
    return "invalid" if error.status < 500 else "failed"

"""One running service over HTTP: which models it serves, and one answer as a stream of events.

Owns: the request's headers, server-sent events, and what failures are called. Leaving the stream early closes its
connection, which frees the request's slot on the server.
Refuses to know: what events say, terminals, commands.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import httpx

from easel.errors import ConfigurationError, EaselError
from easel.hosts import is_loopback

TIMEOUT = httpx.Timeout(600.0, connect=10.0)
"""An answer may take as long as `api.request_timeout_s`; silence in between is ended by the server's heartbeats."""


@dataclass(frozen=True, slots=True)
class Served:
    """A model that the service lists."""

    name: str
    tiers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The limits of each tier by its name; empty where the service does not say."""
    default_tier: str = ""

    @classmethod
    def read(cls, data: Any) -> Served:
        """From an entry of the list. Raises `LookupError` or `TypeError` for what is none."""
        own = data.get("easel") or {}
        return cls(str(data["id"]), dict(own.get("tiers") or {}), str(own.get("default_tier") or ""))


class ServiceFailure(EaselError):
    """What the service said went wrong, in its words; `status` None: it was not reached, or broke off."""

    def __init__(self, message: str, status: int | None = None, code: str = "", param: str | None = None) -> None:
        super().__init__(message, param)
        self.answered, self.said_code = status, code

    def __str__(self) -> str:
        facts = [f"HTTP {self.answered}" if self.answered else "", self.said_code, self.param or ""]
        known = ", ".join(fact for fact in facts if fact)
        return f"{self.message} ({known})" if known else self.message


class Service:
    """A service's root, such as http://127.0.0.1:8000, and the key for it."""

    def __init__(self, url: str, key: str | None = None, transport: httpx.AsyncBaseTransport | None = None) -> None:
        """Raises `ConfigurationError` for what is no address or no key."""
        try:
            parts = httpx.URL(url)
        except httpx.InvalidURL:
            parts = httpx.URL("")
        if parts.scheme not in ("http", "https") or not parts.host:
            raise ConfigurationError(f"--url must be like http://127.0.0.1:8000, not {url!r}")
        if key is not None and not (key.isascii() and key.isprintable()):
            raise ConfigurationError("--api-key has characters that no HTTP header can carry")
        self.url = url.rstrip("/").removesuffix("/v1")
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._own_network = not is_loopback(parts.host)
        self._transport = transport

    async def models(self) -> list[Served]:
        """Every name that `model` may be, and its tiers. Raises `ServiceFailure`."""
        async with self._client() as http:
            try:
                answer = await http.get("/v1/models")
                if answer.status_code == 200:
                    return [Served.read(model) for model in answer.json()["data"]]
            except httpx.HTTPError as error:
                raise self._unreached(error) from None
            except (ValueError, LookupError, TypeError, AttributeError):
                raise ServiceFailure(
                    f"{self.url} does not speak this API: GET /v1/models is no list of models"
                ) from None
            raise _refusal(answer.status_code, answer.text)

    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The events of one answer, up to `[DONE]`. Raises `ServiceFailure`, also for a stream that was cut."""
        async with self._client() as http:
            try:
                async with http.stream("POST", path, json=dict(body)) as response:
                    if response.status_code != 200:
                        raise _refusal(response.status_code, (await response.aread()).decode("utf-8", "replace"))
                    async with aclosing(_events(response)) as events:
                        async for event in events:
                            yield event
            except httpx.HTTPError as error:
                raise self._unreached(error) from None

    def _client(self) -> httpx.AsyncClient:
        # A proxy from the environment is for other hosts than this one.
        return httpx.AsyncClient(
            base_url=self.url,
            headers=self._headers,
            timeout=TIMEOUT,
            trust_env=self._own_network,
            transport=self._transport,
        )

    def _unreached(self, error: httpx.HTTPError) -> ServiceFailure:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return ServiceFailure(f"nothing answers at {self.url}: {error}. Is `easel serve` running?")
        return ServiceFailure(f"the connection to {self.url} broke: {str(error) or type(error).__name__}")


async def _events(response: httpx.Response) -> AsyncGenerator[dict[str, Any], None]:
    async for line in response.aiter_lines():
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        if data == "[DONE]":
            return
        try:
            event = json.loads(data)
        except ValueError:
            raise ServiceFailure("the service sent an event that is no JSON") from None
        if not isinstance(event, dict):
            raise ServiceFailure("the service sent an event that is no JSON object")
        if "error" in event:
            raise _told(event["error"], None)
        yield event
    raise ServiceFailure("the stream was cut before the answer ended")


def _refusal(status: int, text: str) -> ServiceFailure:
    try:
        return _told(json.loads(text)["error"], status)
    except (ValueError, LookupError, TypeError):
        return ServiceFailure(text.strip()[:500] or "no reason was given", status)


def _told(error: Any, status: int | None) -> ServiceFailure:
    if not isinstance(error, dict):
        return ServiceFailure(str(error)[:500], status)
    param = error.get("param")
    return ServiceFailure(
        str(error.get("message") or "no reason was given"),
        status,
        str(error.get("code") or ""),
        None if param is None else str(param),
    )

"""Serves the playground's files: the page at `/`, what it needs below `/playground/`.

Owns: which files there are, and the headers that keep the page to itself: it loads nothing from elsewhere, runs no
inline script, and nobody may frame it. The page is a client of the API like any other and needs no rights of its own.

Refuses to know: the API, models, what the page does.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

FOLDER = Path(__file__).parent / "static"
INDEX = "index.html"

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""By ending. A file with another one is not served."""

HEADERS = {
    "content-security-policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self' data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # Asked for again each time, and answered with 304 as long as it is the same: a page never runs with the scripts of
    # an older version.
    "cache-control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """A file as it is sent."""

    content: bytes
    media_type: str
    etag: str


class PageRoute(Route):
    """A route that log lines and metrics can name, as the API's own can be."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = super().matches(scope)
        if match is not Match.NONE:
            child["route"] = self
        return match, child


def mount(app: Starlette) -> None:
    """Adds the page to an application. Its files are read once, here."""
    assets = read_assets()

    async def index(request: Request) -> Response:
        return _answer(assets[INDEX], request)

    async def asset(request: Request) -> Response:
        found: Any = assets.get(request.path_params["name"])
        if found is None:
            raise HTTPException(404)
        return _answer(found, request)

    app.router.routes.append(PageRoute("/", index, methods=["GET"]))
    app.router.routes.append(PageRoute("/playground/{name}", asset, methods=["GET"]))


def read_assets() -> dict[str, Asset]:
    """Every file of the page by name. A name that is not among them cannot be asked for, whatever its path says."""
    found = {}
    for path in sorted(FOLDER.iterdir()):
        if path.suffix in MEDIA_TYPES:
            content = path.read_bytes()
            etag = f'"{blake2b(content, digest_size=12).hexdigest()}"'
            found[path.name] = Asset(content, MEDIA_TYPES[path.suffix], etag)
    return found


def _answer(asset: Asset, request: Request) -> Response:
    headers = {**HEADERS, "etag": asset.etag}
    if asset.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(asset.content, headers={**headers, "content-type": asset.media_type})

"""The playground's files are served as they are, with headers that keep the page to itself."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from html.parser import HTMLParser

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Match

from easel.playground.page import FOLDER, HEADERS, MEDIA_TYPES, PageRoute, mount, read_assets

MOST_LINES = 450
FILES = sorted(path.name for path in FOLDER.iterdir())


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    app = Starlette()
    mount(app)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://page") as client:
        yield client


class Tags(HTMLParser):
    """Every tag of the page with its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def tags() -> list[tuple[str, dict[str, str | None]]]:
    parser = Tags()
    parser.feed((FOLDER / "index.html").read_text(encoding="utf-8"))
    return parser.found


@pytest.mark.parametrize("path", ["/", *(f"/playground/{name}" for name in FILES)])
async def test_every_file_is_served_with_the_headers(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    name = path.removeprefix("/playground/") if path != "/" else "index.html"
    assert answer.status_code == 200
    assert answer.content == (FOLDER / name).read_bytes()
    assert answer.headers["content-type"] == MEDIA_TYPES[name[name.rindex(".") :]]
    assert HEADERS.items() <= dict(answer.headers).items()
    assert (await client.head(path)).headers["content-length"] == str(len(answer.content))


async def test_the_policy_allows_nothing_that_is_not_named(client: httpx.AsyncClient) -> None:
    policy = dict(part.split(" ", 1) for part in (await client.get("/")).headers["content-security-policy"].split("; "))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }


async def test_what_has_not_changed_is_not_sent_again(client: httpx.AsyncClient) -> None:
    first = await client.get("/")
    again = await client.get("/", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["content-security-policy"] == HEADERS["content-security-policy"]
    assert (await client.get("/", headers={"if-none-match": '"another"'})).status_code == 200


@pytest.mark.parametrize(
    "path",
    ["/playground/", "/playground/page.py", "/playground/../page.py", "/playground/%2e%2e%2fpage.py", "/index.html"],
)
async def test_nothing_else_is_served(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(path)).status_code == 404


async def test_the_page_is_only_read(client: httpx.AsyncClient) -> None:
    assert (await client.post("/")).status_code == 405


def test_log_lines_can_name_the_route() -> None:
    app = Starlette()
    mount(app)
    scope = {"type": "http", "method": "GET", "path": "/playground/playground.js", "headers": []}
    routes = [route for route in app.router.routes if isinstance(route, PageRoute)]
    matched = [
        child["route"].path for route in routes for match, child in [route.matches(scope)] if match is Match.FULL
    ]
    assert matched == ["/playground/{name}"]


def test_the_page_loads_its_own_files_only() -> None:
    links = [value for _, attributes in tags() for name in ("src", "href") if (value := attributes.get(name))]
    assert links
    for link in links:
        assert link.startswith("#") or link.removeprefix("/playground/") in read_assets(), link
    scripts = "".join((FOLDER / name).read_text(encoding="utf-8") for name in FILES if name.endswith((".js", ".css")))
    assert not re.search(r"https?://|\burl\(|innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", scripts)


def test_there_is_no_inline_script_or_style() -> None:
    for tag, attributes in tags():
        assert tag != "style"
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
        assert tag != "script" or attributes.get("src")


def test_every_control_has_a_name() -> None:
    labels = {attributes.get("for") for tag, attributes in tags() if tag == "label"}
    for tag, attributes in tags():
        if tag in {"input", "select", "textarea"}:
            assert attributes.get("id") in labels or attributes.get("aria-label"), attributes


def test_modules_import_what_is_there_and_stay_small() -> None:
    for name in FILES:
        text = (FOLDER / name).read_text(encoding="utf-8")
        assert len(text.splitlines()) <= MOST_LINES, name
        for wanted in re.findall(r'from "\./([\w.]+)"', text):
            assert wanted in FILES

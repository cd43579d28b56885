"""`easel eval sudoku`: what it prints for people and for machines, and how it ends when the service does not answer."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from easel import cli
from easel.evals import sudoku
from easel.evals.sudoku import Answer

RUN = CliRunner()
ASKED: list[tuple[str | None, bool]] = []
"""Tiers, and whether a proxy of the environment was let in between, in the order of the runs."""


async def asked(
    url: str,
    model: str | None,
    limit: int | None,
    concurrency: int,
    on_answer: sudoku.Callable[[Answer], None],
    tier: str | None,
    trust_env: bool,
    api_key: str | None,
) -> list[Answer]:
    """One solved and one failed puzzle; the rest of the suite is tested where it lives."""
    assert tier in (None, "fast")
    ASKED.append((tier, trust_env))
    answers = [
        Answer("45-60", "1" * 81, True, 0.25, steps=2, canvases=1, tokens=89),
        Answer("24-31", "2" * 81, False, 0.5, error="HTTPStatusError: 503"),
    ]
    for answer in answers:
        on_answer(answer)
    return answers


def test_prints_a_line_a_band_and_fails_when_a_request_did(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sudoku, "run", asked)
    done = RUN.invoke(cli.app, ["eval", "sudoku", "--limit", "1"])
    assert done.exit_code == 1
    assert "100.0%" in done.output
    assert "44.5" in done.output
    assert "1 requests failed; the first: HTTPStatusError: 503" in done.output


def test_json_is_all_there_is_on_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sudoku, "run", asked)
    done = RUN.invoke(cli.app, ["eval", "sudoku", "--json", "--tier", "fast"])
    assert ASKED[-1][0] == "fast"
    data = json.loads(done.stdout)
    assert [band["solve_rate"] for band in data["bands"]] == [1.0, 0.0]
    assert data["answers"][1]["error"].startswith("HTTPStatusError")


@pytest.mark.parametrize(
    ("url", "through"), [("http://127.0.0.1:8000", False), ("http://[::1]:8000", False), ("http://easel.test", True)]
)
def test_a_proxy_of_the_environment_is_for_other_hosts(
    monkeypatch: pytest.MonkeyPatch, url: str, through: bool
) -> None:
    monkeypatch.setattr(sudoku, "run", asked)
    RUN.invoke(cli.app, ["eval", "sudoku", "--url", url])
    assert ASKED[-1][1] is through


def test_a_service_that_is_not_there_is_one_sentence() -> None:
    done = RUN.invoke(cli.app, ["eval", "sudoku", "--url", "http://127.0.0.1:9", "--limit", "1"])
    assert done.exit_code == 1
    assert "no answer to GET http://127.0.0.1:9/v1/models" in done.output
    assert "Traceback" not in done.output


class Keyed(BaseHTTPRequestHandler):
    """A service that answers whoever has its key."""

    def do_GET(self) -> None:
        self._answer({"data": [{"id": "m"}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._answer({"error": {"message": "no puzzle of mine"}}, 400)

    def _answer(self, body: object, status: int = 200) -> None:
        known = self.headers["authorization"] == "Bearer sesame"
        content = json.dumps(body if known else {"error": {"message": "Incorrect API key."}}).encode()
        self.send_response(status if known else 401)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def keyed() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Keyed)
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    serving.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    serving.join()
    server.server_close()


def test_a_key_opens_a_service_that_asks_for_one(keyed: str) -> None:
    told = ["eval", "sudoku", "--limit", "1", "--url", keyed]
    refused = RUN.invoke(cli.app, told)
    assert "no answer to GET" in refused.output
    assert "401" in refused.output
    for given, variables in ((["--api-key", "sesame"], {}), ([], {"EASEL_API_KEY": "sesame"})):
        asked = RUN.invoke(cli.app, [*told, *given], env=variables)
        assert "3 requests failed; the first: no puzzle of mine" in asked.output

"""Log lines: one JSON object an event, with what it is about, and a level that changes while it runs."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from easel.telemetry import logs
from easel.telemetry.names import LOG_FIELDS

TRACE = f"00-{'a' * 32}-{'b' * 16}-01"


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """The logger as it was is put back."""
    logger, made = logging.getLogger(logs.ROOT), io.StringIO()
    before = (logger.handlers[:], logger.level, logger.propagate)
    logger.handlers.clear()
    logs.configure("INFO", made)
    yield made
    logger.handlers[:], logger.level, logger.propagate = before
    logger.setLevel(before[1])


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_one_line_an_event_with_known_fields(stream: io.StringIO) -> None:
    log = logging.getLogger("easel.somewhere")
    with logs.about(TRACE, request_id="req_1"):
        log.info("two\nlines and %s", "an argument", extra=logs.said(code="ok", model=None))
        try:
            raise ValueError("why")
        except ValueError:
            log.exception("it failed")
    log.info("alone")
    first, second, third = lines(stream)
    assert first.pop("ts") > 1e9
    assert first == {
        "level": "INFO",
        "event": "two\nlines and an argument",
        "logger": "easel.somewhere",
        "request_id": "req_1",
        "trace_id": "a" * 32,
        "code": "ok",
    }
    assert second["error"] == "ValueError: why"
    assert "raise ValueError" in second["traceback"]
    assert "request_id" not in third
    assert {name for line in (first, second, third) for name in line} <= {field.name for field in LOG_FIELDS}


async def test_tasks_that_begin_inside_are_about_the_same(stream: io.StringIO) -> None:
    async def work() -> None:
        await asyncio.sleep(0)
        logging.getLogger("easel.x").warning("in a task")

    with logs.about(None, request_id="req_2"):
        task = asyncio.create_task(work())
    logging.getLogger("easel.x").warning("outside")
    await task
    outside, inside = lines(stream)
    assert inside["request_id"] == "req_2"
    assert "request_id" not in outside


def test_the_level_changes_while_it_runs(stream: io.StringIO) -> None:
    log = logging.getLogger("easel.x")
    log.debug("quiet")
    logs.set_level("DEBUG")
    log.debug("loud")
    logs.set_level("ERROR")
    log.warning("quiet again")
    assert [line["event"] for line in lines(stream)] == ["loud"]
    with pytest.raises(ValueError, match="log_level: 'LOUD'"):
        logs.set_level("LOUD")


def test_configuring_again_writes_no_line_twice(stream: io.StringIO) -> None:
    logs.configure("WARNING", io.StringIO())
    logging.getLogger("easel.x").warning("once")
    assert len(lines(stream)) == 1

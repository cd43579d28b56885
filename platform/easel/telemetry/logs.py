"""Log lines: one JSON object an event, on stderr, with the request that it is about.

Owns: what a line looks like, and the handler of the logger `easel`, under which all of Easel logs. Refuses to know:
who says what. Fields are those of `easel.telemetry.names.LOG_FIELDS`.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TextIO

from easel.telemetry.tracing import trace_id

ROOT = "easel"

_ABOUT: ContextVar[Mapping[str, str]] = ContextVar("easel-log-about", default={})  # noqa: B039  # never written to

_TRACE = "traceparent"


def said(**fields: object) -> dict[str, dict[str, object]]:
    """What to pass as `extra`: fields of the line. Those that are None are left out."""
    return {"fields": {name: value for name, value in fields.items() if value is not None}}


@contextmanager
def about(traceparent: str | None = None, **fields: str | None) -> Iterator[None]:
    """Whatever is logged inside, in tasks that begin there too, belongs to that trace and has these fields."""
    told = {name: value for name, value in fields.items() if value is not None}
    if traceparent is not None:
        told[_TRACE] = traceparent
    token = _ABOUT.set({**_ABOUT.get(), **told})
    try:
        yield
    finally:
        _ABOUT.reset(token)


def current_trace() -> str | None:
    """The traceparent of what is being logged about."""
    return _ABOUT.get().get(_TRACE)


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """A record as the fields of a line, in order."""
    known = {name: value for name, value in _ABOUT.get().items() if name != _TRACE}
    trace = trace_id(current_trace())
    fields: dict[str, Any] = {
        "ts": round(record.created, 3),
        "level": record.levelname,
        "event": record.getMessage(),
        "logger": record.name,
        **known,
        **({} if trace is None else {"trace_id": trace}),
        **getattr(record, "fields", {}),
    }
    if record.exc_info and record.exc_info[1] is not None:
        error = record.exc_info[1]
        fields.setdefault("error", f"{type(error).__name__}: {error}")
        fields["traceback"] = logging.Formatter().formatException(record.exc_info)
    return fields


class JsonLines(logging.Formatter):
    """See the module. What JSON has no word for is written as its text."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, without its end."""
        return json.dumps(fields_of(record), default=str)


class _Ours(logging.StreamHandler[TextIO]):
    """So that it is found again."""


def configure(level: str, stream: TextIO | None = None) -> None:
    """Have everything that Easel logs in this process written as JSON lines, from `level` on. Again: only the level
    changes. `stream`: instead of the process's own stderr, whatever `sys.stderr` was replaced by."""
    logger = logging.getLogger(ROOT)
    set_level(level)
    if any(isinstance(handler, _Ours) for handler in logger.handlers):
        return
    handler = _Ours(stream or sys.__stderr__)
    handler.setFormatter(JsonLines())
    logger.addHandler(handler)
    logger.propagate = False


def set_level(level: str) -> None:
    """From now on. Raises `ValueError` for what is no level."""
    if level not in LEVELS:
        raise ValueError(f"log_level: {level!r} is none of {', '.join(LEVELS)}")
    logging.getLogger(ROOT).setLevel(level)


LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")

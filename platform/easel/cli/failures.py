"""How a command ends when it cannot go on: one message, and an exit code that scripts can tell apart."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import typer

from easel.errors import ConfigurationError, EaselError

FAILED, WRONG = 1, 2
"""Failed while running; the configuration or the machine cannot do it."""


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Turns our errors into one message and an exit code. Anything else is a bug and keeps its traceback."""
    try:
        yield
    except ConfigurationError as error:
        typer.echo(f"easel: {error.message}", err=True)
        raise typer.Exit(WRONG) from None
    except EaselError as error:
        typer.echo(f"easel: {error.message}", err=True)
        raise typer.Exit(FAILED) from None

"""What every engine asks of the limits that it is given while it runs."""

from __future__ import annotations

from dataclasses import fields

from easel.errors import InvalidRequest
from easel.protocol import EngineLimits


def ensure_possible(limits: EngineLimits) -> None:
    """Raises `InvalidRequest` for the first that is below 1."""
    for field in fields(limits):
        value = getattr(limits, field.name)
        if value is not None and value < 1:
            raise InvalidRequest(f"{field.name}: {value} is below 1", param=field.name)

"""The `easel` object of a request: what OpenAI's API has no words for.

Owns: names, types and bounds of Easel's own parameters, and the base that all schemas share.
Refuses to know: OpenAI's parameters (`easel.api.schemas`), what a model or an engine can do (`easel.api.requests`).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Body(BaseModel):
    """The base of all: strict, unknown fields refused."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class EaselOptions(Body):
    """What OpenAI's API has no words for."""

    deadline_ms: Annotated[int, Field(ge=1)] | None = None
    """Milliseconds from now by which the best answer so far is committed; `finish_reason` is then `length`. A request
    is refused only where not one denoising step a canvas fits."""
    queue_timeout_ms: Annotated[int, Field(ge=0)] | None = None
    """Milliseconds after which the request leaves the queue with 503, if it was not started by then."""
    priority: Annotated[int, Field(ge=-10, le=10)] | None = None
    """Among your own requests: each level is worth some seconds of earlier arrival. 0 by default."""

"""The `easel` object of a request: what OpenAI's API has no words for.

Owns: names, types and bounds of Easel's own parameters, and the base that all schemas share.
Refuses to know: OpenAI's parameters (`easel.api.schemas`), what this model can do (`easel.api.denoising`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from easel.tiers import MOST_BOUND, MOST_CONFIDENCE, MOST_STEPS

INT64 = 2**63
"""Whole numbers are below it: JSON has longer ones, and neither times nor engines can do anything with those."""

AtLeastOne = Annotated[int, Field(ge=1, lt=INT64)]


class Body(BaseModel):
    """The base of all: strict, unknown fields refused."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class EaselOptions(Body):
    """What OpenAI's API has no words for."""

    deadline_ms: AtLeastOne | None = None
    """Milliseconds from now by which the best answer so far is committed. `finish_reason` is then `length`, unless the
    canvas that was committed holds the answer's end. A request is refused only where not one denoising step a canvas
    fits."""
    queue_timeout_ms: Annotated[int, Field(ge=0, lt=INT64)] | None = None
    """Milliseconds after which the request leaves the queue with 503, if it was not started by then. 0: it starts at
    once or not at all."""
    priority: Annotated[int, Field(ge=-10, le=10)] | None = None
    """Among your own requests: each level is worth some seconds of earlier arrival. 0 by default."""
    tier: str | None = None
    """Name of a set of denoising limits, such as `fast`, `balanced` or `quality`: `/v1/models` lists those that there
    are. What is given beside it wins over the tier's."""
    max_denoising_steps: Annotated[int, Field(ge=1, le=MOST_STEPS)] | None = None
    """Most denoising steps of one canvas, up to the number that `/v1/models` tells. The temperature falls to its end
    over so many."""
    entropy_bound: Annotated[float, Field(ge=0, le=MOST_BOUND)] | None = None
    """Nats. At each step the lowest-entropy positions are accepted while the entropy of those before them stays within
    it."""
    stability: Annotated[int, Field(ge=0, le=MOST_STEPS)] | None = None
    """How many preceding canvases must equal the present one before it is committed."""
    confidence: Annotated[float, Field(ge=0, le=MOST_CONFIDENCE)] | None = None
    """Nats. Mean entropy below which a stable canvas is committed. 0: never, so that each canvas takes all its
    steps."""
    stop_scope: Literal["canvas", "reachable"] | None = None
    """Which positions decide that a canvas is done: all of it, or those that can still be part of the answer."""
    canvas_length: AtLeastOne | None = None
    """Positions in a canvas: only the checkpoint's own number, which `/v1/models` tells."""

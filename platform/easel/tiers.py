"""A tier: a named set of denoising limits, as settings define it and a request asks for it by name.

Owns: the fields of a tier with their bounds, and the tiers that there are unless settings name others. Refuses to know:
requests, checkpoints, OpenAI's words for how a call is processed (they may be no tier's name).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

MOST_STEPS = 1024
"""Denoising steps of a canvas that anything may ask for."""
MOST_BOUND = 10_000.0
"""Nats. The most that 256 positions of a vocabulary of 262,144 can have is 3,200."""
MOST_CONFIDENCE = 100.0
"""Nats."""

OPENAI_TIERS = ("auto", "default", "flex", "priority", "scale")
"""What `service_tier` may be in OpenAI's API."""


class Tier(BaseModel):
    """Limits of a tier. What is left out is as the checkpoint says. `fast`, `balanced` and `quality` are there unless
    others are given: what they are, do and cost is in docs/tiers.md."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    max_denoising_steps: int | None = Field(None, ge=1, le=MOST_STEPS)
    """Most denoising steps of one canvas. The temperature falls to its end over so many. Restart."""
    entropy_bound: float | None = Field(None, ge=0.0, le=MOST_BOUND)
    """Nats. At each step the lowest-entropy positions are accepted while the entropy of those before them stays within
    it: more is faster and worse. Restart."""
    stability: int | None = Field(None, ge=0, le=MOST_STEPS)
    """How many preceding argmax canvases must equal the present one before it is committed. Restart."""
    confidence: float | None = Field(None, ge=0.0, le=MOST_CONFIDENCE)
    """Nats. Mean entropy below which a stable canvas has converged. Restart."""
    stop_scope: Literal["canvas", "reachable"] | None = None
    """Positions that decide whether a canvas has converged: all, or those that can still be part of the answer.
    Restart."""

    @property
    def limits(self) -> dict[str, int | float | str]:
        """What it sets, by name."""
        return self.model_dump(exclude_none=True)


DEFAULT_TIER = "balanced"
DEFAULT_TIERS: Mapping[str, Tier] = MappingProxyType(
    {
        "fast": Tier(max_denoising_steps=16, stability=0, stop_scope="reachable"),
        "balanced": Tier(),
        "quality": Tier(entropy_bound=0.05, stability=2),
    }
)
"""See docs/tiers.md for how they were chosen."""

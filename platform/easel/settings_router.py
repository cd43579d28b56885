"""The `router` part of `easel.settings`: who is admitted, when, and where it goes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from easel.settings_base import Name, Settings


class RouterSettings(Settings):
    """Who is admitted, when, and where it goes. Work is counted in units: 256 rows once through the model, so a
    denoising step of a 256-position canvas is one. Bounds are those of the whole service; each ingress takes its
    part."""

    max_queued_work: float = Field(20_000.0, gt=0.0)
    """Most work that waits for a seat, in units. Beyond it requests get 503 and a Retry-After, but for tenants that
    have less than a fair part of the queue: with them it may come to twice that. 20,000 is about 700 canvases.
    Restart."""
    max_queued_requests: int = Field(2_000, ge=1, le=1_000_000)
    """Most requests that wait for a seat. Restart."""
    tenant_queue_share: float = Field(0.5, gt=0.0, le=1.0)
    """Part of both bounds that one tenant may fill. Beyond it that tenant gets 429, the others nothing of it. 1: all of
    it. Restart."""
    tier_queue_shares: dict[Name, Annotated[float, Field(gt=0.0, le=1.0)]] = Field(default_factory=dict)
    """Part of both bounds that requests of a tier may fill, by tier; 1 for a tier that is not named. Restart."""
    queue_timeout_s: float = Field(30.0, gt=0.0, le=86_400.0)
    """Seconds after which a request that asks for nothing else leaves the queue with 503. Restart."""
    priority_s: float = Field(10.0, ge=0.0, le=3600.0)
    """Seconds of earlier arrival that one level of priority is worth, among the requests of one tenant. So what has low
    priority waits longer and not for ever. Restart."""
    short_work: float = Field(12.0, ge=0.0)
    """Requests of at most so much expected work, in units, are short: some seats are theirs while there are any.
    Restart."""
    short_seats: float = Field(0.125, ge=0.0, le=0.5)
    """Part of the seats that only short work takes, while short work keeps coming. With two seats or more at least
    one. 0: none. Restart."""
    surplus_requests: int = Field(1, ge=0, le=64)
    """Requests handed to each replica beyond its slots, so that a slot that falls free is taken at the next step and
    not a round trip later. Keep `deployments.engine.max_ongoing_requests` at slots plus this or more. Restart."""
    choices_of_two_above: int = Field(16, ge=1, le=4096)
    """With more replicas than this, two taken at random and those with the prefix are compared, so that many ingresses
    with the same statistics do not all choose the same. Restart."""

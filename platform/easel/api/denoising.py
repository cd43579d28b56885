"""How a call is denoised: its tier, what it asks for beside that, and OpenAI's `service_tier`.

Owns: which of them wins, what this model can do of it, and what the answer says was used. Refuses to know: everything
else in a request, and how an engine denoises.

OpenAI's words are about how soon a call is served, ours about how much denoising its answer gets. So `flex` and
`priority` keep the default tier, and only change the place among the caller's own requests.
"""

from __future__ import annotations

from dataclasses import dataclass

from easel.api.easel_options import EaselOptions
from easel.api.model_card import ModelCard
from easel.errors import InvalidRequest
from easel.protocol import Denoising
from easel.tiers import OPENAI_TIERS, Tier

FLEX_PRIORITY = -5
"""Of `service_tier` `flex`: behind the caller's other requests."""
ANY_PRIORITY = 10
"""What may be asked for where there are no keys."""
MOST_PRIORITY = 5
"""Of `service_tier` `priority`, where the key allows as much."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How one call is to be done."""

    tier: str
    """Name of the tier."""
    denoising: Denoising
    priority: int
    service_tier: str
    """What the answer says: a tier's name where one was asked for by name, otherwise a word of OpenAI's."""


def manner(
    card: ModelCard, options: EaselOptions, service_tier: str | None, deadline_at: float, max_priority: int
) -> Manner:
    """`deadline_at` in Unix seconds; `max_priority`: what the caller's key allows.

    Raises `InvalidRequest` that names the parameter, and what it may be.
    """
    if service_tier is not None and service_tier not in OPENAI_TIERS and service_tier not in card.tiers:
        known = ", ".join(f"'{name}'" for name in (*OPENAI_TIERS, *card.tiers))
        raise InvalidRequest(f"Invalid value: '{service_tier[:64]}'. Supported values are: {known}.", "service_tier")
    named = service_tier if service_tier in card.tiers else None
    if options.tier is not None:
        if options.tier not in card.tiers:
            known = ", ".join(f"'{name}'" for name in card.tiers)
            raise InvalidRequest(f"Invalid value: '{options.tier[:64]}'. Supported values are: {known}.", "easel.tier")
        if named not in (None, options.tier):
            raise InvalidRequest(
                f"Setting 'service_tier' to '{named}' and 'easel.tier' to '{options.tier}' is not possible: leave one "
                "of them out.",
                "easel.tier",
            )
        named = options.tier
    priority, said = _priority(service_tier, options.priority, max_priority)
    tier = named or card.default_tier
    return Manner(tier, _denoising(card, options, card.tiers[tier], deadline_at), priority, named or said)


def _priority(service_tier: str | None, wanted: int | None, max_priority: int) -> tuple[int, str]:
    """The place among the caller's own, and OpenAI's word for what it is."""
    usual = {"flex": FLEX_PRIORITY, "priority": MOST_PRIORITY}.get(service_tier or "", 0)
    given = min(usual, max_priority) if wanted is None else wanted
    if service_tier == "flex":
        return given, "flex"
    return given, "priority" if service_tier == "priority" and given > 0 else "default"


def _denoising(card: ModelCard, options: EaselOptions, tier: Tier, deadline_at: float) -> Denoising:
    """The request's own limits, then the tier's; None where both leave it to the checkpoint."""
    if options.canvas_length not in (None, card.canvas_length):
        raise InvalidRequest(
            f"Invalid 'easel.canvas_length': this model denoises canvases of {card.canvas_length} positions. Supported "
            f"values are: {card.canvas_length}.",
            "easel.canvas_length",
        )
    steps = options.max_denoising_steps
    if steps is not None and steps > card.most_steps:
        raise InvalidRequest(
            f"Invalid 'easel.max_denoising_steps': value above the maximum. Expected a value <= {card.most_steps}, but "
            f"got {steps} instead.",
            "easel.max_denoising_steps",
        )
    return Denoising(
        max_steps=tier.max_denoising_steps if steps is None else steps,
        entropy_bound=tier.entropy_bound if options.entropy_bound is None else options.entropy_bound,
        stability=tier.stability if options.stability is None else options.stability,
        confidence=tier.confidence if options.confidence is None else options.confidence,
        stop_scope=options.stop_scope or tier.stop_scope or "canvas",
        deadline_at=deadline_at,
    )

"""What the engine behind this API cannot honour, refused by name or left out and told: the setting `unsupported`.

Owns: which of a call's parameters count as asked for, and who asked (the client, or the tier that it named). Refuses
to know: what each engine can do (`easel.capabilities`), and parameters that no engine serves (`easel.api.unsupported`).
"""

from __future__ import annotations

from dataclasses import replace

from easel.api.easel_options import EaselOptions
from easel.api.model_card import ModelCard
from easel.api.schemas import GenerationBody
from easel.capabilities import TABLE, asked_as, refusal, supports, unsupported, without
from easel.errors import ConfigurationError, UnsupportedParameter
from easel.protocol import GenerationRequest
from easel.settings import ApiSettings
from easel.tiers import Tier

_LIMITS = {"max_steps": "max_denoising_steps"} | {
    name: name for name in ("entropy_bound", "stability", "confidence", "stop_scope")
}
"""Fields of `Denoising` that a tier may set, and what tiers and requests call them."""


def check_default_tier(card: ModelCard) -> None:
    """Raises `ConfigurationError` where the tier of requests that name none sets what the engine cannot honour: every
    one of them would be refused for something that nobody asked for."""
    for field in _of_tier(card.tiers[card.default_tier]):
        if not TABLE[field][card.engine].works:
            raise ConfigurationError(
                f"tier {card.default_tier}, the default, sets {_LIMITS[field]}, which the {card.engine} engine does "
                f"not support: {TABLE[field][card.engine].words}",
                "default_tier",
            )


def fitted(
    request: GenerationRequest, body: GenerationBody, card: ModelCard, settings: ApiSettings
) -> tuple[GenerationRequest, tuple[str, ...]]:
    """`request` as the engine can take it, and the parameters that were left out for that, as clients call them.

    Raises `UnsupportedParameter` for the first of them where `settings.unsupported` is `refuse`.
    """
    fields = unsupported(request, card.engine)
    if "seed" not in supports(card.engine):  # one that was made up for the client is nothing it asked for
        fields = tuple(field for field in fields if field != "seed")
        request = replace(request, sampling=replace(request.sampling, seed=0))
        if body.seed is not None:
            fields = ("seed", *fields)
    if fields and settings.unsupported == "refuse":
        raise _refusal(fields[0], request.tier, body, card)
    return without(request, fields), tuple(asked_as(field) for field in fields)


def _refusal(field: str, tier: str, body: GenerationBody, card: ModelCard) -> UnsupportedParameter:
    options = body.easel or EaselOptions()
    if field not in _LIMITS or getattr(options, _LIMITS[field]) is not None:
        return refusal(card.engine, field)
    # The tier set it: the client finds the tier in its request, not the limit.
    error = refusal(card.engine, field, "service_tier" if options.tier is None else "easel.tier")
    error.message = f"Tier '{tier}' sets '{asked_as(field)}'. {error.message}"
    return error


def _of_tier(tier: Tier) -> tuple[str, ...]:
    """The fields of `Denoising` that it sets to anything but their default."""
    given = tier.limits
    return tuple(
        field for field, name in _LIMITS.items() if name in given and (field, given[name]) != ("stop_scope", "canvas")
    )

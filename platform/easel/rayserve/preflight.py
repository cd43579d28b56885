"""Reads what replicas will read, before anything starts: a checkpoint that cannot be served is said in a second.

Owns: which of the checks that replicas make anyway can be made early and cheaply. Refuses to know: Ray, weights.
"""

from __future__ import annotations

from easel.api.model_card import read_model_card
from easel.api.prompt import read_prompt_encoder
from easel.settings import ServeSettings


def check_model(settings: ServeSettings) -> None:
    """Raises `ConfigurationError` where an ingress replica would: a small file that is missing or wrong. Weights are
    left to the engine's replica: reading them is what takes long."""
    app = settings.app
    card = read_model_card(app.model_key, app.model)
    read_prompt_encoder(card, app.model.folder)

"""Settings that an engine has no use for are refused, not ignored.

Owns: the refusal. Refuses to know: which settings those are; each engine says.
"""

from __future__ import annotations

from collections.abc import Mapping

from easel.errors import ConfigurationError
from easel.settings import EngineSettings


def refuse_unused(settings: EngineSettings, engine: str, unused: Mapping[str, str]) -> None:
    """Raises `ConfigurationError` for a setting of `unused` that is not at its default; the values say why."""
    for name, why in unused.items():
        if getattr(settings, name) != EngineSettings.model_fields[name].default:
            raise ConfigurationError(f"{name} means nothing to the {engine} engine: {why}", name)

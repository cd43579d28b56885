"""What the edge knows of a checkpoint: its names, limits and control tokens. Read once, from small files.

Owns: config.json and generation_config.json as far as HTTP is concerned, and the fingerprint that answers carry.
Refuses to know: weights (it reads a few of their bytes for the fingerprint), text, requests.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from easel import __version__
from easel.capabilities import EngineKind
from easel.errors import ConfigurationError
from easel.settings import ModelSettings
from easel.tiers import DEFAULT_TIER, DEFAULT_TIERS, Tier

SAMPLE_BYTES = 64 * 1024
"""Read at the start, in the middle and at the end of each weight file: training again changes them, and hashing 19 GB
at every start would take longer than loading them."""


REFERENCE = Tier(max_denoising_steps=48, entropy_bound=0.1, stability=1, confidence=0.005, stop_scope="canvas")
"""What holds where a checkpoint says nothing: as the reference implementation decodes."""


StepBound = Callable[[], int | None]
"""The bound on denoising steps that is in force where canvases are decoded: it changes live. None: none is known."""


def no_step_bound() -> int | None:
    """Of an edge that nobody tells."""
    return None


@dataclass(frozen=True, slots=True)
class ModelCard:
    """One served model."""

    key: str
    """In the settings' map of models: what `GenerationRequest.model` holds."""
    names: tuple[str, ...]
    """What clients may call it. The first is what answers say."""
    created: int
    """Unix time of the checkpoint."""
    fingerprint: str
    """`system_fingerprint`: the same for the same Easel and the same checkpoint."""
    vocab_size: int
    context_tokens: int
    """Most tokens of prompt and answer together: the smaller of the checkpoint's limit and the settings'."""
    canvas_length: int
    bos: int | None
    eos: frozenset[int]
    tiers: Mapping[str, Tier] = field(default_factory=lambda: DEFAULT_TIERS)
    default_tier: str = DEFAULT_TIER
    own: Tier = REFERENCE
    """How the checkpoint itself wants to be denoised: every limit that a tier may set."""
    most_steps: int = 48
    """Denoising steps of a canvas that a request may ask for: the settings' bound, otherwise the checkpoint's own
    number or that of the tier with the most."""
    engine: EngineKind = "native"
    """What decodes: it may not be able to do all that a request asks for."""

    @property
    def name(self) -> str:
        """The name that answers carry."""
        return self.names[0]

    def bounded(self, steps: int | None) -> ModelCard:
        """As it is while engines take no more than so many denoising steps a canvas. None: as many as it says."""
        return self if steps is None or steps >= self.most_steps else replace(self, most_steps=steps)

    def limits(self, tier: str) -> dict[str, int | float | str]:
        """All that holds for requests of that tier, by name."""
        found = self.own.limits | self.tiers[tier].limits
        return found | {"max_denoising_steps": min(int(found["max_denoising_steps"]), self.most_steps)}


def read_model_card(key: str, settings: ModelSettings) -> ModelCard:
    """The card of the checkpoint that the settings name.

    Raises:
        ConfigurationError: a file is missing or not JSON, or a field that the edge needs is missing or of a wrong type.
    """
    folder = settings.folder
    config = _read_json(folder / "config.json")
    generation = _read_json(folder / "generation_config.json")
    text = config.get("text_config", config)
    if not isinstance(text, dict):
        raise ConfigurationError(f"{folder / 'config.json'}: text_config is not an object", "text_config")
    limits = [settings.engine.context_tokens]
    if "max_position_embeddings" in text:
        limits.append(_whole(text, "max_position_embeddings", folder / "config.json"))
    eos = generation.get("eos_token_id")
    eos_ids: list[Any] = eos if isinstance(eos, list) else [eos]
    if not eos_ids or not all(_is_token_id(token) for token in eos_ids):
        raise ConfigurationError(f"{folder / 'generation_config.json'}: eos_token_id is {eos!r}", "eos_token_id")
    bos = generation.get("bos_token_id", text.get("bos_token_id"))
    if bos is not None and not _is_token_id(bos):
        raise ConfigurationError(f"{folder / 'generation_config.json'}: bos_token_id is {bos!r}", "bos_token_id")
    own = _own_limits(generation, folder / "generation_config.json")
    return ModelCard(
        key=key,
        names=settings.names,
        created=int((folder / "config.json").stat().st_mtime),
        fingerprint=f"easel-{__version__}-{_digest(folder)}",
        vocab_size=_whole(text, "vocab_size", folder / "config.json"),
        context_tokens=min(limits),
        canvas_length=_whole(config, "canvas_length", folder / "config.json"),
        bos=bos,
        eos=frozenset(eos_ids),
        tiers=settings.tiers,
        default_tier=settings.default_tier,
        own=own,
        most_steps=settings.engine.max_denoising_steps
        or max(tier.max_denoising_steps or 1 for tier in (own, *settings.tiers.values())),
        engine=settings.engine.kind,
    )


def _own_limits(generation: dict[str, Any], path: Path) -> Tier:
    """The limits in a generation config. What is null or missing is as in the reference."""
    sampler = generation.get("sampler_config")
    given = {
        "max_denoising_steps": generation.get("max_denoising_steps"),
        "entropy_bound": sampler.get("entropy_bound") if isinstance(sampler, dict) else None,
        "stability": generation.get("stability_threshold"),
        "confidence": generation.get("confidence_threshold"),
    }
    spelled = {
        "entropy_bound": "sampler_config.entropy_bound",
        "stability": "stability_threshold",
        "confidence": "confidence_threshold",
    }
    try:
        return Tier.model_validate(
            REFERENCE.limits | {name: value for name, value in given.items() if value is not None}
        )
    except ValidationError as error:
        problem = error.errors()[0]
        name = str(problem["loc"][0])
        field = spelled.get(name, name)
        raise ConfigurationError(f"{path}: {field}: {problem['msg']}", field) from None


def _is_token_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _whole(data: dict[str, Any], name: str, path: Path) -> int:
    value = data.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{path}: {name} is {value!r}, a whole number above 0 is needed", name)
    return value


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}", "checkpoint") from None
    except ValueError as error:
        raise ConfigurationError(f"{path}: not JSON: {error}", "checkpoint") from None
    if not isinstance(data, dict):
        raise ConfigurationError(f"{path}: not a JSON object", "checkpoint")
    return data


def _digest(folder: Path) -> str:
    """12 hex digits over what decides answers: the small files whole, of the weights a sample."""
    digest = blake2b(digest_size=6)
    for path in sorted(p for p in folder.iterdir() if p.suffix in {".json", ".jinja", ".safetensors"}):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}:".encode())
        with path.open("rb") as file:
            if path.suffix != ".safetensors" or size <= 3 * SAMPLE_BYTES:
                while block := file.read(1 << 20):
                    digest.update(block)
                continue
            for start in (0, size // 2, size - SAMPLE_BYTES):
                file.seek(start)
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()

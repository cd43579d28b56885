"""The card is read from small files, and whatever is wrong in them is named before anything is served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from easel.api.app import create_app
from easel.api.model_card import SAMPLE_BYTES, read_model_card
from easel.errors import ConfigurationError
from easel.settings import AppSettings, ModelSettings
from tests.unit.api.edge import write_checkpoint


def settings(folder: Path, **engine: Any) -> ModelSettings:
    return ModelSettings.model_validate({"checkpoint": str(folder), "names": ("a", "b"), "engine": engine})


def test_reads_limits_names_and_control_tokens(tmp_path: Path) -> None:
    card = read_model_card("key", settings(write_checkpoint(tmp_path)))
    assert (card.key, card.name, card.names) == ("key", "a", ("a", "b"))
    assert (card.vocab_size, card.canvas_length, card.bos, card.eos) == (384, 16, 2, frozenset({1, 106, 50}))


@pytest.mark.parametrize(("setting", "limit"), [(100, 100), (4096, 512)])
def test_the_smaller_context_limit_counts(tmp_path: Path, setting: int, limit: int) -> None:
    folder = write_checkpoint(tmp_path)
    assert read_model_card("key", settings(folder, context_tokens=setting)).context_tokens == limit


def test_the_fingerprint_changes_with_what_decides_answers(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    (folder / "README.md").write_text("a")
    weights = bytearray(10 * SAMPLE_BYTES)
    seen = set()
    for change in ("none", "weights", "template", "none"):
        if change == "weights":
            weights[5 * SAMPLE_BYTES + 1] = 1
        if change == "template":
            (folder / "chat_template.jinja").write_text("{{ bos_token }}")
        (folder / "model.safetensors").write_bytes(weights)
        (folder / "README.md").write_text(change)
        seen.add(read_model_card("key", settings(folder)).fingerprint)
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("name", "changes", "field"),
    [
        ("config.json", {"canvas_length": 0}, "canvas_length"),
        ("config.json", {"canvas_length": "16"}, "canvas_length"),
        ("config.json", {"text_config": {}}, "vocab_size"),
        ("config.json", {"text_config": 3}, "text_config"),
        ("generation_config.json", {"eos_token_id": None}, "eos_token_id"),
        ("generation_config.json", {"eos_token_id": []}, "eos_token_id"),
        ("generation_config.json", {"bos_token_id": -1}, "bos_token_id"),
        ("generation_config.json", {"max_denoising_steps": 0}, "max_denoising_steps"),
        ("generation_config.json", {"stability_threshold": -1}, "stability_threshold"),
        ("generation_config.json", {"confidence_threshold": "high"}, "confidence_threshold"),
        ("generation_config.json", {"sampler_config": {"entropy_bound": -1}}, "sampler_config.entropy_bound"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, name: str, changes: dict[str, Any], field: str) -> None:
    path = write_checkpoint(tmp_path) / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ConfigurationError, match=name.replace(".", r"\.")) as caught:
        read_model_card("key", settings(tmp_path))
    assert caught.value.param == field


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: str | None) -> None:
    path = write_checkpoint(tmp_path) / "generation_config.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigurationError, match=r"generation_config\.json"):
        create_app(AppSettings(models={"default": settings(tmp_path)}), backend=None)  # type: ignore[arg-type]

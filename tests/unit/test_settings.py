"""Settings: typos are named, nothing is read from the environment, every field says what a change of it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from easel.errors import ConfigurationError
from easel.settings import AppSettings, LocalSettings, ModelSettings, ServeSettings, load, parse


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"app": {"api": {"max_bodybytes": 1}}}, ["app.api.max_bodybytes", "no such setting", "max_body_bytes"]),
        ({"app": {"models": {"a": {"engine": {"slotz": 1}}}}}, ["app.models.a.engine.slotz", "slots"]),
        (
            {"app": {"models": {"a": {"tiers": {"b": {"stabilty": 1}}}}}},
            ["a.tiers.b.stabilty", "did you mean stability?"],
        ),
        ({"app": {"models": {"a": {"default_tier": "x"}}}}, ["default_tier (x)", "fast, balanced, quality"]),
        ({"app": {"models": {"a": {"tiers": {"x": {}}}}}}, ["default_tier (balanced)", "tiers: x"]),
        ({"app": {"models": {"a": {"tiers": {}}}}}, ["app.models.a.tiers", "at least 1"]),
        ({"app": {"models": {"a": {"tiers": {"flex": {}}, "default_tier": "flex"}}}}, ["flex", "service_tier"]),
        ({"app": {"router": {"tier_queue_shares": {"slow": 0.5}}}}, ["tier_queue_shares: slow", "fast, balanced"]),
        ({"deployments": {"engine": {"autoscaling": {"max_replica": 2}}}}, ["did you mean max_replicas?"]),
        ({"ap": {}}, ["ap:", "did you mean app?"]),
        ({"local": {"port": 70000}}, ["local.port", "65535"]),
        ({"local": {"port": "x"}}, ["local.port", "integer"]),
        ({"app": {"models": {}}}, ["app.models", "exactly one"]),
        ({"app": {"models": {"a": {}, "b": {}}}}, ["app.models", "exactly one"]),
        ({"app": {"models": {"a": {"names": ["x", "x"]}}}}, ["app.models.a.names", "once"]),
        ({"deployments": {"engine": {"replicas": 0}}}, ["deployments.engine.replicas"]),
        ({"app": {"api": {"request_timeout_s": 900}}}, ["graceful_shutdown_timeout_s", "request_timeout_s"]),
        ([1], ["whole file"]),
    ],
)
def test_names_the_wrong_field(data: Any, words: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(data)
    for word in words:
        assert word in caught.value.message


def test_reports_every_wrong_field_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse({"local": {"port": -1, "hots": "x"}})
    assert "local.port" in caught.value.message
    assert "local.hots: no such setting; did you mean host?" in caught.value.message


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "easel.yaml").write_text("")
    assert load(tmp_path / "easel.yaml") == ServeSettings()


def test_file_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"missing\.yaml: No such file"):
        load(tmp_path / "missing.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigurationError, match=r"bad\.yaml: not YAML"):
        load(tmp_path / "bad.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match=r"binary\.yaml: not UTF-8"):
        load(tmp_path / "binary.yaml")


@pytest.mark.parametrize("text", ["a: 2001-99-99", "a: 0b_", "a: " + "[" * 5000])
def test_what_the_yaml_library_stumbles_over_is_not_yaml(tmp_path: Path, text: str) -> None:
    """No such date, a number without digits, brackets without end: none is an error of the library's own."""
    (tmp_path / "odd.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=r"odd\.yaml: not YAML"):
        load(tmp_path / "odd.yaml")


def test_the_environment_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PORT", "LOCAL__PORT", "local", "EASEL_LOCAL__PORT", "slots"):
        monkeypatch.setenv(name, "1234")
    assert parse({}) == ServeSettings()


def test_is_frozen() -> None:
    with pytest.raises(ValidationError):
        LocalSettings().port = 1


def test_survives_the_trip_through_plain_data() -> None:
    settings = ServeSettings()
    assert parse(settings.model_dump(mode="json")) == settings


def test_a_checkpoint_that_is_not_there_is_an_error_that_lists_what_is(tmp_path: Path) -> None:
    for checkpoint in (str(tmp_path), "embedded:nonesuch", "embedded:../api"):
        with pytest.raises(ConfigurationError) as caught:
            _ = ModelSettings(checkpoint=checkpoint).folder
        assert caught.value.param == "checkpoint"


def _fields(model: type[BaseModel], path: str = "") -> list[tuple[str, str]]:
    found = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found += _fields(inner, f"{path}{name}.")
        elif name == "models":
            found += _fields(ModelSettings, f"{path}{name}.*.")
        else:
            found.append((path + name, field.description or ""))
    return found


@pytest.mark.parametrize(("path", "description"), _fields(ServeSettings))
def test_every_setting_is_described_and_says_what_a_change_costs(path: str, description: str) -> None:
    assert "Restart" in description or "Live" in description, path


def test_the_one_model_is_reachable_by_its_key() -> None:
    app = AppSettings(models={"sudoku": ModelSettings(names=("a", "b"))})
    assert (app.model_key, app.model.names) == ("sudoku", ("a", "b"))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_on_loopback_no_key_is_needed(host: str) -> None:
    assert parse({"local": {"host": host}}).local.host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "example.org"])
def test_beyond_loopback_keys_or_a_word_are_needed(host: str) -> None:
    with pytest.raises(ConfigurationError, match=r"app\.api\.keys_file"):
        parse({"local": {"host": host}})
    for api in ({"keys_file": "/etc/easel/keys.yaml"}, {"open_to_all": True}):
        parse({"app": {"api": api}, "local": {"host": host}})


def test_shares_of_tiers_are_parts() -> None:
    assert parse({"app": {"router": {"tier_queue_shares": {"fast": 0.5}}}}).app.router.tier_queue_shares == {
        "fast": 0.5
    }
    with pytest.raises(ConfigurationError, match="tier_queue_shares"):
        parse({"app": {"router": {"tier_queue_shares": {"fast": 1.5}}}})

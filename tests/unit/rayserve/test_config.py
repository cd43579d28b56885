"""What becomes an argument (restart) and what an option (live), held against Ray's own schema and its code version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve._private.deploy_utils import get_app_code_version
from ray.serve.schema import ServeDeploySchema

from easel.errors import ConfigurationError
from easel.protocol import EngineLimits
from easel.rayserve import config
from easel.router.autoscaling import ScalingTargets
from easel.settings import AppSettings, ServeSettings, load, parse

ROOT = Path(__file__).parents[3]


def of(**engine: Any) -> ServeSettings:
    return parse({"app": {"models": {"default": {"engine": engine}}}})


def arguments(settings: ServeSettings) -> Any:
    return config.serve_config(settings)["applications"][0]["args"]


def user_config(settings: ServeSettings) -> Any:
    return config.serve_config(settings)["applications"][0]["deployments"][1]["user_config"]


@pytest.mark.parametrize("name", config.ONLY_LIVE)
def test_a_live_limit_changes_no_argument(name: str) -> None:
    before, after = of(), of(**{name: 32})
    assert arguments(before) == arguments(after)
    assert user_config(before) != user_config(after)
    assert user_config(after)[name] == 32


def test_the_log_level_is_live_in_every_replica_and_no_argument() -> None:
    settings = parse({"app": {"telemetry": {"log_level": "DEBUG", "trace_ratio": 0.5}}})
    assert arguments(settings) == {"telemetry": {"trace_ratio": 0.5}}
    deployments = config.serve_config(settings)["applications"][0]["deployments"]
    assert [deployment["user_config"]["log_level"] for deployment in deployments] == ["DEBUG", "DEBUG"]


def test_what_restarts_is_an_argument() -> None:
    assert arguments(of(context_tokens=512)) == {"models": {"default": {"engine": {"context_tokens": 512}}}}
    assert arguments(of(slots=3)) == {"models": {"default": {"engine": {"slots": 3}}}}
    assert user_config(of(slots=3))["slots"] == 3


def test_arguments_read_back_as_the_settings_they_came_from() -> None:
    settings = parse(
        {"app": {"models": {"m": {"names": ["a", "b"], "engine": {"kind": "fake"}}}, "api": {"max_choices": 3}}}
    )
    assert AppSettings.model_validate(arguments(settings)) == settings.app
    assert AppSettings.model_validate(arguments(ServeSettings())) == AppSettings()


def test_live_limits_are_those_of_the_protocol() -> None:
    assert set(config.LIVE_LIMITS) == set(EngineLimits.__dataclass_fields__)


@pytest.mark.parametrize("settings", [ServeSettings(), of(slots=2, max_denoising_steps=4)])
def test_ray_takes_every_key(settings: ServeSettings) -> None:
    """Ray's schema lets unknown keys through without a word, so what it kept is compared with what was given."""
    given = config.serve_config(settings)
    kept = ServeDeploySchema.model_validate(given).model_dump(mode="json", exclude_unset=True)
    for key in ("proxy_location", "http_options"):
        assert kept[key] == given[key]
    application, kept_application = given["applications"][0], kept["applications"][0]
    assert {key: value for key, value in application.items() if key != "deployments"} == {
        key: value for key, value in kept_application.items() if key != "deployments"
    }
    for deployment, kept_deployment in zip(application["deployments"], kept_application["deployments"], strict=True):
        assert deployment.items() <= kept_deployment.items()


def test_the_ingress_never_sheds_in_serves_own_words() -> None:
    ingress = config.serve_config(ServeSettings())["applications"][0]["deployments"][0]
    assert ingress["name"] == "ingress"
    assert ingress["max_queued_requests"] == -1


def test_the_committed_file_is_what_the_settings_make() -> None:
    path = ROOT / "deployments/local/easel.yaml"
    text = (ROOT / "deployments/local/serve.yaml").read_text()
    assert text == config.serve_yaml(load(path), "deployments/local/easel.yaml")
    assert yaml.safe_load(text) == config.serve_config(load(path))


def test_a_file_that_gives_one_field_of_a_deployment_keeps_the_other_defaults() -> None:
    settings = parse({"deployments": {"ingress": {"replicas": 2}, "engine": {"replicas": 3}}})
    assert settings.deployments.ingress.max_ongoing_requests == ServeSettings().deployments.ingress.max_ongoing_requests
    assert settings.deployments.ingress.cpus == 0.5
    assert settings.deployments.engine.max_ongoing_requests == ServeSettings().deployments.engine.max_ongoing_requests


def autoscaled(**autoscaling: Any) -> Any:
    made = config.serve_config(parse({"deployments": {"engine": {"autoscaling": autoscaling}}}))
    ServeDeploySchema.model_validate(made)
    return made


@pytest.mark.parametrize(
    "change", [{"min_replicas": 0}, {"max_replicas": 9}, {"target_s": 9.0}, {"mode": "queue_depth"}, {"up_step": 2}]
)
def test_bounds_and_targets_of_autoscaling_restart_nothing(change: dict[str, Any]) -> None:
    """By Ray's own rule of what makes another version of the code."""
    before, after = autoscaled(max_replicas=3), autoscaled(**{"max_replicas": 3} | change)
    assert before != after
    versions = {
        get_app_code_version(ServeDeploySchema.model_validate(made).applications[0]) for made in (before, after)
    }
    assert len(versions) == 1


def test_the_policy_is_named_wherever_bounds_are() -> None:
    """Serve takes `autoscaling_config` whole: without a policy in it, its own would decide."""
    engine = autoscaled(max_replicas=3)["applications"][0]["deployments"][1]
    assert "num_replicas" not in engine
    assert engine["autoscaling_config"]["policy"]["policy_function"] == config.AUTOSCALING_POLICY


def test_what_the_policy_is_told_are_its_targets() -> None:
    ingress = autoscaled(min_replicas=0, target_s=7.0)["applications"][0]["deployments"][0]
    told = ingress["user_config"]["autoscaling"]
    assert told["scales_to_zero"]
    targets = ScalingTargets(**told["targets"], min_replicas=0, max_replicas=1)
    assert targets.target_s == 7.0
    fields = set(ScalingTargets.__dataclass_fields__)
    assert fields == set(told["targets"]) | {"min_replicas", "max_replicas"}
    assert config.live_targets(None) is None


def test_more_at_least_than_at_most_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"min_replicas \(5\) is above max_replicas \(2\)"):
        autoscaled(min_replicas=5, max_replicas=2)


def test_a_gpu_that_ray_would_hide_is_said() -> None:
    app = {"models": {"default": {"engine": {"device": "cuda"}}}}
    with pytest.raises(ConfigurationError, match=r"engine\.device is cuda and deployments\.engine\.gpus is 0"):
        config.serve_config(parse({"app": app}))
    given = config.serve_config(parse({"app": app, "deployments": {"engine": {"gpus": 1}}}))
    # What replicas are built from says nothing of deployments, so it may not depend on them.
    assert parse({"app": given["applications"][0]["args"]}).app.model.engine.device == "cuda"

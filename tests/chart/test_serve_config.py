"""The chart makes of the `serve` block what Easel itself makes of the same settings."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from easel.rayserve.config import serve_config
from easel.settings import parse
from ops.chart.carried import HOST, PORT, merged, settings_of
from tests.chart.cases import CASES
from tests.chart.helm import OPEN, VERSIONS, render


def differences(values: dict[str, Any], version: str = VERSIONS[0]) -> tuple[Any, Any]:
    """Serve's configuration by the chart and by Easel. Arguments are compared by what they mean: a default may be
    said or not."""
    found, wanted = render(values, version=version).serve, serve_config(settings_of(values), HOST, PORT)
    for config in (found, wanted):
        application = config["applications"][0]
        application["args"] = parse({"app": application["args"]}).app
        application["deployments"].sort(key=lambda deployment: deployment["name"])
    return found, wanted


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", CASES)
def test_is_what_easel_makes_of_it(name: str, version: str) -> None:
    found, wanted = differences(CASES[name], version)
    assert found == wanted


seconds = st.floats(1.0, 500.0).map(lambda value: round(value, 2))
engines = st.fixed_dictionaries(
    {},
    optional={
        "slots": st.integers(1, 1024),
        "context_tokens": st.integers(64, 1_048_576),
        "prefill_tokens_per_step": st.integers(16, 65_536),
        "max_denoising_steps": st.integers(1, 1024),
        "kv_block_tokens": st.sampled_from([16, 32, 64, 128, 256]),
        "device": st.sampled_from(["auto", "cpu", "cuda"]),
        "fake_step_ms": seconds,
    },
)
models = st.fixed_dictionaries(
    {}, optional={"engine": engines, "names": st.just(["a", "b"]), "checkpoint": st.just("embedded:tiny")}
)
scalings = st.fixed_dictionaries(
    {"max_replicas": st.integers(4, 9)},
    optional={"min_replicas": st.integers(0, 4), "target_s": seconds, "mode": st.sampled_from(["work", "queue_depth"])},
)
tiers = {
    "replicas": st.integers(1, 3),
    "max_ongoing_requests": st.integers(1, 100_000),
    "cpus": st.sampled_from([0.5, 2]),
}
serves = st.fixed_dictionaries(
    {},
    optional={
        "app": st.fixed_dictionaries(
            {},
            optional={
                "models": st.dictionaries(st.sampled_from(["default", "gemma"]), models, min_size=1, max_size=1),
                "api": st.fixed_dictionaries(
                    {},
                    optional={
                        "request_timeout_s": seconds,
                        "max_body_bytes": st.integers(1024, 1024**3),
                        "cors_origins": st.just(["https://a.example"]),
                    },
                ),
                "router": st.fixed_dictionaries(
                    {}, optional={"queue_timeout_s": seconds, "tier_queue_shares": st.just({"fast": 0.5})}
                ),
                "playground": st.fixed_dictionaries({"enabled": st.booleans()}),
                "telemetry": st.fixed_dictionaries({"log_level": st.sampled_from(["DEBUG", "INFO", "ERROR"])}),
            },
        ),
        "deployments": st.fixed_dictionaries(
            {},
            optional={
                "ingress": st.fixed_dictionaries({}, optional=tiers),
                "engine": st.fixed_dictionaries({}, optional={**tiers, "autoscaling": scalings}),
            },
        ),
    },
)


@given(serves)
@settings(max_examples=25)
def test_whatever_the_settings(serve: dict[str, Any]) -> None:
    engines = [model.get("engine", {}) for model in serve.get("app", {}).get("models", {}).values()]
    assume(not any(engine.get("device") == "cuda" for engine in engines))  # needs a GPU, which these workers have not
    room = {"workers": {"cpu": {"maxReplicas": 50}}}
    found, wanted = differences(merged(OPEN, {"serve": serve, **room}))
    assert found == wanted


def test_arguments_do_not_repeat_defaults() -> None:
    """An argument that comes or goes restarts replicas, also when it says what holds anyway."""
    said = {"app": {"api": {"heartbeat_s": 15}, "models": {"default": {"engine": {"slots": 8}}}}}
    quiet, spelled = (render(merged(OPEN, {"serve": serve})).serve for serve in ({}, said))
    assert quiet == spelled


def test_live_limits_are_no_arguments() -> None:
    engine = {"prefill_tokens_per_step": 1024, "max_denoising_steps": 12}
    values = merged(OPEN, {"serve": {"app": {"models": {"default": {"engine": engine}}}}})
    application = render(values).serve["applications"][0]
    assert "models" not in application["args"]
    limits = next(item for item in application["deployments"] if item["name"] == "engine")["user_config"]
    assert {name: limits[name] for name in engine} == engine

"""Settings in, Serve's configuration out: what is PUT to Ray's dashboard, or stands in a RayService.

Owns: which setting becomes an argument of the application (a change replaces every replica) and which an option of a
deployment (a change is made in place). Refuses to know: Ray itself, so that a configuration can be rendered and
checked where Ray is not installed.

Serve hashes the import path and the arguments into a code version, and replaces replicas when it changes. So the
engine's live limits travel as the engine deployment's `user_config`, not in the arguments. `slots` is in both: the
arguments size the KV cache at the start, `user_config` may be lowered and raised up to that while replicas run.
"""

from __future__ import annotations

from typing import Any

import yaml

from easel.errors import ConfigurationError
from easel.settings import AppSettings, AutoscalingSettings, DeploymentSettings, EngineSettings, ServeSettings

APPLICATION = "easel"
INGRESS = "ingress"
ENGINE = "engine"
IMPORT_PATH = "easel.rayserve.app:build"

LIVE_LIMITS = ("slots", "prefill_tokens_per_step", "max_denoising_steps")
"""Fields of `EngineSettings` that `Engine.reconfigure` takes: `easel.protocol.EngineLimits` has the same names."""
ONLY_LIVE = ("prefill_tokens_per_step", "max_denoising_steps")
"""Those of them that an engine does not need to know before it starts."""

LOG_LEVEL = "log_level"
"""Of the telemetry's settings: live in every replica, so it is in each deployment's `user_config` and no argument."""

REQUEST_ROUTER = "easel.rayserve.request_router.WorkRequestRouter"
AUTOSCALING_POLICY = "easel.rayserve.autoscaling:WorkPolicy"

STATS_PERIOD_S = 0.5
"""How often the controller asks each engine replica for its statistics and passes them on to every ingress. What was
sent and finished since, an ingress knows by itself."""

KEEP_ALIVE_S = 90
"""How long an idle client connection stays open. Longer than the minute after which cloud load balancers let go, so
that it is never the server that closes a connection just as a request comes in on it."""


def arguments(app: AppSettings) -> dict[str, Any]:
    """The application's `args`: what differs from the defaults, without the limits that are only live."""
    data = app.model_dump()
    for model in data["models"].values():
        for name in ONLY_LIVE:
            del model["engine"][name]
    del data["telemetry"][LOG_LEVEL]
    return AppSettings.model_validate(data).model_dump(mode="json", exclude_defaults=True)


def live_limits(engine: EngineSettings) -> dict[str, int | None]:
    """The engine deployment's `user_config`."""
    return {name: getattr(engine, name) for name in LIVE_LIMITS}


def autoscaling_config(autoscaling: AutoscalingSettings) -> dict[str, Any]:
    """The engine deployment's, complete: Serve replaces what is there as a whole, and a policy that is not named here
    would be Ray's. Delays and factors are neutral because Serve applies its own after the policy's."""
    return {
        "min_replicas": autoscaling.min_replicas,
        "max_replicas": autoscaling.max_replicas,
        "policy": {"policy_function": AUTOSCALING_POLICY},
        "upscale_delay_s": 0.0,
        "downscale_delay_s": 0.0,
        "downscale_to_zero_delay_s": 0.0,
        "upscaling_factor": 1.0,
        "downscaling_factor": 1.0,
    }


def live_targets(autoscaling: AutoscalingSettings | None) -> dict[str, Any] | None:
    """What the ingress tells the policy, through the actor to which it reports: `ScalingTargets` by name, without the
    bounds, which Serve tells it. In the ingress's `user_config`, because Serve restarts replicas when a policy's own
    arguments change. `scales_to_zero` is for the ingress itself."""
    if autoscaling is None:
        return None
    targets = autoscaling.model_dump(exclude={"min_replicas", "max_replicas"})
    return {"targets": targets, "scales_to_zero": autoscaling.min_replicas == 0}


def serve_config(
    settings: ServeSettings, host: str | None = None, port: int | None = None, import_path: str = IMPORT_PATH
) -> dict[str, Any]:
    """Serve's configuration, in the shape of Ray's `ServeDeploySchema`. `host` and `port` are where the proxy listens;
    without them what the settings say. Raises `ConfigurationError` for an engine that would not find its GPU."""
    tiers = settings.deployments
    if settings.app.model.engine.device == "cuda" and tiers.engine.gpus == 0:
        raise ConfigurationError(
            f"app.models.{settings.app.model_key}.engine.device is cuda and deployments.engine.gpus is 0: Ray would "
            "hide every GPU from the replica; set it to 1",
            "deployments.engine.gpus",
        )
    engine = _deployment(ENGINE, tiers.engine)
    level = {LOG_LEVEL: settings.app.telemetry.log_level}
    engine["user_config"] = {**live_limits(settings.app.model.engine), **level}
    engine["request_router_config"] = {
        "request_router_class": REQUEST_ROUTER,
        "request_routing_stats_period_s": STATS_PERIOD_S,
        "request_routing_stats_timeout_s": 10.0,
    }
    if tiers.engine.autoscaling is not None:
        del engine["num_replicas"]
        engine["autoscaling_config"] = autoscaling_config(tiers.engine.autoscaling)
    ingress = _deployment(INGRESS, tiers.ingress)
    ingress["user_config"] = {"autoscaling": live_targets(tiers.engine.autoscaling), **level}
    return {
        "proxy_location": "EveryNode",
        "http_options": {
            "host": settings.local.host if host is None else host,
            "port": settings.local.port if port is None else port,
            "keep_alive_timeout_s": KEEP_ALIVE_S,
        },
        "logging_config": {"log_level": settings.app.telemetry.log_level, "enable_access_log": False},
        "applications": [
            {
                "name": APPLICATION,
                "route_prefix": "/",
                "import_path": import_path,
                "args": arguments(settings.app),
                "deployments": [ingress, engine],
            }
        ],
    }


def serve_yaml(settings: ServeSettings, source: str) -> str:
    """`serve_config` as a file. `source` names what it was made from, for whoever opens it to change something."""
    text: str = yaml.safe_dump(serve_config(settings), sort_keys=False, width=120)
    return f"# Generated from {source} by `make gen`. Change that, not this.\n{text}"


def _deployment(name: str, tier: DeploymentSettings) -> dict[str, Any]:
    return {
        "name": name,
        "num_replicas": tier.replicas,
        "max_ongoing_requests": tier.max_ongoing_requests,
        # Serve would refuse with a body of its own, not OpenAI's, and counts for each handle apart: admission is ours.
        "max_queued_requests": -1,
        "graceful_shutdown_timeout_s": tier.graceful_shutdown_timeout_s,
        "graceful_shutdown_wait_loop_s": 0.5,
        "health_check_period_s": tier.health_check_period_s,
        "health_check_timeout_s": tier.health_check_timeout_s,
        "ray_actor_options": {"num_cpus": tier.cpus, "num_gpus": tier.gpus},
    }

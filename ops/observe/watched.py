"""The local Easel that is watched: everything that has a metric is switched on, and small enough to run short of it.

Owns: its settings and its keys. Refuses to know: what is asked of it and how it is scraped.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from easel.rayserve.config import ENGINE, IMPORT_PATH, INGRESS, arguments
from easel.rayserve.local import Local
from easel.settings import ServeSettings, parse
from tests.integration.checkpoint import write_checkpoint

ROOT = Path(__file__).parents[2]
KEYS = ("first-key-of-a-drill", "second-key-of-a-drill", "third-key-of-a-drill")
TENANTS = ("search", "support", "batch")


def write_keys(folder: Path) -> Path:
    """A key file for `KEYS`, each of a tenant of its own; the last has limits."""
    keys: list[dict[str, Any]] = [
        {"id": f"{tenant}-key", "sha256": hashlib.sha256(key.encode()).hexdigest(), "tenant": tenant, "weight": 3 - i}
        for i, (key, tenant) in enumerate(zip(KEYS, TENANTS, strict=True))
    ]
    keys[-1]["requests_per_minute"] = 20
    file = folder / "keys.yaml"
    file.write_text(yaml.safe_dump({"keys": keys}))
    return file


def native(folder: Path, keys: bool = True) -> ServeSettings:
    """The real engine on the tiny embedded checkpoint, with so few KV blocks that long answers meet their end."""
    engine = {"kind": "native", "slots": 4, "context_tokens": 1024, "kv_tokens": 1536, "threads": 1}
    return parse(
        {
            "app": {
                "models": {"default": {"checkpoint": "embedded:tiny", "engine": engine}},
                "api": {"keys_file": str(write_keys(folder)) if keys else None},
                "router": {"queue_timeout_s": 20},
                "telemetry": {"gpu_hour_price": 2.5},
            },
            "deployments": {
                "engine": {
                    "cpus": 0.1,
                    "max_ongoing_requests": 6,
                    "health_check_period_s": 1.0,
                    "autoscaling": {"min_replicas": 1, "max_replicas": 2, "down_delay_s": 600},
                },
                "ingress": {"cpus": 0.1},
            },
            "local": {"port": 0, "dashboard_port": 0},
        }
    )


def beside(local: Local, folder: Path) -> dict[str, Any]:
    """The session's configuration with a second application at /faulty, around the engine that breaks on demand."""
    config = local.config()
    model = {"checkpoint": str(write_checkpoint(folder / "fake")), "names": ["faulty"], "engine": {"kind": "fake"}}
    args = arguments(parse({"app": {"models": {"default": model}}}).app)
    faulty = {**config["applications"][0], "name": "faulty", "route_prefix": "/faulty", "args": args}
    faulty["import_path"] = "ops.observe.faults:build_impatient"
    faulty["deployments"] = [
        {"name": INGRESS, "ray_actor_options": {"num_cpus": 0}},
        {"name": ENGINE, "ray_actor_options": {"num_cpus": 0}, "health_check_period_s": 0.5},
    ]
    return {**config, "applications": [*config["applications"], faulty]}


def to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextmanager
def serving(
    settings: ServeSettings, import_path: str = IMPORT_PATH, say: Callable[[str], None] = to_stderr
) -> Iterator[Local]:
    """A session that serves; everything it started has ended afterwards."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "platform")])
    local = Local(settings, say)
    local.start(import_path)
    try:
        yield local
    finally:
        local.kill()

"""An engine's statistics as a plain dict and back: how they get from a replica through Serve's controller to ingresses.

Owns: that translation. Refuses to know: what the numbers mean. Plain, because the controller unpickles and compares
what it passes on, and need not have Easel for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from easel.protocol import EngineState, EngineStats, GpuStats, KvPool, StepTimeModel

MOST_PREFIXES = 512
"""The controller sends every replica's statistics to every ingress, twice a second: 5 KB of hashes at most."""

FOR_METRICS = ("counters", "steps", "denoised")


def to_plain(stats: EngineStats) -> dict[str, Any]:
    """What `record_routing_stats` returns."""
    # What is for metrics alone the replica exports itself. Left out first: `asdict` copies all that it finds.
    plain = asdict(replace(stats, counters={}, steps=(), denoised={}))
    plain["state"] = str(stats.state)
    plain["prefix_digest"] = plain["prefix_digest"][:MOST_PREFIXES]
    for name in FOR_METRICS:
        del plain[name]
    return plain


def from_plain(plain: Mapping[str, Any]) -> EngineStats | None:
    """The statistics again; None where there are none yet, or none that this version understands."""
    try:
        return EngineStats(
            **{
                **plain,
                "state": EngineState(plain["state"]),
                "step_time": StepTimeModel(**plain["step_time"]),
                "kv_pools": tuple(KvPool(**pool) for pool in plain["kv_pools"]),
                "prefix_digest": tuple(plain["prefix_digest"]),
                "gpu": None if plain.get("gpu") is None else GpuStats(**plain["gpu"]),
            }
        )
    except (KeyError, TypeError, ValueError):
        return None

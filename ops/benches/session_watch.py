"""What a running local session is seen doing from outside: its processes by tier, their CPU time, replicas' metrics."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families
from serving import Local, processes

from easel.errors import EaselError

TIERS = {
    "ray::ServeReplica:easel:engine": "engine",
    "ray::ServeReplica:easel:ingress": "ingress",
    "ray::ServeController": "serve_controller",
    "ray::DashboardAgent": "agent",
}


def tier_of(process: psutil.Process) -> str:
    """`haproxy`, `ingress`, `engine`, `serve_controller`, `agent` (metrics), or `ray` for all the rest."""
    if process.name() == "haproxy":
        return "haproxy"
    title = (process.cmdline() or [""])[0]
    return next((tier for start, tier in TIERS.items() if title.startswith(start)), "ray")


def members(local: Local, tier: str) -> list[psutil.Process]:
    """Processes of one tier that live."""
    found = []
    for process in processes.members(local.session.mark, local.keeper):
        try:
            if tier_of(process) == tier:
                found.append(process)
        except psutil.Error:
            continue
    return found


CpuSeconds = dict[tuple[str, int], float]


def cpu_seconds(local: Local) -> CpuSeconds:
    """User and system time so far, by tier and pid."""
    found: CpuSeconds = {}
    for process in processes.members(local.session.mark, local.keeper):
        try:
            times = process.cpu_times()
            found[tier_of(process), process.pid] = times.user + times.system
        except psutil.Error:
            continue
    return found


def cores_used(before: CpuSeconds, after: CpuSeconds, seconds: float) -> dict[str, Any]:
    """By tier, over the time between: cores kept busy by all, and by the busiest process."""
    busy: dict[str, list[float]] = {}
    for key, value in after.items():
        busy.setdefault(key[0], []).append((value - before.get(key, 0.0)) / seconds)
    return {
        tier: {"processes": len(each), "cores": round(sum(each), 4), "busiest": round(max(each), 4)}
        for tier, each in sorted(busy.items())
    }


def idle_cores(local: Local, seconds: float = 5.0) -> dict[str, Any]:
    """The same with nothing asked."""
    before, began = cpu_seconds(local), time.monotonic()
    time.sleep(seconds)
    return cores_used(before, cpu_seconds(local), time.monotonic() - began)


def running(local: Local) -> int:
    """Engine replicas that Serve calls RUNNING."""
    return states(local).count("RUNNING")


def states(local: Local) -> list[str]:
    """Of the engine replicas, as Serve has them."""
    engine = local.dashboard.applications()["applications"]["easel"]["deployments"]["engine"]
    return [replica["state"] for replica in engine["replicas"]]


def wait_for(condition: Callable[[], bool], deadline: float) -> float | None:
    """When it held, on the monotonic clock; None where it did not in time. Serve's account may be away for a moment:
    asked again."""
    while time.monotonic() < deadline:
        try:
            if condition():
                return time.monotonic()
        except (EaselError, KeyError) as error:
            print(f"not known: {error!r}", file=sys.stderr)
        time.sleep(0.1)
    return None


class Metrics:
    """The node agent's page, where Prometheus would read it. The agent is looked for once."""

    def __init__(self, local: Local) -> None:
        self._ports = [
            connection.laddr.port
            for process in members(local, "agent")
            for connection in process.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        ]

    def by(self, label: str, *names: str) -> dict[str, dict[str, float]]:
        """Each metric's value by one of its labels, over its others. Metrics that are not there are empty."""
        found: dict[str, Counter[str]] = {name: Counter() for name in names}
        for port in list(self._ports):
            try:
                answer = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=5, trust_env=False)
            except httpx.HTTPError:
                continue  # another of the agent's ports
            if answer.status_code == 200 and "# HELP ray_" in answer.text:
                self._ports = [port]  # the others only cost their timeouts
            for family in text_string_to_metric_families(answer.text if answer.status_code == 200 else ""):
                for sample in family.samples:
                    name = sample.name.removeprefix("ray_")
                    if name in found and label in sample.labels:
                        found[name][sample.labels[label]] += sample.value
        return {name: dict(values) for name, values in found.items()}


def largest_over_mean(values: list[float], of: int) -> float | None:
    """1: all `of` did the same. None where nobody did anything."""
    return round(max(values) * of / sum(values), 3) if sum(values) > 0 else None

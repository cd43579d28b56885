"""Telemetry of a real Ray service: one trace through its processes, what Prometheus scrapes, log lines, their level."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from easel.rayserve.local import Local
from easel.telemetry.names import METRICS
from tests.integration.conftest import APPLICATIONS, PATIENCE_S, agent_ports, wait_until
from tests.otlp_receiver import Receiver, attributes, one_tree, receiver

PATH, NAME = "/told", "told"
CLIENT = f"00-{'a' * 32}-{'b' * 16}-01"


@dataclass
class Told:
    """A second application, which tells a receiver."""

    local: Local
    collector: Receiver
    before: dict[str, Any]
    application: dict[str, Any]

    def deploy(self, level: str) -> None:
        for deployment in self.application["deployments"]:
            deployment["user_config"]["log_level"] = level
        self.local.dashboard.deploy(self.before | {"applications": [*self.before["applications"], self.application]})

    def ask(self, stream: bool = False, **headers: str) -> httpx.Response:
        body = {"model": "easel", "prompt": "Hello", "max_tokens": 600, "stream": stream}
        url = f"{self.local.session.url}{PATH}/v1/completions"
        return httpx.post(url, json=body, headers=headers, timeout=PATIENCE_S, trust_env=False)

    def lines(self) -> list[dict[str, Any]]:
        """What Easel logged, of all processes."""
        found = []
        for file in self.local.session.logs.glob("worker-*.err"):
            for line in file.read_text(errors="replace").splitlines(keepends=True):
                if line.startswith('{"ts"') and line.endswith("\n"):  # the last one may still be on its way
                    found.append(json.loads(line))
        return found

    def replicas(self) -> list[str]:
        found = self.local.dashboard.applications()["applications"].get(NAME, {}).get("deployments", {})
        return sorted(one["replica_id"] for tier in found.values() for one in tier["replicas"])


@pytest.fixture(scope="module")
def told(local: Local) -> Iterator[Told]:
    before = local.config(APPLICATIONS + "build")
    with receiver() as collector:
        application = local.config(APPLICATIONS + "build")["applications"][0]
        application |= {"name": NAME, "route_prefix": PATH}
        telemetry = {"otlp_endpoint": collector.url, "otlp_period_s": 1.0, "trace_ratio": 0.0}
        application["args"] = {**application["args"], "telemetry": telemetry}
        for deployment in application["deployments"]:
            deployment["ray_actor_options"] = {"num_cpus": 0}
        made = Told(local, collector, before, application)
        made.deploy("INFO")
        wait_until(lambda: made.ask().status_code == 200, "the application answers")
        yield made
        local.dashboard.deploy(before)


def test_one_streamed_request_is_one_connected_trace(told: Told) -> None:
    assert told.ask(stream=True, traceparent=CLIENT).text.endswith("data: [DONE]\n\n")
    wait_until(lambda: len(told.collector.spans) >= 10, "spans arrive")
    spans = [span for _, span in told.collector.spans]
    root = one_tree(spans)
    assert root.name == "text_completion easel"
    assert (root.trace_id.hex(), root.parent_span_id.hex()) == ("a" * 32, "b" * 16)
    services = {service: {span.name for s, span in told.collector.spans if s == service} for service in SERVICES}
    assert services == SERVICES
    [replica] = [span for span in spans if span.name == "easel.replica"]
    [placement] = [span for span in spans if span.name == "easel.placement"]
    assert attributes(replica)["easel.replica"] == attributes(placement)["easel.replica"]
    assert sum(span.name == "easel.canvas" for span in spans) == 3
    wait_until(lambda: exemplars(told.collector), "metrics with exemplars arrive")


SERVICES = {
    "easel-ingress": {"text_completion easel", "easel.queue", "easel.placement", "easel.stream"},
    "easel-engine": {"easel.replica", "easel.engine_wait", "easel.prefill", "easel.canvas"},
}


def exemplars(collector: Receiver) -> set[str]:
    """Ids of the traces that time to first canvas points at."""
    points = [
        point
        for metric in collector.metrics
        if metric.name == "gen_ai.server.time_to_first_token"
        for point in metric.histogram.data_points
    ]
    return {exemplar.trace_id.hex() for point in points for exemplar in point.exemplars} & {"a" * 32}


def test_prometheus_scrapes_every_metric_that_needs_nothing(told: Told) -> None:
    wanted = {f"ray_{metric.name}" for metric in METRICS if not metric.needs} - NO_CACHE
    wanted |= {f"ray_vllm_{name}" for metric in METRICS if not metric.needs for name in metric.vllm} - NO_CACHE

    def scraped() -> set[str]:
        told.ask()
        found = set()
        for port in agent_ports(told.local):
            try:
                answer = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30, trust_env=False)
            except httpx.TransportError:
                continue  # another of the agent's ports
            if answer.status_code == 200:
                families = text_string_to_metric_families(answer.text)
                found |= {name for f in families for name in (f.name, f"{f.name}_total")}
        return found

    missing = set(wanted)

    def all_there() -> bool:
        missing.difference_update(scraped())
        return not missing

    with suppress(AssertionError):
        wait_until(all_there, "all of them")
    assert not missing


NO_CACHE = {
    *("ray_easel_kv_blocks", "ray_easel_kv_blocks_free", "ray_easel_kv_used_ratio"),
    "ray_vllm_kv_cache_usage_perc",
}
"""The fake engine has no KV cache."""


def test_log_lines_carry_request_and_trace_and_their_level_changes_without_a_new_replica(told: Told) -> None:
    assert told.ask(**{"traceparent": CLIENT, "x-request-id": "mine-1"}).status_code == 200

    def mine(request: str) -> list[dict[str, Any]]:
        return [line for line in told.lines() if line.get("request_id") == request]

    [line] = wait_until(lambda: mine("mine-1"), "the access log has it")
    assert (line["event"], line["code"], line["trace_id"], line["output_tokens"]) == ("request", "ok", "a" * 32, 600)
    wait_until(
        lambda: "mine-1" in {attributes(record).get("request_id") for record in told.collector.records},
        "and so has the receiver",
    )
    replicas = told.replicas()
    told.deploy("ERROR")
    numbers = iter(range(1000))

    def quiet() -> bool:
        first, second = f"quiet-{next(numbers)}", f"quiet-{next(numbers)}"
        for request in (first, second):  # the line of the first is written before the second is answered
            told.ask(**{"x-request-id": request})
        return not mine(first)

    wait_until(quiet, "nothing is logged any more")
    assert told.replicas() == replicas

"""Small parts: metrics for Ray, the loopback switch, the dashboard's errors, what the terminal is told."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from ray.serve import metrics as ray_metrics
from ray.serve._private import replica as serve_replica

from easel.errors import ConfigurationError, NotReady
from easel.rayserve import local, loopback, metrics
from easel.rayserve.dashboard import Dashboard
from easel.rayserve.metrics import RayRecorder
from easel.telemetry import names


@pytest.fixture
def bind(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that Serve's replica module binds."""
    bound: list[str] = []
    monkeypatch.setattr(serve_replica, "add_port_to_grpc_server", lambda server, address: bound.append(address))
    return bound


def test_serve_still_binds_by_that_name() -> None:
    source = inspect.getsource(serve_replica)
    assert 'add_port_to_grpc_server(self._server, "[::]:0")' in source


def test_a_local_session_keeps_the_port_on_loopback(bind: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(loopback.LOOPBACK_ENV, "1")
    loopback.keep_on_loopback()
    loopback.keep_on_loopback()
    serve_replica.add_port_to_grpc_server(None, "[::]:0")
    assert bind == ["127.0.0.1:0"]


def test_a_cluster_is_left_as_it_is(bind: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(loopback.LOOPBACK_ENV, raising=False)
    loopback.keep_on_loopback()
    serve_replica.add_port_to_grpc_server(None, "[::]:0")
    assert bind == ["[::]:0"]


class Fake:
    """Stands for Ray's metric classes: takes what they take."""

    made: list[Fake] = []  # noqa: RUF012

    def __init__(self, *args: Any) -> None:
        self.args, self.calls = args, []  # type: ignore[var-annotated]
        Fake.made.append(self)

    def inc(self, value: float, tags: dict[str, str]) -> None:
        self.calls.append((value, tags))

    set = observe = inc


def test_makes_each_metric_once_from_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    Fake.made.clear()
    for kind in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(ray_metrics, kind, Fake)
    recorder = RayRecorder()
    recorder.add(names.STEPS, 2, model="m")
    recorder.add(names.STEPS, 0, model="m")
    recorder.add(names.STEPS, 3, model="m")
    recorder.set(names.SLOTS, 4, model="m")
    recorder.observe(names.STEPS_PER_CANVAS, 12, model="m")
    counter, gauge, histogram = Fake.made
    assert counter.calls == [(2, {"model": "m"}), (3, {"model": "m"})]
    assert gauge.args == (names.SLOTS.name, names.SLOTS.meaning, ("model",))
    assert histogram.args[2] == list(names.STEP_BUCKETS)


def test_what_vllm_has_a_name_for_is_exported_by_it_too_summed_over_what_it_does_not_know(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Fake.made.clear()
    for kind in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(ray_metrics, kind, Fake)
    recorder = RayRecorder()
    recorder.add(names.OUTPUT_TOKENS, 5, model="m", tenant="acme", tier="fast")
    recorder.add(names.FINISHED, model="m", reason="length")
    ours, generated, committed, finished, success = Fake.made
    assert ours.args[0] == "easel_output_tokens_total"
    assert [made.args[0] for made in (generated, committed)] == [
        "vllm_generation_tokens_total",
        "vllm_diffusion_num_committed_tokens_total",
    ]
    assert generated.calls == committed.calls == [(5, {"model_name": "m"})]
    assert generated.args[2] == ("model_name",)
    assert finished.args[0] == "easel_finished_requests_total"
    assert success.calls == [(1.0, {"model_name": "m", "finished_reason": "length"})]


def test_a_metric_that_fails_is_logged_once_and_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise RuntimeError("no")

    logged: list[str] = []
    monkeypatch.setattr(ray_metrics, "Gauge", refuse)
    monkeypatch.setattr(metrics.logger, "exception", lambda text, name: logged.append(name))
    recorder = RayRecorder()
    for _ in range(3):
        recorder.set(names.SLOTS, 4, model="m")
    assert logged == [names.SLOTS.name]


@pytest.fixture
def dashboard() -> Iterator[Dashboard]:
    made = Dashboard(1, "token")
    yield made
    made.close()


def answering(dashboard: Dashboard, status: int, text: str = "{}") -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.headers["authorization"] == "Bearer token"
        return httpx.Response(status, text=text)

    dashboard._http.close()
    dashboard._http = httpx.Client(
        base_url="http://127.0.0.1:1", headers=dashboard._http.headers, transport=httpx.MockTransport(answer)
    )


def test_the_dashboards_refusals_are_told_apart(dashboard: Dashboard) -> None:
    with pytest.raises(NotReady, match="does not answer"):
        dashboard.applications()
    answering(dashboard, 503, "the head is away")
    with pytest.raises(NotReady, match="503: the head is away"):
        dashboard.applications()
    with pytest.raises(ConfigurationError, match="the head is away"):
        dashboard.deploy({})
    answering(dashboard, 401)
    with pytest.raises(ConfigurationError, match="another Ray"):
        dashboard.applications()
    answering(dashboard, 200, '{"applications": {}}')
    assert dashboard.applications() == {"applications": {}}
    dashboard.deploy({})


def test_resources_are_those_of_all_nodes_that_live(dashboard: Dashboard) -> None:
    nodes = [
        {"state": "ALIVE", "resources_total": {"CPU": 8.0, "GPU": 4.0}},
        {"state": "ALIVE", "resources_total": {"CPU": 2.0}},
        {"state": "DEAD", "resources_total": {"CPU": 64.0, "GPU": 8.0}},
    ]
    answering(dashboard, 200, json.dumps({"data": {"result": {"result": nodes}}}))
    assert dashboard.resources() == {"CPU": 10.0, "GPU": 4.0}
    answering(dashboard, 200, json.dumps({"data": {"result": {"result": nodes[2:]}}}))
    with pytest.raises(NotReady, match="No node"):
        dashboard.resources()


@pytest.mark.parametrize(
    ("states", "line"),
    [([], "Starting Serve."), (["STARTING"], "Loading the model."), (["RUNNING"], "The engine is loaded.")],
)
def test_says_how_far_it_is(states: list[str], line: str) -> None:
    application = {"deployments": {"engine": {"replicas": [{"state": state} for state in states]}}}
    assert local._state(application).startswith(line)


def test_says_why_it_did_not_start() -> None:
    trace = "Traceback (most recent call last):\n  File x\neasel.errors.ConfigurationError: no such tensor: lm_head"
    assert "no such tensor" in local._failure({"deployments": {"engine": {"message": trace}}, "message": "failed"})
    assert "no reason given" in local._failure({})

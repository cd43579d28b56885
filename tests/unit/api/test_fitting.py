"""Parameters that the engine cannot honour: refused by name, or left out and told. Never silently ignored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from easel.api.model_card import read_model_card
from easel.errors import ConfigurationError
from easel.protocol import Denoising, Sampling
from easel.settings import ModelSettings
from tests.unit.api.edge import Stream, edge, saying, write_checkpoint

ASKED: list[tuple[str, str, dict[str, Any]]] = [
    ("vllm", "seed", {"seed": 5}),
    ("vllm", "seed", {"seed": 0}),
    ("vllm", "temperature", {"temperature": 0}),
    ("vllm", "min_p", {"min_p": 0.1}),
    ("vllm", "logit_bias", {"logit_bias": {"140": -100}}),
    ("vllm", "presence_penalty", {"presence_penalty": 1}),
    ("vllm", "frequency_penalty", {"frequency_penalty": 1}),
    ("vllm", "min_tokens", {"min_tokens": 2}),
    ("vllm", "easel.entropy_bound", {"easel": {"entropy_bound": 0.2}}),
    ("vllm", "easel.stability", {"easel": {"stability": 2}}),
    ("vllm", "easel.confidence", {"easel": {"confidence": 0.1}}),
    ("vllm", "easel.stop_scope", {"easel": {"stop_scope": "reachable"}}),
    ("reference", "temperature", {"temperature": 0.5}),
    ("reference", "top_p", {"top_p": 0.5}),
    ("reference", "top_k", {"top_k": 5}),
    ("reference", "min_p", {"min_p": 0.5}),
]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "checkpoint")


@pytest.mark.parametrize(("kind", "name", "wish"), ASKED)
async def test_refused_with_engine_parameter_and_reason(
    checkpoint: Path, kind: str, name: str, wish: dict[str, Any]
) -> None:
    async with edge(checkpoint, saying("x"), kind=kind) as e:
        for answer in (await e.complete(**wish), await e.chat(stream=True, **wish)):
            error = answer.json()["error"]
            assert answer.status_code == 400
            assert (error["code"], error["param"]) == ("unsupported_parameter", name)
            assert f"'{name}' is not supported by the {kind} engine: " in error["message"]
        assert not e.backend.requests


@pytest.mark.parametrize(("kind", "name", "wish"), ASKED)
async def test_served_without_it_and_told_where_the_settings_say_so(
    checkpoint: Path, kind: str, name: str, wish: dict[str, Any]
) -> None:
    async with edge(checkpoint, saying("x"), kind=kind, api={"unsupported": "report"}) as e:
        for answer in (await e.complete(**wish), await e.chat(**wish)):
            assert answer.status_code == 200
            assert answer.json()["easel"] == {"unsupported": [name]}
        stream = Stream.of((await e.chat(stream=True, stream_options={"include_usage": True}, **wish)).text)
        assert stream.done
        assert {tuple(event["easel"]["unsupported"]) for event in stream.events} == {(name,)}
        for request in e.backend.requests:
            assert request.min_tokens == 0
            assert (request.sampling.temperature, request.sampling.min_p, request.sampling.logit_bias) == (1.0, 0.0, ())
            if kind == "vllm":
                assert request.sampling == Sampling()
                assert request.denoising == Denoising(deadline_at=request.denoising.deadline_at)


async def test_all_that_was_left_out_is_listed(checkpoint: Path) -> None:
    async with edge(checkpoint, saying("x"), kind="vllm", api={"unsupported": "report"}) as e:
        wish = {"temperature": 0.5, "seed": 3, "top_p": 0.9, "easel": {"tier": "quality"}, "n": 2}
        answer = (await e.complete(**wish)).json()
        assert answer["easel"]["unsupported"] == ["seed", "temperature", "easel.entropy_bound", "easel.stability"]
        assert answer["usage"]["easel"]["tier"] == "quality"
        assert [choice["text"] for choice in answer["choices"]] == ["x", "x"]
        assert {request.sampling.top_p for request in e.backend.requests} == {0.9}
        progress = {"stream_options": {"include_progress": True}, "stream": True}
        stream = Stream.of((await e.complete(**progress)).text)
        assert {tuple(event["easel"]["unsupported"]) for event in stream.events} == {
            ("stream_options.include_progress",)
        }
        assert not [event for event in stream.events if "progress" in event["easel"]]


async def test_a_progress_event_carries_both(checkpoint: Path) -> None:
    options = {"include_progress": True, "progress_hz": 1000}
    api = {"unsupported": "report", "max_progress_hz": 1000.0}
    async with edge(checkpoint, saying("x"), kind="reference", api=api) as e:
        answer = await e.complete(stream=True, stream_options=options, top_k=3)
    shown = [event["easel"] for event in Stream.of(answer.text).events if "progress" in event.get("easel", {})]
    assert shown
    assert all(one["unsupported"] == ["top_k"] for one in shown)


@pytest.mark.parametrize("kind", ["native", "reference", "vllm", "fake"])
async def test_an_ordinary_request_is_served_by_every_engine_and_reports_nothing(checkpoint: Path, kind: str) -> None:
    plain = {"max_tokens": 20, "stop": ["q"], "n": 2, "user": "me", "temperature": 1, "top_p": 1, "logit_bias": {}}
    async with edge(checkpoint, saying("x"), kind=kind) as e:
        for answer in (await e.complete(**plain, echo=True), await e.chat(**plain, service_tier="flex")):
            assert answer.status_code == 200
            assert "easel" not in answer.json()


async def test_a_seed_that_nobody_asked_for_is_no_reason_to_refuse(checkpoint: Path) -> None:
    async with edge(checkpoint, saying("x"), kind="vllm") as e:
        assert (await e.complete()).status_code == 200
        assert e.backend.requests[0].sampling.seed == 0
    async with edge(checkpoint, saying("x")) as e:
        assert (await e.complete()).status_code == 200
        assert e.backend.requests[0].sampling.seed != 0


@pytest.mark.parametrize("wish", [{"service_tier": "quality"}, {"easel": {"tier": "quality"}}])
async def test_a_tier_that_sets_it_is_named(checkpoint: Path, wish: dict[str, Any]) -> None:
    async with edge(checkpoint, saying("x"), kind="vllm") as e:
        error = (await e.complete(**wish)).json()["error"]
    assert error["param"] == ("service_tier" if "service_tier" in wish else "easel.tier")
    assert error["message"].startswith("Tier 'quality' sets 'easel.entropy_bound'. ")
    assert "vllm engine" in error["message"]


async def test_a_default_tier_that_the_engine_cannot_do_is_refused_at_the_start(checkpoint: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"tier quality, the default, sets entropy_bound.*vllm"):
        async with edge(checkpoint, kind="vllm", model={"default_tier": "quality"}):
            raise AssertionError("it started")
    async with edge(checkpoint, kind="reference", model={"default_tier": "quality"}):
        pass


def test_the_card_knows_the_engine(checkpoint: Path) -> None:
    settings = ModelSettings.model_validate({"checkpoint": str(checkpoint), "engine": {"kind": "vllm"}})
    assert read_model_card("default", settings).engine == "vllm"

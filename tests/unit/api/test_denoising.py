"""Tiers, knobs and OpenAI's service_tier: which of them wins, what is refused by name, and what the answer says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from easel.api.denoising import ANY_PRIORITY, Manner, manner
from easel.api.easel_options import EaselOptions
from easel.api.model_card import REFERENCE, ModelCard, read_model_card
from easel.engine.fake import Script
from easel.errors import ConfigurationError, InvalidRequest
from easel.protocol import Denoising
from easel.settings import ModelSettings
from easel.tiers import DEFAULT_TIERS, Tier
from tests.unit.api.edge import CANVAS, Stream, edge, saying, spell

CARD = ModelCard("default", ("m",), 0, "f", 384, 512, CANVAS, 2, frozenset({1}))
AT = 1000.0


def asked(service_tier: str | None = None, most: int = ANY_PRIORITY, card: ModelCard = CARD, **options: Any) -> Manner:
    return manner(card, EaselOptions(**options), service_tier, AT, most)


def test_nothing_asked_is_the_default_tier_as_the_checkpoint_has_it() -> None:
    assert asked() == Manner("balanced", Denoising(deadline_at=AT), 0, "default")


@pytest.mark.parametrize("tier", DEFAULT_TIERS)
@pytest.mark.parametrize("by", ["service_tier", "easel", "both"])
def test_a_tier_sets_its_limits(tier: str, by: str) -> None:
    found = asked(None if by == "easel" else tier, **({} if by == "service_tier" else {"tier": tier}))
    limits = DEFAULT_TIERS[tier]
    assert (found.tier, found.service_tier, found.priority) == (tier, tier, 0)
    assert found.denoising == Denoising(
        limits.max_denoising_steps,
        limits.entropy_bound,
        limits.stability,
        limits.confidence,
        None,
        limits.stop_scope or "canvas",
        AT,
    )


def test_what_is_given_wins_over_the_tier() -> None:
    given = {"max_denoising_steps": 7, "entropy_bound": 0.0, "stability": 3, "confidence": 0.0, "stop_scope": "canvas"}
    found = asked(tier="fast", canvas_length=CANVAS, **given)
    assert found.tier == "fast"
    assert found.denoising == Denoising(7, 0.0, 3, 0.0, None, "canvas", AT)


@pytest.mark.parametrize(
    ("service_tier", "most", "wanted", "priority", "said"),
    [
        (None, 10, None, 0, "default"),
        (None, -5, None, -5, "default"),
        ("auto", 10, None, 0, "default"),
        ("auto", -5, None, -5, "default"),
        ("default", 10, 3, 3, "default"),
        ("scale", 10, None, 0, "default"),
        ("flex", 0, None, -5, "flex"),
        ("flex", -7, None, -7, "flex"),
        ("flex", 10, 2, 2, "flex"),
        ("priority", 10, None, 5, "priority"),
        ("priority", 3, None, 3, "priority"),
        ("priority", 0, None, 0, "default"),
        ("priority", -5, None, -5, "default"),
        ("priority", 10, 1, 1, "priority"),
        ("priority", 10, -1, -1, "default"),
    ],
)
def test_words_of_openai_change_the_place_and_not_the_denoising(
    service_tier: str | None, most: int, wanted: int | None, priority: int, said: str
) -> None:
    found = asked(service_tier, most, priority=wanted)
    assert found == Manner("balanced", Denoising(deadline_at=AT), priority, said)


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"service_tier": "cheap"}, "service_tier", ["'cheap'", "'flex'", "'fast', 'balanced', 'quality'"]),
        ({"service_tier": 1}, "service_tier", ["expected a string"]),
        ({"easel": {"tier": "cheap"}}, "easel.tier", ["'cheap'", "'fast', 'balanced', 'quality'"]),
        ({"easel": {"tier": "flex"}}, "easel.tier", ["'fast', 'balanced', 'quality'"]),
        ({"service_tier": "fast", "easel": {"tier": "quality"}}, "easel.tier", ["'fast'", "'quality'"]),
        ({"easel": {"max_denoising_steps": 49}}, "easel.max_denoising_steps", ["<= 48", "49"]),
        ({"easel": {"max_denoising_steps": 0}}, "easel.max_denoising_steps", [">= 1"]),
        ({"easel": {"max_denoising_steps": 2.0}}, "easel.max_denoising_steps", ["expected an integer"]),
        ({"easel": {"max_denoising_steps": 2000}}, "easel.max_denoising_steps", ["maximum"]),
        ({"easel": {"canvas_length": 32}}, "easel.canvas_length", [f"{CANVAS} positions", "Supported values are"]),
        ({"easel": {"entropy_bound": -0.1}}, "easel.entropy_bound", [">= 0"]),
        ({"easel": {"entropy_bound": "0.1"}}, "easel.entropy_bound", ["expected a number"]),
        ({"easel": {"stability": -1}}, "easel.stability", [">= 0"]),
        ({"easel": {"stability": True}}, "easel.stability", ["expected an integer"]),
        ({"easel": {"confidence": 101}}, "easel.confidence", ["<= 100"]),
        ({"easel": {"stop_scope": "all"}}, "easel.stop_scope", ["'canvas' or 'reachable'"]),
        ({"easel": {"steps": 3}}, "easel.steps", ["Unknown parameter"]),
    ],
)
@pytest.mark.parametrize("chat", [False, True])
async def test_what_cannot_be_is_refused_by_name(
    checkpoint: Path, body: dict[str, Any], param: str, words: list[str], chat: bool
) -> None:
    async with edge(checkpoint) as e:
        response = await (e.chat(**body) if chat else e.complete(**body))
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, param)
        for word in words:
            assert word in error["message"]
        assert e.backend.requests == []


async def test_whole_and_streamed_answers_say_what_was_used(checkpoint: Path) -> None:
    async with edge(checkpoint, saying("x" * 40)) as e:
        whole = (await e.complete(max_tokens=64, n=2, service_tier="fast")).json()
        assert whole["service_tier"] == "fast"
        assert whole["usage"]["easel"] == {
            "tier": "fast",
            "canvases": 6,
            "denoising_steps": 12,
            "stops": {"converged": 6},
            "work": whole["usage"]["easel"]["work"],
        }
        stream = Stream.of(
            (
                await e.chat(
                    easel={"tier": "quality", "max_denoising_steps": 1},
                    stream=True,
                    stream_options={"include_usage": True},
                )
            ).text
        )
        assert {event["service_tier"] for event in stream.events} == {"quality"}
        usage = stream.events[-1]["usage"]["easel"]
        assert (usage["tier"], usage["stops"]) == ("quality", {"step_cap": usage["canvases"]})
        assert [request.tier for request in e.backend.requests] == ["fast", "fast", "quality"]


async def test_the_sdk_takes_tiers_and_knobs(checkpoint: Path) -> None:
    async with edge(checkpoint, saying("x")) as e, httpx.AsyncClient(transport=httpx.ASGITransport(e.app)) as http:
        client = openai.AsyncOpenAI(api_key="k", base_url="http://edge/v1", http_client=http)
        answer = await client.chat.completions.create(
            model="easel",
            messages=[{"role": "user", "content": "Hi"}],
            service_tier="flex",
            extra_body={"easel": {"max_denoising_steps": 5, "stability": 0}},
        )
        assert answer.service_tier == "flex"
        request = e.backend.requests[0]
        assert (request.priority, request.denoising.max_steps, request.denoising.stability) == (-5, 5, 0)
        models = await client.models.list()
        own = models.data[0].model_dump()["easel"]
        assert own["default_tier"] == "balanced"
        assert list(own["tiers"]) == ["fast", "balanced", "quality"]


def write(folder: Path, **generation: Any) -> ModelSettings:
    (folder / "config.json").write_text(json.dumps({"canvas_length": 16, "vocab_size": 384}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 1} | generation))
    return ModelSettings(checkpoint=str(folder))


def test_the_card_knows_the_checkpoints_own_limits(tmp_path: Path) -> None:
    assert read_model_card("m", write(tmp_path)).own == REFERENCE
    settings = write(
        tmp_path,
        max_denoising_steps=8,
        sampler_config={"entropy_bound": 0.4},
        stability_threshold=0,
        confidence_threshold=None,
    )
    card = read_model_card("m", settings)
    assert card.own.limits == {
        "max_denoising_steps": 8,
        "entropy_bound": 0.4,
        "stability": 0,
        "confidence": 0.005,
        "stop_scope": "canvas",
    }
    assert card.limits("balanced") == card.own.limits
    with pytest.raises(ConfigurationError, match="stability"):
        read_model_card("m", write(tmp_path, stability_threshold=-1))


def test_how_many_steps_may_be_asked_for(tmp_path: Path) -> None:
    """As many as the settings' bound says, or else as the checkpoint or a tier has them."""
    settings = write(tmp_path, max_denoising_steps=20)
    assert read_model_card("m", settings).most_steps == 20
    tiers = {"balanced": Tier(), "deep": Tier(max_denoising_steps=64)}
    assert read_model_card("m", settings.model_copy(update={"tiers": tiers})).most_steps == 64
    engine = settings.engine.model_copy(update={"max_denoising_steps": 6})
    bounded = read_model_card("m", settings.model_copy(update={"engine": engine, "tiers": tiers}))
    assert (bounded.most_steps, bounded.limits("deep")["max_denoising_steps"]) == (6, 6)
    with pytest.raises(InvalidRequest, match="<= 6"):
        asked(card=bounded, max_denoising_steps=7)


async def test_a_stopped_answer_counts_its_canvases(checkpoint: Path) -> None:
    """Where a stop string ends an answer the engine's own count does not come; the canvases committed are counted."""
    script = Script(answer=lambda request: spell("ab" * 20), steps=lambda request, canvas: 2)
    async with edge(checkpoint, script) as e:
        usage = (await e.complete(max_tokens=64, stop="b")).json()["usage"]["easel"]
        assert (usage["canvases"], usage["denoising_steps"], usage["stops"]) == (1, 2, {"converged": 1})

"""What changes while an engine runs is what the API says and holds requests to: the way from a replica to the edge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from easel.settings import AppSettings
from easel.telemetry.setup import Telemetry
from tests.contract.one_process import OneProcess, one_process
from tests.unit.api.edge import write_checkpoint


async def told(service: OneProcess, **limits: Any) -> dict[str, Any]:
    """What the model's route says once the replica has taken the limits up and said so."""
    await service.replica.reconfigure(limits)
    service.router.replica_said("r-1", await service.replica.stats())
    listed = (await service.client.get("/v1/models")).json()["data"][0]
    assert (await service.client.get(f"/v1/models/{service.model}")).json() == listed
    own: dict[str, Any] = listed["easel"]
    return own


async def test_the_bound_on_steps_in_force_is_what_the_api_says_and_holds_to(tmp_path: Path) -> None:
    engine = {"kind": "fake", "fake_step_ms": 1, "fake_step_ms_per_canvas": 0}
    model = {"checkpoint": str(write_checkpoint(tmp_path)), "engine": engine}
    settings = AppSettings.model_validate({"models": {"default": model}})
    async with one_process(settings, Telemetry(), Telemetry()) as service:
        at_first = await told(service)
        assert at_first["max_denoising_steps"] == 48

        own = await told(service, max_denoising_steps=5)
        assert own["max_denoising_steps"] == 5
        assert {limits["max_denoising_steps"] for limits in own["tiers"].values()} == {5}
        refused = await service.complete(max_tokens=8, easel={"max_denoising_steps": 6})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "easel.max_denoising_steps")
        assert "<= 5" in refused.json()["error"]["message"]
        usage = (await service.complete(max_tokens=8, easel={"confidence": 0})).json()["usage"]["easel"]
        assert usage["denoising_steps"] == 5

        assert await told(service, max_denoising_steps=None) == at_first
        assert (await service.complete(max_tokens=8, easel={"max_denoising_steps": 6})).status_code == 200

"""The engines that the contract is tried on, each as `make_engine` makes it, over the embedded tiny checkpoint.

`vllm-recorded` is the vLLM engine over the recorded interface; `vllm` is the real one, where vLLM imports.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import pytest

from easel.capabilities import EngineKind
from easel.engine.factory import make_engine
from easel.engine.fake import FakeEngine, Script
from easel.engine.vllm.engine import VllmEngine
from easel.protocol import Engine
from easel.settings import AppSettings, EngineSettings
from tests.contract.engines.recorded_vllm import recorded

CANVAS = 16
"""Positions of a canvas of the checkpoint, and of the stand-ins."""
CONTEXT = 512
EOS = 106
BYTE = 128
"""Token of byte 0."""


def words(prompt: tuple[int, ...]) -> list[int]:
    """What the recorded vLLM says: letters, without an end."""
    return [BYTE + 97 + (len(prompt) + 7 * index) % 26 for index in range(CONTEXT)]


@dataclass(frozen=True)
class Kind:
    """One engine of the suite."""

    name: str
    kind: EngineKind
    tells_steps: bool = True
    """Whether canvases say how many steps they took, and why they stopped."""
    seeded: bool = True

    @property
    def settings(self) -> AppSettings:
        """For the API in front of it."""
        return AppSettings.model_validate({"models": {"default": self._model}})

    @property
    def _model(self) -> dict[str, Any]:
        engine: dict[str, Any] = {"kind": self.kind, "slots": 2, "context_tokens": CONTEXT}
        if self.kind in ("native", "reference"):
            engine |= {"device": "cpu", "threads": 1}
        return {"checkpoint": "embedded:tiny", "engine": engine}

    def make(self) -> Engine:
        """Not started yet."""
        settings: EngineSettings = self.settings.model.engine
        if self.kind == "fake":
            script = Script(steps=lambda request, canvas: 3)
            return FakeEngine(slots=2, step_s=0.0, step_s_per_canvas=0.0, canvas_length=CANVAS, script=script)
        if self.name == "vllm-recorded":
            return VllmEngine(self.settings.model.folder, settings, recorded(CANVAS, words))
        return make_engine(self.settings.model)


KINDS = (
    Kind("fake", "fake"),
    Kind("native", "native"),
    Kind("reference", "reference"),
    Kind("vllm-recorded", "vllm", tells_steps=False, seeded=False),
    Kind("vllm", "vllm", tells_steps=False, seeded=False),
)


def parameters() -> list[Any]:
    """The kinds for `pytest.fixture(params=...)`; the real vLLM skips with the reason where it cannot run."""
    there = importlib.util.find_spec("vllm") is not None
    skip = pytest.mark.skipif(not there, reason="vLLM is not installed: it needs a GPU host and easel-serve[vllm]")
    return [pytest.param(kind, id=kind.name, marks=[skip] if kind.name == "vllm" else []) for kind in KINDS]

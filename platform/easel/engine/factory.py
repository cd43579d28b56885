"""Makes the engine that the settings name. Imports it only then: a fake engine needs no torch, a native one neither
transformers nor vLLM."""

from __future__ import annotations

from easel.protocol import Engine
from easel.settings import ModelSettings


def make_engine(model: ModelSettings) -> Engine:
    """The engine for one model, not started yet. Slow: it may import torch.

    Raises `ConfigurationError` where the checkpoint cannot be found, or the engine would ignore a setting.
    """
    settings = model.engine
    if settings.kind == "fake":
        from easel.engine.fake import FakeEngine

        return FakeEngine(
            slots=settings.slots,
            step_s=settings.fake_step_ms / 1000,
            step_s_per_canvas=settings.fake_step_ms_per_canvas / 1000,
        )
    if settings.kind == "reference":
        from easel.engine.reference.engine import ReferenceEngine

        return ReferenceEngine(model.folder, settings)
    if settings.kind == "vllm":
        from easel.engine.vllm.engine import VllmEngine

        return VllmEngine(model.folder, settings)
    from easel.engine.native.phases import Phases

    phases = Phases()
    with phases.of("import"):
        from easel.engine.native.engine import NativeEngine
    return NativeEngine(model.folder, settings, phases=phases)

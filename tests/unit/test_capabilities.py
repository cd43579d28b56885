"""The table of what engines honour: it names what exists, and a request is held against it field by field."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from easel.capabilities import (
    ENGINES,
    TABLE,
    EngineKind,
    asked_as,
    ensure_supported,
    refusal,
    supports,
    unsupported,
    without,
)
from easel.engine.fake import FakeEngine
from easel.engine.native.engine import NativeEngine
from easel.errors import UnsupportedParameter
from easel.protocol import Denoising, GenerationRequest, Sampling

PLAIN = GenerationRequest(id="a", prompt=(5,), max_tokens=4)
ROUTING = {"id", "prompt", "max_tokens", "model", "group", "choice", "tenant", "tier", "priority", "queue_timeout_s",
           "traceparent"}  # fmt: skip


def test_every_field_of_a_request_is_a_row_or_no_engines_to_refuse() -> None:
    known = {field.name for cls in (GenerationRequest, Sampling, Denoising) for field in fields(cls)}
    assert set(TABLE) == known - ROUTING - {"sampling", "denoising"}
    for field, row in TABLE.items():
        assert set(row) == set(ENGINES)
        for support in row.values():
            assert support.works or support.words, f"{field} is refused without a reason"


def test_engines_say_what_the_table_says() -> None:
    assert NativeEngine.supports == supports("native")
    assert FakeEngine.supports == supports("fake")
    assert {"min_p", "logit_bias", "logprobs", "presence_penalty", "frequency_penalty"} <= FakeEngine.supports
    assert supports("native") == set(TABLE) - {"grammar"}


@pytest.mark.parametrize("kind", ENGINES)
def test_what_is_left_out_is_at_its_default(kind: EngineKind) -> None:
    asked = replace(
        PLAIN,
        min_tokens=2,
        resume=(1, 2),
        sampling=Sampling(seed=4, temperature=0.5, top_k=3, grammar="x"),
        denoising=Denoising(stability=3, deadline_at=9.0),
        progress_hz=3.0,
    )
    missing = unsupported(asked, kind)
    kept = without(asked, missing)
    assert not unsupported(kept, kind)
    ensure_supported(kept, kind)
    assert (kept.id, kept.prompt, kept.denoising.deadline_at) == ("a", (5,), 9.0)
    assert without(asked, ()) == asked
    for field in missing:
        with pytest.raises(UnsupportedParameter) as caught:
            ensure_supported(asked, kind)
        assert caught.value.param == missing[0]
        assert kind in caught.value.message
        assert asked_as(field) in refusal(kind, field).message
    assert not unsupported(PLAIN, kind)

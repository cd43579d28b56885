"""docs/engines.md leaves out no parameter that docs/api.md knows, and promises nothing that was not looked at."""

from __future__ import annotations

import re
from pathlib import Path

from easel.api.easel_options import EaselOptions
from easel.api.schemas import ChatBody, CompletionBody, StreamOptions
from easel.engine.vllm.interface import VERSION
from easel.engine.vllm.translation import EXPECTED_STEPS, UNUSED

PAGE = (Path(__file__).parents[2] / "docs" / "engines.md").read_text()


def test_every_parameter_of_the_api_is_in_the_table_or_below_it() -> None:
    served = {*CompletionBody.model_fields, *ChatBody.model_fields} - {"easel", "stream_options"}
    served |= {f"easel.{name}" for name in EaselOptions.model_fields}
    served |= {f"stream_options.{name}" for name in StreamOptions.model_fields}
    listed = set(re.findall(r"`([\w.]+)`", PAGE[PAGE.index("## Parameter by engine") :]))
    assert served <= listed, served - listed


def test_the_pages_facts_are_the_codes() -> None:
    assert f"vLLM {VERSION}" in PAGE
    assert f"`work` counts {EXPECTED_STEPS:g} steps a canvas" in PAGE
    assert all(f"`{name}`" in PAGE for name in UNUSED)

"""docs/engines.md leaves out no parameter that docs/api.md knows, and promises nothing that was not looked at."""

from __future__ import annotations

import re
from pathlib import Path

from easel.api.easel_options import EaselOptions
from easel.api.openapi import OPERATIONS
from easel.api.schemas import ChatBody, CompletionBody, StreamOptions, TemplateOptions
from easel.engine.reference import engine as reference
from easel.engine.vllm.interface import VERSION
from easel.engine.vllm.translation import EXPECTED_STEPS, UNUSED

PAGE = (Path(__file__).parents[2] / "docs" / "engines.md").read_text()


def test_every_parameter_of_the_api_is_in_the_table() -> None:
    served = {*CompletionBody.model_fields, *ChatBody.model_fields}
    served -= {"easel", "stream_options", "chat_template_kwargs"}
    served |= {f"easel.{name}" for name in EaselOptions.model_fields}
    served |= {f"stream_options.{name}" for name in StreamOptions.model_fields}
    served |= {f"chat_template_kwargs.{name}" for name in TemplateOptions.model_fields}
    listed = set(re.findall(r"^\| `([\w.]+)`.*\|", PAGE, re.MULTILINE))
    assert served <= listed, served - listed
    routes = set(re.findall(r"^\| `([A-Z]+ /\S*)` \|", PAGE, re.MULTILINE))
    assert {f"{m.upper()} {path}" for path, one in OPERATIONS.items() for m in one.methods if m != "head"} == routes


def test_the_pages_facts_are_the_codes() -> None:
    assert f"vLLM {VERSION}" in PAGE
    assert f"`work` counts {EXPECTED_STEPS:g} steps a canvas" in PAGE
    of_vllm, of_reference = PAGE.split("\n## vllm")[1], PAGE.split("\n## reference")[1].split("\n## vllm")[0]
    assert all(f"`{name}`" in of_vllm for name in UNUSED)
    assert all(f"`{name}`" in of_reference for name in reference.UNUSED)

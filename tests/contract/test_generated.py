"""What is generated is committed and up to date."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from easel.settings import ServeSettings
from ops.generate import GENERATED, configuration

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", GENERATED)
def test_is_what_make_gen_would_write(name: str) -> None:
    assert (ROOT / name).read_text() == GENERATED[name](), f"{name} is out of date: run make gen"


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from models_in(part)


def settings_of(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """Every path, whether its block is there by default or not."""
    for name, field in model.model_fields.items():
        inner = list(models_in(field.annotation))
        key = "KEY." if typing.get_origin(field.annotation) is dict else ""
        for one in inner:
            yield from settings_of(one, f"{path}{name}.{key}")
        if not inner:
            yield path + name


def test_the_page_of_settings_has_every_setting() -> None:
    page = configuration()
    every = list(settings_of(ServeSettings))
    assert len(every) > 80
    assert [path for path in every if f"| `{path}` |" not in page] == []
    assert not re.search("<class|easel\\.settings", page), "types are said in words"

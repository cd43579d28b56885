"""Checkpoints that many tests read, made once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from easel.engine.native.config import GenerationDefaults
from easel.engine.native.model import Model
from tests.unit.engine.native.harness import load_model
from tests.unit.engine.native.tiny import reference, save


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(1)  # the models are tiny: threads would only wait for each other


@pytest.fixture(scope="session")
def oracle() -> Any:
    """transformers' model."""
    return reference()


@pytest.fixture(scope="session")
def checkpoint(oracle: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, as a folder."""
    return save(oracle, tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def native(checkpoint: Path) -> tuple[Model, GenerationDefaults]:
    """The same, loaded by us."""
    return load_model(checkpoint)

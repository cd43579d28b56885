"""What tests of the edge share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.api.edge import write_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the edge reads of a checkpoint."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))

"""Runs each file of kernel tests under Triton's interpreter, in a process of its own.

Triton decides at import whether `@triton.jit` compiles or interprets, for good. So that no other test sees it
interpret, each file here is one test that starts pytest on it with `TRITON_INTERPRET=1`. To run single tests, set the
variable: `TRITON_INTERPRET=1 pytest tests/unit/engine/native/kernels/test_rows.py -k embed`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


class _InterpretedFile(pytest.Module):
    """A file that is not imported here."""

    def collect(self) -> Iterator[pytest.Item]:
        tests = _InterpretedTests.from_parent(self, name="interpreted")
        tests.add_marker(pytest.mark.timeout(600))  # for all of them; each keeps the usual limit in its process
        yield tests


class _InterpretedTests(pytest.Item):
    """All tests of one file."""

    def runtest(self) -> None:
        environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(self.path)]
        done = subprocess.run(command, cwd=self.config.rootpath, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            pytest.fail(done.stdout + done.stderr, pytrace=False)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return self.path, None, f"{self.path.name} under Triton's interpreter"


if not INTERPRETED:

    def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module:
        """Instead of importing the file."""
        return _InterpretedFile.from_parent(parent, path=module_path)

"""What every test gets: a clean environment, and the markers that skip with a reason."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

# Ray reads these at import. Set before anything imports it, so that no test sends usage statistics or colours output.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# A shell that starts tests in the background makes them, and what they start, deaf to Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples every time, so that a change that fails is the change that broke something. `make fuzz` looks for
# new ones; what it finds becomes an @example. How long one takes says something about the machine only.
_ANY_SPEED = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("same", derandomize=True, database=None, **_ANY_SPEED)
settings.register_profile("fuzz", max_examples=500, print_blob=True, **_ANY_SPEED)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        if not torch.cuda.is_available():
            for item in items:
                if item.get_closest_marker("gpu"):
                    item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))

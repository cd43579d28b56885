"""What a start spends its seconds on, by phase.

Owns: the sums and the line that is logged. Refuses to know: which phases there are.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Phases:
    """Seconds by name, in the order in which phases were first entered. For one thread."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Count what happens inside to `name`. A phase may be entered many times, and none inside another."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def __str__(self) -> str:
        total = sum(self.seconds.values())
        return ", ".join(f"{name} {seconds:.2f} s" for name, seconds in (*self.seconds.items(), ("in all", total)))

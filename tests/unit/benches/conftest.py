"""Makes `ops/` importable here only: benches are no part of the distribution."""

from __future__ import annotations

import sys
from pathlib import Path

OPS = str(Path(__file__).resolve().parents[3] / "ops")
if OPS not in sys.path:
    sys.path.insert(0, OPS)

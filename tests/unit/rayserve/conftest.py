"""Ray is imported here, once, with its own warnings let through: everything else in these tests is an error."""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ray.serve  # noqa: F401

"""A minute in the life of a service: mixed load, a flood, an engine that dies, one that hangs. Everything that has a
metric happens.

Owns: what happens when. Refuses to know: who watches.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil

from easel.rayserve import processes
from easel.rayserve.local import Local
from ops.observe.load import Mixed
from ops.observe.watched import KEYS, beside

ENGINE_TITLE = "ray::ServeReplica:easel:engine"


@contextmanager
def busy(local: Local, folder: Path, seconds: float) -> Iterator[Mixed]:
    """All of it in about `seconds`; then the block, with the mixed load still there. `folder` is for a checkpoint."""
    local.dashboard.deploy(beside(local, folder))
    with Mixed(local.session.url, 4, KEYS).running() as load:
        time.sleep(seconds * 0.3)
        with Mixed(local.session.url, 6, KEYS[:2], max_tokens=700, seed=1000, only="long").running():
            time.sleep(seconds * 0.3)
            _kill(local)
            _freeze(local)
            time.sleep(seconds * 0.1)
        time.sleep(seconds * 0.3)
        yield load


def _kill(local: Local) -> None:
    """The process of one engine, under its requests."""
    for process in processes.members(local.session.mark, local.keeper):
        with suppress(psutil.Error):
            if process.cmdline()[:1] == [ENGINE_TITLE]:
                process.kill()
                return
    raise RuntimeError(f"no process is called {ENGINE_TITLE}")


def _freeze(local: Local) -> None:
    """The other application's engine; its health checks fail then."""
    body = {"model": "faulty", "prompt": "fault freeze", "max_tokens": 8}
    with suppress(httpx.HTTPError):
        httpx.post(f"{local.session.url}/faulty/v1/completions", json=body, timeout=8, trust_env=False)

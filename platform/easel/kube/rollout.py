"""Waiting for an upgrade to end.

Owns: when it is over, and when there is news. Refuses to know: what is looked at (`snapshot`), how it is shown.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from easel.kube.failures import Unreachable
from easel.kube.snapshot import Snapshot
from easel.kube.upgrade import Upgrade

PERIOD_S = 2.0
"""The operator looks every two seconds."""
FRESH_S = 60.0
SETTLED_S = 8.0
"""Seconds that a fresh change has to look finished: the operator notes that it has seen it before Serve begins."""
PATIENCE_S = 120.0
"""Seconds without the API server after which waiting ends."""


def follow(
    look: Callable[[], Snapshot],
    news: Callable[[Snapshot], None],
    give_up_after_s: float | None = None,
    keep_waiting: bool = False,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Upgrade | None:
    """The upgrade once it is done, failed or stalled; None where it still ran when the time was over.

    `keep_waiting`: a stalled or failed one is only told, not the end: room may be made. Raises what `look` raises, but
    for an API server that is away for less than two minutes."""
    began, told, settled_since, away_since = clock(), None, None, None
    while True:
        try:
            seen = look()
            away_since = None
        except Unreachable:
            away_since = clock() if away_since is None else away_since
            if told is None or clock() - away_since > PATIENCE_S:
                raise
            seen = None
        if seen is not None:
            upgrade = seen.upgrade
            if told != (key := (upgrade.kind, upgrade.state, upgrade.waits_for, upgrade.steps)):
                told = key
                news(seen)
            if upgrade.state == "done":
                settled_since = clock() if settled_since is None else settled_since
                changed = seen.service.changed_at
                fresh = changed is not None and seen.at - changed < FRESH_S
                if not fresh or clock() - settled_since >= SETTLED_S:
                    return upgrade
            else:
                settled_since = None
                if upgrade.state == "suspended" or (upgrade.state in ("failed", "stalled") and not keep_waiting):
                    return upgrade
        if give_up_after_s is not None and clock() - began >= give_up_after_s:
            return None
        sleep(PERIOD_S)

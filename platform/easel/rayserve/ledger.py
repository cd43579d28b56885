"""The work-reporting actor: what each ingress holds, in one place that outlives all of them.

Every ingress puts its report ten times a second, also while it drains, and gets the others' in return; the engine
deployment's autoscaling policy reads them all. Cancels go through it too, since it knows which ingresses there are. The
actor is named after the application, detached, and restarted without end; all the state that it needs is back with the
next reports.

Owns: when each report came, on its own clock, and which are fresh. Refuses to know: what is in a report. Reports cross
as plain dicts, so that Serve's controller can read them whatever it has installed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from easel.rayserve.cancellations import Cancellations, Wanted

FRESH_S = 3.0
"""Older reports come from an ingress that is gone, or cannot reach this actor."""

NAMESPACE = "easel"


def ledger_name(application: str) -> str:
    """The actor's name. Raises nothing, asks nobody."""
    return f"work:{application}"


class WorkLedger:
    """See the module. Made an actor by `find_or_start`; plain in tests."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known_at = clock() + FRESH_S
        """By then every ingress there is has reported, to an actor that was restarted too."""
        self._reports: dict[str, tuple[float, dict[str, Any]]] = {}
        self._targets: dict[str, Any] = {}
        self._cancellations = Cancellations(clock)

    async def put(self, report: Mapping[str, Any], targets: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Take one ingress's report, and what it was told replicas should be scaled by. Returns all fresh reports."""
        self._reports[report["ingress"]] = (self._clock(), dict(report))
        self._targets = dict(targets)
        return [told for _, told in self._fresh()]

    async def read(self) -> tuple[list[tuple[float, dict[str, Any]]], dict[str, Any]]:
        """(age in seconds, report) of every fresh report, and the targets last told."""
        now = self._clock()
        return [(now - at, told) for at, told in self._fresh()], self._targets

    async def cancel(self, owner: str, request_id: str) -> bool | None:
        """See `easel.rayserve.cancellations.Cancellations.ask`: whether an ingress held the request, and ends it."""
        return await self._cancellations.ask(
            owner, request_id, lambda: [told["ingress"] for _, told in self._fresh()], self._known_at
        )

    async def listen(self, ingress: str, answers: Mapping[str, bool]) -> list[Wanted]:
        """See `easel.rayserve.cancellations.Cancellations.listen`: every ingress waits here."""
        return await self._cancellations.listen(ingress, answers)

    def _fresh(self) -> list[tuple[float, dict[str, Any]]]:
        oldest = self._clock() - FRESH_S
        self._reports = {name: (at, told) for name, (at, told) in self._reports.items() if at >= oldest}
        return list(self._reports.values())


def find_or_start(application: str) -> Any:
    """The actor's handle; starts it where it does not run. Blocks: for threads only."""
    import ray

    # Every call may find it restarting: those that are lost are made up for by the next, so none is tried again.
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=0)(WorkLedger)
    return actor.options(
        name=ledger_name(application), namespace=NAMESPACE, lifetime="detached", get_if_exists=True
    ).remote()

"""Cause a fault on a local Easel under load, and show which alert fired, when, and what its runbook's commands say.

    PATH=$PATH:/where/prometheus/is .venv/bin/python ops/observe/drill.py EaselAvailabilityBurn
    PATH=... .venv/bin/python ops/observe/drill.py all > ops/benches/results/DATE-drills.md

Alerts wait for minutes on purpose. `--sooner N` divides every duration in the rules and in the runbooks' queries by N
(default 30; 1: as shipped), and the output says so. The rules are those of ops/alerts otherwise; the service is real
but for its engine, which is fake where no drill says otherwise.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:  # run as a script, from wherever
    sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

from easel.rayserve.local import Local  # noqa: E402
from ops.observe import runbooks  # noqa: E402
from ops.observe.drills import BY_ALERT, DRILLS, Drill, Scene  # noqa: E402
from ops.observe.load import Mixed  # noqa: E402
from ops.observe.prometheus import Prometheus, shorter, sooner, watching  # noqa: E402
from ops.observe.watched import serving, to_stderr  # noqa: E402

RULES = ROOT / "ops/alerts/easel.rules.yaml"
QUIET_S = 15.0
"""Load without a fault, in which nothing may fire."""
PATIENCE_S = 150.0
"""For the alert, and for its end, beyond what its own durations ask for at 30."""
LOOK_S = 0.5


@dataclass
class Watch:
    """Which alerts were seen in which state, since the fault."""

    prometheus: Prometheus
    since: float = field(default_factory=time.monotonic)
    seen: dict[str, dict[str, float]] = field(default_factory=dict)
    """Seconds since the fault by alert and state, the first time."""
    said: dict[str, str] = field(default_factory=dict)
    """Summary of each alert that fired."""

    def look(self) -> dict[str, str]:
        """State by alert, now."""
        now = {}
        for alert in self.prometheus.alerts():
            name, state = alert["labels"]["alertname"], alert["state"]
            now[name] = "firing" if "firing" in (state, now.get(name)) else state
            self.seen.setdefault(name, {}).setdefault(state, time.monotonic() - self.since)
            if state == "firing":
                self.said.setdefault(name, alert["annotations"]["summary"])
        return now

    def until(self, alert: str, firing: bool, patience_s: float) -> float | None:
        """Seconds from now until it fires, or does not any more. None: it never came to that."""
        began = time.monotonic()
        while (self.look().get(alert) == "firing") is not firing:
            if time.monotonic() - began > patience_s:
                return None
            time.sleep(LOOK_S)
        return time.monotonic() - began


def perform(drills: Sequence[Drill], factor: float) -> list[str]:
    """Prints a section of Markdown for each, one after the other in one session. The alerts of those in which an alert
    did not fire, did not end, or had fired before the fault."""
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "prometheus").mkdir()
        rules = sooner(RULES.read_text(), factor)
        with (
            serving(drills[0].settings(place), drills[0].import_path) as local,
            watching(local.session, place / "prometheus", rules, scrape_s=1) as prometheus,
        ):
            for drill in drills:
                to_stderr(f"{', '.join(drill.alerts)}: {drill.what}")
                print(f"## {', '.join(drill.alerts)}\n\nThe fault: {drill.what}.\n", flush=True)
                with Mixed(local.session.url, drill.clients).running() as load:
                    time.sleep(QUIET_S)
                    before = sorted(name for name, state in Watch(prometheus).look().items() if state == "firing")
                    print(f"- after {QUIET_S:.0f} s of load without it, firing: {', '.join(before) or 'nothing'}")
                    if not _fault(drill, local, prometheus, factor) or (set(before) & set(drill.alerts)):
                        failed += drill.alerts
                answers = ", ".join(f"{count} {kind}" for kind, count in sorted(load.seen.items()))
                print(f"What the load got, over all of it: {answers}.\n", flush=True)
    return failed


def _fault(drill: Drill, local: Local, prometheus: Prometheus, factor: float) -> bool:
    patience_s = PATIENCE_S * max(1.0, 30 / factor)
    pages = [runbooks.read(alert) for alert in drill.alerts]
    variables = {
        "EASEL": local.session.url,
        "PROMETHEUS": prometheus.url,
        "LOGS": str(local.session.logs),
        "DASHBOARD": f"http://127.0.0.1:{local.session.ports.dashboard}",
        "TOKEN_FILE": str(local.session.token_file),
    }
    watch, good = Watch(prometheus), True
    with drill.cause(Scene(local)):
        for alert in drill.alerts:
            good &= watch.until(alert, True, patience_s) is not None
        for name, states in watch.seen.items():
            told = ", ".join(f"{state} after {at:.0f} s" for state, at in states.items())
            print(f"- {name}: {told}" + (f": {watch.said[name]!r}" if name in watch.said else ""))
        for alert in set(drill.alerts) - set(watch.said):
            print(f"- **{alert} did not fire** in {patience_s:.0f} s")
        for page in pages:
            print(f"\nDiagnosis of {page.alert}, while it lasts:\n")
            _show(page, "Diagnosis", variables, factor)
    mended = time.monotonic()
    for page in pages:
        ended = watch.until(page.alert, False, patience_s) is not None
        good &= ended
        since = f"{time.monotonic() - mended:.0f} s after it was mended"
        print(f"{page.alert} {'ended' if ended else '**goes on**'} {since}. Verify:\n")
        _show(page, "Verify", variables, factor)
    return good


def _show(page: runbooks.Runbook, section: str, variables: dict[str, str], factor: float) -> None:
    for told in page.commands(section):
        # As the rules: a window of 5 min would show mostly what was before the fault. 10 s hold a few scrapes.
        command = shorter(told, min(factor, 30.0)) if told.startswith("promtool") else told
        print(f"```console\n$ {command}\n{runbooks.run(command, variables)}```\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("alerts", nargs="+", help=f"all, or some of {', '.join(BY_ALERT)}")
    parser.add_argument("--sooner", type=float, default=30.0, help="divide every duration in the rules by this")
    asked = parser.parse_args()
    unknown = sorted(set(asked.alerts) - set(BY_ALERT) - {"all"})
    if unknown:
        parser.error(f"no drill for {', '.join(unknown)}")
    drills = [drill for drill in DRILLS if {"all", *drill.alerts} & set(asked.alerts)]
    print(f"Durations in rules and queries divided by {asked.sooner:g}; scraped every second.\n")
    failed: list[str] = []
    for _, alike in groupby(drills, key=lambda drill: (id(drill.settings), drill.import_path)):
        failed += perform(list(alike), asked.sooner)
    if failed:
        raise SystemExit(f"not as it should be: {', '.join(failed)}")


if __name__ == "__main__":
    main()

"""Debian's Prometheus on loopback, scraping one local session.

Owns: its configuration, its life, and questions to it. Refuses to know: what the metrics mean.

It finds Ray's exporters through the file that Ray itself keeps for Prometheus in each session's folder, so a node or an
exporter that comes back is found again.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from easel.rayserve.session import Session, free_ports

START_S = 60.0
_DURATION = re.compile(r"(?<![\w.])(\d+)(s|m|h|d)(?![\w.])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@dataclass(frozen=True, slots=True)
class Line:
    """One series over time."""

    labels: dict[str, str]
    times: tuple[float, ...]
    """Unix seconds."""
    values: tuple[float, ...]


class Prometheus:
    """A running one. Errors of a query are `ValueError`s with its own words."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._http = httpx.Client(base_url=url, timeout=30, trust_env=False)

    def ask(self, path: str, **params: Any) -> Any:
        """`data` of one call of its API."""
        answer = self._http.get(f"/api/v1/{path}", params=params).json()
        if answer["status"] != "success":
            raise ValueError(f"{params}: {answer.get('error')}")
        return answer["data"]

    def now(self, expr: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series; NaN is left out, as it says nothing."""
        found = [(item["metric"], float(item["value"][1])) for item in self.ask("query", query=expr)["result"]]
        return [(labels, value) for labels, value in found if value == value]

    def over(self, expr: str, start: float, end: float, step: float) -> list[Line]:
        """The same over time; points that are NaN are left out."""
        lines = []
        for item in self.ask("query_range", query=expr, start=start, end=end, step=step)["result"]:
            points = [(at, float(value)) for at, value in item["values"] if float(value) == float(value)]
            if points:
                times, values = zip(*points, strict=True)
                lines.append(Line(item["metric"], times, values))
        return lines

    def alerts(self) -> list[dict[str, Any]]:
        """Those that are pending or firing now."""
        return list(self.ask("alerts")["alerts"])

    def close(self) -> None:
        self._http.close()


def executable(name: str = "prometheus") -> str | None:
    """Where it is, if it is installed."""
    return shutil.which(name)


def discovery(session: Session) -> Path:
    """The list of exporters that Ray keeps for Prometheus."""
    return session.folder / "ray" / "session_latest" / "prom_metrics_service_discovery.json"


def shorter(expr: str, factor: float) -> str:
    """A query with every duration divided, 1 s at least."""
    return _DURATION.sub(lambda found: f"{max(1, round(int(found[1]) * _SECONDS[found[2]] / factor))}s", expr)


def sooner(rules: str, factor: float) -> str:
    """The same rules in a world in which time runs `factor` times as fast. For drills, which nobody wants to wait a
    quarter of an hour for."""
    made = yaml.safe_load(rules)
    for group in made["groups"]:
        if "interval" in group:
            group["interval"] = shorter(group["interval"], factor)
        for rule in group["rules"]:
            for name in ("expr", "for"):
                if name in rule:
                    rule[name] = shorter(rule[name], factor)
    return yaml.safe_dump(made, sort_keys=False, width=1000)


def configuration(session: Session, scrape_s: float, rules: Path | None) -> dict[str, Any]:
    """Of Prometheus: what a person would write to watch this session."""
    haproxy = [{"targets": [f"127.0.0.1:{session.ports.haproxy_metrics}"]}] if session.haproxy else []
    return {
        "global": {"scrape_interval": f"{scrape_s:g}s", "evaluation_interval": f"{scrape_s:g}s"},
        "rule_files": [str(rules)] if rules else [],
        "scrape_configs": [
            {"job_name": "ray", "file_sd_configs": [{"files": [str(discovery(session))], "refresh_interval": "5s"}]},
            {"job_name": "haproxy", "static_configs": haproxy},
        ],
    }


@contextmanager
def watching(session: Session, folder: Path, rules: str | None = None, scrape_s: int = 2) -> Iterator[Prometheus]:
    """A Prometheus that has scraped the session once. `folder` is empty, for its data. Raises `RuntimeError` where it
    does not start."""
    program = executable()
    if program is None:
        raise RuntimeError("there is no prometheus on this machine; on Debian: apt install prometheus")
    file = None
    if rules is not None:
        file = folder / "easel.rules.yaml"
        file.write_text(rules)
    config = folder / "prometheus.yml"
    config.write_text(yaml.safe_dump(configuration(session, scrape_s, file), sort_keys=False))
    (port,) = free_ports(1)
    command = [program, f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}", "--log.level=warn"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    made = Prometheus(f"http://127.0.0.1:{port}")
    try:
        deadline = time.monotonic() + START_S
        while not _scraped(made):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"prometheus does not scrape: {(folder / 'prometheus.log').read_text()[-2000:]}")
            time.sleep(0.2)
        yield made
    finally:
        made.close()
        process.terminate()
        process.wait(30)


def _scraped(made: Prometheus) -> bool:
    try:
        return any(value for _, value in made.now('up{job="ray"}'))
    except (httpx.TransportError, ValueError):
        return False

"""How a terminal shows a cluster: one screen, findings, an upgrade.

Owns: words, columns and colours. Refuses to know: where the values come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from easel.kube.checks import Finding, Level
from easel.kube.objects import Pod, Service, workers
from easel.kube.rights import Right
from easel.kube.scrape import Load
from easel.kube.snapshot import Snapshot
from easel.kube.upgrade import State, Upgrade

MARKS: dict[Level, tuple[str, str]] = {
    "ok": ("ok", "green"),
    "note": ("note", "cyan"),
    "warning": ("warning", "yellow"),
    "error": ("ERROR", "bold red"),
    "unknown": ("unknown", "magenta"),
}
STATES: dict[State, str] = {
    "done": "green",
    "running": "cyan",
    "stalled": "bold yellow",
    "failed": "bold red",
    "suspended": "yellow",
}


def screen(seen: Snapshot) -> RenderableType:
    """Service, replicas, queue, upgrade and GPUs."""
    service = seen.service
    parts: list[RenderableType] = [
        _head(seen),
        _facts(service, seen.pods or (), seen.load),
        upgrade(seen.upgrade, seen.at),
    ]
    if seen.pods:
        parts.append(_pods(seen.pods, service, seen.at))
    if seen.load is not None and seen.load.gpus:
        parts.append(_gpus(seen.load))
    parts += list(left_out(seen.missing, seen.unread))
    return Group(*parts)


def upgrade(told: Upgrade, now: float) -> RenderableType:
    """What is under way, what it waits for, and the way out."""
    name = "upgrade" if told.kind == "none" else told.kind
    line = Text.assemble((f"{name}: ", "bold"), (told.state, STATES[told.state]), f"  {told.summary}")
    if told.since is not None and told.state in ("running", "stalled", "failed"):
        line.append(f"  (for {duration(now - told.since)})", "dim")
    parts: list[RenderableType] = [line]
    for cluster, capacity, traffic in told.steps:
        parts.append(Text(f"  {cluster}: capacity {_percent(capacity)}, traffic {_percent(traffic)}"))
    parts += [Text(f"  waits for {what}") for what in told.waits_for]
    if told.escapes:
        parts.append(Text("  What to do:", "bold"))
        parts += [Text(f"  {number}. {what}") for number, what in enumerate(told.escapes, 1)]
    return Group(*parts)


def findings(found: Sequence[Finding]) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for finding in found:
        mark, style = MARKS[finding.level]
        told = Text(finding.what)
        if finding.fix and finding.level != "ok":
            told.append(f"\nfix: {finding.fix}", "dim")
        table.add_row(Text(mark, style), finding.area, told)
    return table


def left_out(missing: Sequence[Right], unread: Sequence[str] = ()) -> Iterator[RenderableType]:
    """What is not shown, and why."""
    if missing:
        yield Text("Left out, because you may not:", "magenta")
        for right in missing:
            yield Text(f"  {right}", "magenta")
    for message in unread:
        yield Text(f"Left out: {message}", "magenta")


def duration(seconds: float) -> str:
    seconds = max(seconds, 0.0)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _head(seen: Snapshot) -> RenderableType:
    service = seen.service
    ready = service.condition("Ready")
    state, style = ("ready", "green") if ready is not None and ready.true else ("not ready", "bold red")
    name = f"{service.namespace}/{service.name}"
    line = Text.assemble((name, "bold"), "  ", (state, style), f"  context {seen.context}")
    if ready is not None and not ready.true and ready.message:
        line.append(f"\n{ready.reason}: {ready.message}", "red")
    return line


def _facts(service: Service, pods: Sequence[Pod], load: Load | None) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("service", f"{service.endpoints} pods behind it; Ray {service.ray_version or 'of unknown version'}")
    for title, side in (("active", service.active), ("pending", service.pending)):
        if side is None:
            continue
        ready, wanted = workers(side, pods)
        table.add_row(title, f"{side.cluster}: {ready} of {wanted} workers ready")
        for application in side.applications:
            told = ", ".join(f"{name} {status.lower()}" for name, status, _ in application.deployments)
            table.add_row("", f"{application.name} {application.status.lower()}" + (f" ({told})" if told else ""))
    if load is None:
        table.add_row("load", "unknown (no pod's metrics were read)")
        return table
    target = f", {load.target_replicas:g} wanted" if load.target_replicas is not None else ""
    table.add_row("engines", ("unknown" if load.engines is None else f"{load.engines} replicas") + target)
    table.add_row("slots", f"{_number(load.slots_busy)} of {_number(load.slots)} busy")
    queued = f"{_number(load.queued_requests)} requests, {_number(load.queued_work)} units of work"
    table.add_row("queue", queued)
    return table


def _pods(pods: Sequence[Pod], service: Service, now: float) -> RenderableType:
    table = Table("pod", "kind", "state", "restarts", "GPUs", "age", "node", box=None, padding=(0, 2, 0, 0))
    pending = service.pending.cluster if service.pending else ""
    for pod in pods:
        state = "ready" if pod.ready else pod.stuck.split(":")[0] or ("no node" if pod.unschedulable else pod.phase)
        state = "leaving" if pod.deleting else state
        kind = " ".join(filter(None, (pod.node_type, pod.group if pod.node_type == "worker" else "")))
        table.add_row(
            pod.name,
            kind + (" (pending)" if pod.cluster == pending else ""),
            Text(state, "green" if state == "ready" else "yellow"),
            str(pod.restarts),
            str(pod.gpus),
            "" if pod.created is None else duration(now - pod.created),
            pod.node,
        )
    return table


def _gpus(load: Load) -> RenderableType:
    table = Table("GPU", "busy", "memory", box=None, padding=(0, 2, 0, 0))
    for name, percent, used, total in load.gpus:
        memory = f"{used / 1e9:.1f} of {total / 1e9:.1f} GB" if total else "unknown"
        table.add_row(name, f"{percent:.0f} %", memory)
    return table


def _percent(value: int | None) -> str:
    return "unknown" if value is None else f"{value} %"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.0f}"

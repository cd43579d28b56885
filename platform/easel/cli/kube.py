"""`easel kube`: an Easel in a cluster, for those who run it.

Owns: options, what is printed, exit codes. Refuses to know: what the cluster's objects mean (`easel.kube`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from easel.cli.failures import FAILED, WRONG

if TYPE_CHECKING:
    from rich.console import Console

    from easel.kube.connection import Connection
    from easel.kube.snapshot import Snapshot

app = typer.Typer(
    no_args_is_help=True,
    help="""Look after an Easel on Kubernetes.

    \b
    easel kube doctor                    is the cluster fit for it, and what has to be done?
    easel kube status --watch            service, replicas, queue, upgrade and GPUs on one screen
    easel kube rollout status            follow an upgrade: what does it wait for?
    easel kube rollout undo              back to what ran before
    easel kube logs --follow             lines of its pods

    Exit codes: 0 all is well; 1 something is wrong in the cluster; 2 no kubeconfig, or a wrong context or option;
    3 the API server does not answer; 4 no such namespace or release; 5 a right is missing; 6 not finished in time.
    """,
)
rollout = typer.Typer(no_args_is_help=True, help="Follow an upgrade, or go back.")
app.add_typer(rollout, name="rollout")

Release = Annotated[
    str | None,
    typer.Argument(
        help="The Helm release, or a RayService's name. Without it, the only one there.", show_default=False
    ),
]
Namespace = Annotated[str | None, typer.Option("--namespace", "-n", help="Without it, the context's own.")]
Context = Annotated[str | None, typer.Option(help="Of the kubeconfig. Without it, the current one.")]
Kubeconfig = Annotated[Path | None, typer.Option(help="Without it, KUBECONFIG or ~/.kube/config.")]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds that one call to the API server may take.")]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]


@app.command()
def doctor(
    release: Release = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    timeout: Timeout = 10.0,
    as_json: Json = False,
) -> None:
    """Check what Easel rests on: CRDs and operator, GPUs and drivers, storage, quotas, monitoring, DNS, gateway.

    Each finding comes with its fix. What may not be seen is said, with the roles that would allow it; nothing but the
    API server itself has to be reachable. Exit code 1 where an error was found.
    """
    with _reported():
        connection = _open(context, kubeconfig, timeout)
        from easel.kube.doctor import examine
        from easel.kube.drawing import findings
        from easel.kube.rights import rules

        report = examine(connection, namespace or connection.namespace, release)
        if as_json:
            _json({"worst": report.worst, "findings": report.findings, "missing": [str(r) for r in report.missing]})
        else:
            console = _console()
            console.print(findings(report.findings))
            if report.missing:
                console.print("\nWhat could not be seen, these roles allow (bind them to whoever runs this):\n")
                console.print(rules(report.missing, "easel-doctor"), end="")
        if report.worst == "error":
            raise typer.Exit(FAILED)


@app.command()
def status(
    release: Release = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    timeout: Timeout = 10.0,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Again and again, until Ctrl-C.")] = False,
    interval: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 2.0,
    load: Annotated[
        bool, typer.Option(help="Queue, slots and GPU use, from the pods' metrics through the API server.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Show the service, its replicas, queue, upgrade and GPUs on one screen.

    Needs get on rayservices; list on pods, and get on pods/proxy for the load, add what they show. Exit code 1 where
    the service is not ready.
    """
    with _reported():
        connection = _open(context, kubeconfig, timeout)
        from easel.kube.snapshot import take

        def look() -> Snapshot:
            return take(connection, namespace or connection.namespace, release, with_load=load)

        seen = look()
        if watch:
            _watch(look, seen, interval, as_json)
            return
        if as_json:
            _json(_plain(seen))
        else:
            from easel.kube.drawing import screen

            _console().print(screen(seen))
        ready = seen.service.condition("Ready")
        if ready is None or not ready.true:
            raise typer.Exit(FAILED)


@rollout.command("status")
def rollout_status(
    release: Release = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    timeout: Timeout = 10.0,
    once: Annotated[bool, typer.Option("--once", help="Say how it is, and do not wait.")] = False,
    give_up_after: Annotated[
        float | None, typer.Option(min=0, help="Seconds to wait at most; then exit code 6.")
    ] = None,
    keep_waiting: Annotated[bool, typer.Option("--keep-waiting", help="Also while it is stalled or failed.")] = False,
    as_json: Json = False,
) -> None:
    """Follow an upgrade to its end: of Serve's configuration in place, or of a new cluster, at once or in steps.

    Says what it waits for, and where it is stalled, the ways out. Exit code 0 when done, 1 when it failed or is
    stalled, 6 when it still ran at the end of --give-up-after, or with --once.
    """
    with _reported():
        connection = _open(context, kubeconfig, timeout)
        from easel.kube.drawing import left_out, upgrade
        from easel.kube.failures import STILL_RUNNING
        from easel.kube.rollout import follow
        from easel.kube.snapshot import take

        console = _console()

        def tell(seen: Snapshot) -> None:
            if as_json:
                _json({"at": seen.at, **dataclasses.asdict(seen.upgrade)}, indent=None)
                return
            console.print(upgrade(seen.upgrade, seen.at))
            for part in left_out(seen.missing, seen.unread):
                console.print(part)

        def look() -> Snapshot:
            return take(connection, namespace or connection.namespace, release)

        ended = follow(look, tell, 0.0 if once else give_up_after, keep_waiting)
        if ended is None:
            raise typer.Exit(STILL_RUNNING)
        if ended.state in ("failed", "stalled"):
            raise typer.Exit(FAILED)


@rollout.command("undo")
def rollout_undo(
    release: Release = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    timeout: Timeout = 10.0,
    to_revision: Annotated[int | None, typer.Option(min=1, help="Of Helm. Without it, the one before.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
) -> None:
    """Go back to what ran before an upgrade, also out of one that is stalled.

    A release of Helm's goes back by `helm rollback`, which has to be installed; what a Git repository owns is refused;
    anything else gets the specification of the cluster that still serves. A new cluster that waits for room is given
    up. Needs get and patch on rayservices and rayservices/status, and get on rayclusters.
    """
    with _reported():
        connection = _open(context, kubeconfig, timeout)
        from easel.kube import undo
        from easel.kube.snapshot import active_spec, find

        service = find(connection, namespace or connection.namespace, release)
        options = [
            *(("--kube-context", context) if context else ()),
            *(("--kubeconfig", str(kubeconfig)) if kubeconfig else ()),
        ]
        spec = active_spec(connection, service) if undo.needs_spec(service) else None
        plan = undo.plan(service, spec, to_revision, options)
        for sentence in plan.says:
            typer.echo(sentence)
        if plan.command:
            typer.echo(f"Runs: {' '.join(plan.command)}")
        if plan.by in ("nothing", "refused"):
            raise typer.Exit(FAILED)
        if dry_run:
            return
        if not yes and not (sys.stdin.isatty() and typer.confirm("Do it?")):
            typer.echo("Nothing was done; --yes does it without asking.", err=True)
            raise typer.Exit(WRONG)
        undo.carry_out(connection, service, plan, _run)
        typer.echo("Done. `easel kube rollout status` follows it.")


@app.command()
def logs(
    release: Release = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    timeout: Timeout = 10.0,
    node: Annotated[str | None, typer.Option(help="head or worker. Without it, both.")] = None,
    pod: Annotated[str | None, typer.Option(help="One pod, by name.")] = None,
    container: Annotated[
        str | None, typer.Option("--container", "-c", help="Without it, the one that runs Ray.")
    ] = None,
    pending: Annotated[
        bool, typer.Option("--pending", help="Of the cluster that comes up, not the one that serves.")
    ] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines come, until Ctrl-C.")] = False,
    tail: Annotated[int, typer.Option(min=-1, help="Lines of each pod; -1 for all.")] = 100,
    since: Annotated[str | None, typer.Option(help="No older lines, such as 90s, 15m or 2h.")] = None,
    previous: Annotated[bool, typer.Option("--previous", "-p", help="Of the life before the last restart.")] = False,
) -> None:
    """Lines of the release's pods, each after its pod's name. Needs list on pods and get on pods/log."""
    with _reported():
        if node not in (None, "head", "worker"):
            raise typer.BadParameter(f"{node!r} is neither head nor worker", param_hint="--node")
        since_s = None if since is None else _seconds(since)
        connection = _open(context, kubeconfig, timeout)
        from easel.kube import logs as lines
        from easel.kube.failures import Missing, NotAllowed
        from easel.kube.resources import PODS
        from easel.kube.rights import Right
        from easel.kube.snapshot import take

        seen = take(connection, namespace or connection.namespace, release)
        if seen.pods is None:
            raise NotAllowed(Right.to("list", PODS, seen.service.namespace))
        chosen = lines.choose(seen.service, seen.pods, node, pending)
        if pod is not None:
            chosen = [one for one in seen.pods if one.name == pod]
            if not chosen:
                names = ", ".join(one.name for one in seen.pods)
                raise Missing(f"no pod {pod!r} in this release; there are {names}")
        wanted = lines.Wanted(None if tail < 0 else tail, since_s, previous, container)
        read = lines.follow if follow else lines.read
        several = len(chosen) > 1
        with contextlib.suppress(KeyboardInterrupt):
            for name, line in read(connection, seen.service.namespace, chosen, wanted):
                typer.echo(f"{name}  {line}" if several else line)


def _open(context: str | None, kubeconfig: Path | None, timeout: float) -> Connection:
    try:
        from easel.kube.connection import Connection
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in ("kubernetes", "urllib3"):
            raise
        typer.echo("easel: this needs the kubernetes client: pip install 'easel-serve[kube]'", err=True)
        raise typer.Exit(WRONG) from None
    return Connection.open(context, kubeconfig, timeout)


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    """One message on standard error, and the exit code of what went wrong."""
    from easel.kube.failures import KubeError

    try:
        yield
    except KubeError as error:
        typer.echo(f"easel: {error.message}", err=True)
        raise typer.Exit(error.exit_code) from None


def _watch(look: Any, seen: Snapshot, interval: float, as_json: bool) -> None:
    """Until Ctrl-C, which is how it is meant to end. An API server that is away is said, and asked again."""
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    from easel.kube.drawing import screen

    with contextlib.suppress(KeyboardInterrupt):
        if as_json:
            _json(_plain(seen), indent=None)
            for told in _looks(look, interval):
                typer.echo(told, err=True) if isinstance(told, str) else _json(_plain(told), indent=None)
        with Live(screen(seen), console=_console(), auto_refresh=False, screen=sys.stdout.isatty()) as live:
            for told in _looks(look, interval):
                if isinstance(told, str):
                    old = Text(f"This is {time.time() - seen.at:.0f} s old: {told}", "red")
                    live.update(Group(screen(seen), old))
                else:
                    seen = told
                    live.update(screen(seen))
                live.refresh()


def _looks(look: Any, interval: float) -> Iterator[Snapshot | str]:
    """One look after the other, without end; in place of one that failed, why there is none."""
    from easel.kube.failures import Unreachable

    while True:
        time.sleep(interval)
        try:
            yield look()
        except Unreachable as error:
            yield error.message


def _run(command: Sequence[str]) -> int:
    try:
        return subprocess.run(command, check=False).returncode
    except FileNotFoundError:
        from easel.kube.failures import KubeError

        raise KubeError(f"{command[0]} is not installed; where it is, run: {' '.join(command)}") from None


def _plain(seen: Snapshot) -> dict[str, Any]:
    told = dataclasses.asdict(dataclasses.replace(seen, service=dataclasses.replace(seen.service, cluster_config={})))
    told["service"].pop("cluster_config")
    told["missing"] = [str(right) for right in seen.missing]
    return told


def _json(value: Any, indent: int | None = 2) -> None:
    typer.echo(json.dumps(value, indent=indent, default=lambda item: dataclasses.asdict(item)))


def _seconds(text: str) -> int:
    found = re.fullmatch(r"(\d+)([smhd]?)", text)
    if found is None or int(found[1]) == 0:
        raise typer.BadParameter(f"{text!r} is no duration such as 90s, 15m or 2h", param_hint="--since")
    return int(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


def _console() -> Console:
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False)

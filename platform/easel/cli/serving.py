"""`easel serve`, `easel check` and `easel version`.

Owns: their options and what they print. Refuses to know: how anything is done.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from easel import __version__
from easel.checkpoints import EXAMPLES
from easel.cli.failures import reported
from easel.errors import ConfigurationError

if TYPE_CHECKING:
    from easel.settings import AppSettings, ServeSettings

NEEDED_TO_SERVE = ("ray", "fastapi", "uvicorn", "psutil", "tokenizers", "numpy")

Config = Annotated[
    Path | None, typer.Option("--config", "-c", help="Settings in YAML. Without it, every setting has its default.")
]
Checkpoint = Annotated[
    str | None,
    typer.Option(
        "--checkpoint",
        "--model",
        "-m",
        help="A folder with config.json and safetensors, OWNER/NAME or OWNER/NAME@REVISION on a model hub, or "
        "embedded:NAME for one that comes with Easel.",
    ),
]
Host = Annotated[
    str | None, typer.Option(help="Where the API listens. Anything but loopback needs keys: app.api.keys_file.")
]
Port = Annotated[int | None, typer.Option(min=0, max=65535, help="The API's port. 0 picks a free one.")]


def serve(config: Config = None, checkpoint: Checkpoint = None, port: Port = None, host: Host = None) -> None:
    """Serve a model on this machine until Ctrl-C.

    Starts Ray and Ray Serve on loopback, loads the model, and prints the address and a request to try. Ctrl-C lets
    running requests finish; a second one ends them. Nothing keeps running afterwards.

    \b
    easel serve
    easel serve --model ~/models/diffusiongemma --port 0
    easel serve --model nvidia/diffusiongemma-26B-A4B-it-NVFP4
    easel serve --config deployments/local/easel.yaml
    """
    with reported():
        settings = _settings(config, checkpoint, port, host)
        _need_serve_extra()
        settings = _fetched(settings)
        from easel.rayserve import session
        from easel.rayserve.local import Local, run

        for line in _plan(settings):
            typer.echo(line)
        for folder in session.sweep():
            typer.echo(f"Cleaned up after an earlier run that was killed: {folder}")
        run(Local(settings, typer.echo), typer.echo, partial(_welcome, settings.app))


def check(
    config: Annotated[Path | None, typer.Argument(help="Settings in YAML.", show_default=False)] = None,
    checkpoint: Checkpoint = None,
    port: Port = None,
    host: Host = None,
) -> None:
    """Check settings, and say what `easel serve` would do with them. Starts nothing.

    \b
    easel check deployments/local/easel.yaml
    """
    with reported():
        settings = _settings(config, checkpoint, port, host)
        for line in _plan(settings):
            typer.echo(line)
        typer.echo("The configuration is right.")


def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def _settings(config: Path | None, checkpoint: str | None, port: int | None, host: str | None) -> ServeSettings:
    """The file's settings with the command line's on top, checked as a whole."""
    from easel.settings import ServeSettings, load, parse

    settings = ServeSettings() if config is None else load(config)
    if checkpoint is None and port is None and host is None:
        return settings
    data: dict[str, Any] = settings.model_dump()
    if checkpoint is not None:
        data["app"]["models"][settings.app.model_key]["checkpoint"] = checkpoint
    data["local"] |= {key: value for key, value in (("port", port), ("host", host)) if value is not None}
    return parse(data, "command line" if config is None else f"{config} and command line")


def _fetched(settings: ServeSettings) -> ServeSettings:
    """The same with a checkpoint of a hub fetched, and pinned to its commit: replicas look into the cache, and a
    branch may move on while they run."""
    from easel.hub.fetching import fetch
    from easel.hub.reference import hub_reference
    from easel.settings import parse

    reference = hub_reference(settings.app.model.checkpoint)
    if reference is None:
        return settings
    data: dict[str, Any] = settings.model_dump()
    data["app"]["models"][settings.app.model_key]["checkpoint"] = str(fetch(reference, None, typer.echo).reference)
    return parse(data)


def _need_serve_extra() -> None:
    if missing := _missing():
        raise ConfigurationError(
            f"serving needs more than this installation has ({', '.join(missing)}): pip install 'easel-serve[serve]'"
        )


def _missing() -> list[str]:
    return [name for name in NEEDED_TO_SERVE if find_spec(name) is None]


def _plan(settings: ServeSettings) -> Iterator[str]:
    """What would be started, a line each. Raises `ConfigurationError` where the checkpoint is missing or wrong."""
    from easel.hosts import in_url, is_loopback

    model, local, tiers = settings.app.model, settings.local, settings.deployments
    folder = model.folder
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    yield f"Model     {', '.join(model.names)}: {model.checkpoint} ({_bytes(size)} in {folder})"
    if not _missing():  # a base install has no tokenizers to check with
        from easel.rayserve.preflight import check_model

        check_model(settings)
    engines = "a replica for every GPU" if local.every_gpu else _replicas(tiers.engine.replicas)
    least = "at least " if local.every_gpu else ""
    yield (
        f"Engine    {model.engine.kind}, {model.engine.slots} slots, {model.engine.context_tokens} tokens of context, "
        f"{engines} with {tiers.engine.cpus:g} CPUs and {tiers.engine.gpus:g} GPUs each"
    )
    yield f"Ingress   {least}{_replicas(tiers.ingress.replicas)} with {tiers.ingress.cpus:g} CPUs each"
    yield f"API       http://{in_url(local.host)}:{local.port or '(a free port)'}, through {_proxy(settings)}"
    yield f"Dashboard http://127.0.0.1:{local.dashboard_port or '(a free port)'} (Ray's; it asks for a token)"
    if not is_loopback(local.host) and settings.app.api.keys_file is None:
        yield f"Warning: {local.host} is not loopback: whoever reaches it can use the model, no keys are asked for."
    if tiers.engine.max_ongoing_requests < model.engine.slots:
        yield (
            f"Warning: deployments.engine.max_ongoing_requests ({tiers.engine.max_ongoing_requests}) is below "
            f"slots ({model.engine.slots}): {model.engine.slots - tiers.engine.max_ongoing_requests} slots stay empty."
        )


def _proxy(settings: ServeSettings) -> str:
    if _missing():
        return "a proxy that comes with the serve extra"
    from easel.rayserve.session import find_haproxy

    if find_haproxy(settings):
        return "HAProxy"
    chosen = settings.local.proxy == "serve"
    return "Serve's own proxy" + ("" if chosen else " (no HAProxy for this platform: about 13 ms a request more)")


def _welcome(app: AppSettings, url: str, dashboard: int, token_file: Path, logs: Path, name: str) -> str:
    """What is printed when requests can come."""
    message = EXAMPLES.get(app.model.checkpoint, "Hello")
    watch = f"Open {url} in a browser to watch it denoise, or try:" if app.playground.enabled else "Try:"
    return f"""
Listening on {url}. {watch}

  curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{{"model": "{name}", "messages": [{{"role": "user", "content": "{message}"}}]}}'

In a terminal: easel chat --url {url}
Dashboard  http://127.0.0.1:{dashboard}  (token: cat {token_file})
Logs       {logs}
Ctrl-C stops it.
"""


def _replicas(count: int) -> str:
    return "1 replica" if count == 1 else f"{count} replicas"


def _bytes(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"

"""`easel pull`.

Owns: its options and what it prints. Refuses to know: hubs.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from easel.cli.failures import reported
from easel.errors import ConfigurationError


def pull(
    model: Annotated[str, typer.Argument(metavar="ID", help="OWNER/NAME on the hub, or OWNER/NAME@REVISION.")],
    revision: Annotated[
        str | None, typer.Option(help="A branch, a tag or a commit. The default branch without.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option(help="A folder of your own. Without, the cache that other tools use too: HF_HOME.")
    ] = None,
) -> None:
    """Fetch a checkpoint from a model hub, and serve nothing.

    Goes on where an earlier attempt broke off, fetches what is missing, and checks every file against the hub's
    checksums. HF_TOKEN, HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE mean what they do for the huggingface_hub library.

    \b
    easel pull nvidia/diffusiongemma-26B-A4B-it-NVFP4
    easel serve --model nvidia/diffusiongemma-26B-A4B-it-NVFP4
    """
    with reported():
        from easel.hub.fetching import fetch
        from easel.hub.reference import hub_reference

        reference = hub_reference(model)
        if reference is None:
            raise ConfigurationError(f"{model}: not OWNER/NAME or OWNER/NAME@REVISION, or a folder here")
        if revision is not None:
            if reference.revision is not None:
                raise ConfigurationError(f"--revision {revision}, and {model} names one already")
            reference = replace(reference, revision=revision)
        fetched = fetch(reference, to, typer.echo, recheck=True)
        typer.echo(f"{fetched.reference}")
        typer.echo(f"{fetched.folder}")

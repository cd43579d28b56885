"""The `easel` command: what its parts are, and what `--help` says first.

Each module beside this one holds the commands of one noun. They import what a command needs when it runs, so that
`--help` is instant and the base install can show it.
"""

from __future__ import annotations

import typer

from easel.cli import chatting, evaluating, kube, pulling, serving

app = typer.Typer(
    name="easel",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Serve block text-diffusion language models behind an OpenAI-compatible API.

    \b
    easel serve                          the embedded checkpoint on http://127.0.0.1:8000
    easel serve --model DIR              a DiffusionGemma checkpoint of yours
    easel serve --model OWNER/NAME       one from a model hub; easel pull only fetches it
    easel serve --config FILE            everything else: docs/configuration.md has every setting
    easel check FILE                     is that file right, and what would it start?
    easel chat                           talk to it, and watch each canvas clear
    easel eval sudoku --url URL          how well does a running service solve puzzles, and how fast?
    easel kube doctor | status           look after one on Kubernetes
    """,
)
app.command()(serving.serve)
app.command()(serving.check)
app.command()(pulling.pull)
app.command()(chatting.chat)
app.add_typer(evaluating.app, name="eval")
app.add_typer(kube.app, name="kube")
app.command()(serving.version)


def main() -> None:
    """The console script."""
    app()

"""`easel eval`: held-out questions to a running service, and a report.

Owns: options, the progress bar, the table. Refuses to know: how answers are judged (`easel.evals`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from easel.cli.failures import FAILED, reported
from easel.errors import EaselError

if TYPE_CHECKING:
    from easel.evals.sudoku import Answer

app = typer.Typer(
    no_args_is_help=True,
    help="""Ask a running service held-out questions and judge the answers.

    \b
    easel eval sudoku                            3,000 puzzles to http://127.0.0.1:8000
    easel eval sudoku --limit 20 --json          a quick look, for a script
    easel eval sudoku --tier fast                how much a tier costs, and what it loses
    """,
)


@app.callback()
def _group() -> None:
    """So that `sudoku` stays a command of its own while it is the only one."""


@app.command()
def sudoku(
    url: Annotated[str, typer.Option(help="The service's root, without /v1.")] = "http://127.0.0.1:8000",
    model: Annotated[
        str | None, typer.Option(help="A served name. Without it, the first that the service lists.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Puzzles of each band. Without it, all 1,000.")] = None,
    tier: Annotated[
        str | None, typer.Option(help="A tier of the model, such as fast. Without it, the model's default.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=1024, help="Requests at a time.")] = 4,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="EASEL_API_KEY", help="Where the service asks for one.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The report and every answer, as JSON.")] = False,
) -> None:
    """Send held-out Sudoku puzzles through the HTTP API and check each answer against the rules and the givens.

    Prints, by number of givens: how many are solved, denoising steps a canvas, tokens per forward, and the time a
    puzzle took. With --concurrency 1 that time is a single user's. Exit code 1 when a request failed.
    """
    import httpx

    from easel.evals import sudoku as suite

    total = sum(len(puzzles) for puzzles in suite.held_out(limit).values())
    with reported():
        try:
            answers = _with_progress(url, model, limit, concurrency, tier, api_key, total, quiet=as_json)
        except (httpx.HTTPError, httpx.InvalidURL, LookupError, ValueError) as error:
            raise EaselError(f"no answer to GET {url}/v1/models: {error or type(error).__name__}") from None
    typer.echo(suite.as_json(answers)) if as_json else _print(answers)
    failed = [answer for answer in answers if answer.error]
    if failed:
        typer.echo(f"{len(failed)} requests failed; the first: {failed[0].error}", err=True)
        raise typer.Exit(FAILED)


def _with_progress(
    url: str,
    model: str | None,
    limit: int | None,
    concurrency: int,
    tier: str | None,
    api_key: str | None,
    total: int,
    quiet: bool,
) -> list[Answer]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from easel.evals import sudoku as suite
    from easel.hosts import is_loopback

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    solved = 0
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        task = progress.add_task("solved 0", total=total)

        def seen(answer: Answer) -> None:
            nonlocal solved
            solved += answer.solved
            progress.update(task, advance=1, description=f"solved {solved}")

        elsewhere = not is_loopback(urlsplit(url).hostname or "")  # a proxy is for other hosts than this one
        return asyncio.run(
            suite.run(url, model, limit, concurrency, seen, tier=tier, trust_env=elsewhere, api_key=api_key)
        )


def _print(answers: list[Answer]) -> None:
    from rich.console import Console
    from rich.table import Table

    from easel.evals.sudoku import report

    table = Table("givens", "puzzles", "solved", "rate", "steps a canvas", "tokens per forward", "median s", "p90 s")
    for column in table.columns:
        column.justify = "right"
    for line in report(answers):
        table.add_row(
            line.band,
            str(line.puzzles),
            str(line.solved),
            f"{line.solve_rate:.1%}",
            f"{line.steps_per_canvas:.2f}",
            f"{line.tokens_per_forward:.1f}",
            f"{line.median_s:.3f}",
            f"{line.p90_s:.3f}",
        )
    Console().print(table)

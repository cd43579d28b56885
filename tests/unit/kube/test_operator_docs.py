"""Every `easel` command that the operators' pages show is one that the command line takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import typer

from easel.cli import app

ROOT = Path(__file__).parents[3]
PAGES = sorted((ROOT / "docs" / "operators").glob("*.md"))


def commands() -> list[tuple[str, str]]:
    """(page, command), from blocks of code and from `code` in lines."""
    found = set()
    for page in PAGES:
        text = page.read_text()
        blocks = "\n".join(re.findall(r"```\n(.*?)```", text, re.DOTALL))
        lines = [line.strip() for line in blocks.splitlines()]
        inline = re.findall(r"`(easel [^`]+)`", text)
        found |= {(page.name, line) for line in [*lines, *inline] if line.startswith("easel ")}
    return sorted(found)


def parse(command: click.Command, arguments: list[str], parent: click.Context | None = None) -> None:
    """Raises `click.UsageError` where an option or a command is unknown. Nothing runs."""
    context = command.make_context(command.name, list(arguments), parent=parent)
    if isinstance(command, click.Group):
        _, inner, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert inner is not None
        parse(inner, rest, context)


def test_there_are_pages_with_commands() -> None:
    assert len(PAGES) >= 8
    assert len(commands()) >= 15


@pytest.mark.parametrize(("page", "line"), commands())
def test_the_command_line_takes_it(page: str, line: str) -> None:
    arguments = shlex.split(line)[1:]
    if arguments in (["kube"], ["kube", "--help"], ["serve"], ["check"]):
        return  # a name in a sentence, or help itself, which ends the parser
    parse(typer.main.get_command(app), arguments)


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"

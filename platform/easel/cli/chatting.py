"""`easel chat`: a conversation with a running service, and its canvases while they clear.

Owns: options, the loop over lines, Ctrl-C, what goes to which stream. Refuses to know: HTTP, what canvases look like
(`easel.chat`), how puzzles are kept (`easel.evals`).
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from easel.cli.failures import FAILED, reported
from easel.errors import EaselError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from easel.chat.canvas import Answer
    from easel.chat.conversation import Conversation
    from easel.chat.service import Service

INTERRUPTED = 130
"""What shells say of a program that Ctrl-C ended."""
PROMPT = "> "


def chat(
    question: Annotated[
        str | None, typer.Argument(help="Ask this and leave. Without it: a conversation.", show_default=False)
    ] = None,
    url: Annotated[str, typer.Option(help="The service's root, without /v1.")] = "http://127.0.0.1:8000",
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="A served name. Without it, the first that the service lists.")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="EASEL_API_KEY", help="Where the service asks for one.", show_default=False),
    ] = None,
    pace: Annotated[
        float, typer.Option(min=0, max=10, help="Seconds that each state of a canvas is shown, at least.")
    ] = 0.15,
) -> None:
    """Talk to a running service, and watch each canvas clear as it is denoised.

    In a terminal: colour is entropy, underlined what changed its mind. /help lists the commands, Ctrl-C stops an
    answer, Ctrl-D leaves. In a pipe: each line of standard input is a question of its own, only answers are written to
    standard output, errors to standard error. Exit code 1 when a question failed.

    \b
    easel chat                                   and then: /sudoku
    easel chat "reverse: canvas"
    easel chat --url http://10.0.0.7:8000 < questions.txt > answers.txt
    """
    with reported():
        from easel.chat.conversation import Conversation
        from easel.chat.service import Service, ServiceFailure

        service = Service(url, api_key)
        try:
            served = asyncio.run(service.models())
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except ServiceFailure as error:
            raise EaselError(_with_hint(error)) from None
        if not served:
            raise EaselError(f"{service.url} serves no model")
        drawn = sys.stdout.isatty()
        chosen = next((one for one in served if one.name == model), served[0])
        conversation = Conversation(model or chosen.name, tiers=chosen.tiers, default_tier=chosen.default_tier)
        talk = Talk(service, conversation, _console() if drawn else None, pace)
    if question is not None:
        talk.each(iter([question]))
    elif drawn and sys.stdin.isatty():
        talk.welcome()
        talk.each(_typed())
        return  # what failed was seen, and the conversation went on
    else:
        with reported():
            talk.each(_piped(), forgets=True)
    if talk.failed:
        raise typer.Exit(FAILED)


class Talk:
    """Takes lines, does what they say. `console` None: plain text."""

    def __init__(self, service: Service, conversation: Conversation, console: Console | None, pace_s: float) -> None:
        self.failed = False
        self._service = service
        self._conversation = conversation
        self._console = console
        self._pace_s = pace_s if console else 0.0
        self._progress = console is not None

    def welcome(self) -> None:
        """What a person sees first."""
        from easel.chat.drawing import legend

        self._tell(f"{self._conversation.model} at {self._service.url}. Try /sudoku; /help lists the rest.")
        if self._console:
            self._console.print(legend())

    def each(self, lines: Iterator[str], forgets: bool = False) -> None:
        """Every line up to /quit. `forgets`: each is a question of its own."""
        for line in lines:
            if not line.strip():
                continue
            try:
                if not self._take(line.strip()):
                    return
            except EaselError as error:
                self.failed = True
                self._complain(_with_hint(error))
            except KeyboardInterrupt:
                if self._console is None:
                    raise typer.Exit(INTERRUPTED) from None
                self._tell("Stopped: the answer is not part of the conversation.")
            if forgets:
                self._conversation.said.clear()

    def _take(self, line: str) -> bool:
        """Whether to go on."""
        from easel.chat import conversation as commands
        from easel.chat.board import read_puzzle

        if not _is_text(line):
            raise commands.CommandError("That line is no text: some of its bytes are no characters.")
        command = commands.read_command(line)
        if command is None:
            self._ask(line, read_puzzle(line))
            return True
        name, argument = command
        if name == "quit":
            return False
        if name == "help":
            for text in commands.help_lines():
                self._tell(text)
        elif name == "sudoku":
            puzzle = read_puzzle(argument) if argument else _random_puzzle()
            if puzzle is None:
                raise commands.CommandError("/sudoku needs 81 characters: digits, and . or 0 for empty cells.")
            self._ask(puzzle, puzzle)
        else:
            for text in self._conversation.set(name, argument).splitlines():
                self._tell(text)
        return True

    def _ask(self, message: str, puzzle: str | None) -> None:
        answer = asyncio.run(self._answered(message, puzzle))
        if puzzle is None:
            self._conversation.answered(message, answer.text)
        if self._console:
            self._conclude(answer, puzzle)

    async def _answered(self, message: str, puzzle: str | None) -> Answer:
        from easel.chat.service import ServiceFailure

        try:
            return await self._shown(message, puzzle)
        except ServiceFailure as error:
            # Another server of this API may not know progress: answers then come canvas by canvas.
            if not (self._progress and error.answered == 400 and (error.param or "").startswith("stream_options")):
                raise
            self._progress = False
            self._tell("This service streams no progress: answers come without their canvases.")
            return await self._shown(message, puzzle)

    async def _shown(self, message: str, puzzle: str | None) -> Answer:
        from easel.chat.asking import ask
        from easel.chat.conversation import PATH

        body = self._conversation.body(message, self._progress, alone=puzzle is not None)
        if self._console is None:
            return await self._written(body)
        from rich.live import Live

        with Live(console=self._console, auto_refresh=False, transient=True, vertical_overflow="crop") as live:
            return await ask(
                self._service,
                PATH,
                body,
                lambda answer: live.update(self._drawing(answer, puzzle), refresh=True),
                self._pace_s,
            )

    async def _written(self, body: dict[str, object]) -> Answer:
        """Plain text, as canvases are committed."""
        from easel.chat.asking import ask
        from easel.chat.conversation import PATH
        from easel.chat.plain_text import safe

        written = 0

        def write(answer: Answer) -> None:
            nonlocal written
            typer.echo(safe(answer.text[written:]), nl=False)
            written = len(answer.text)

        try:
            answer = await ask(self._service, PATH, body, write)
        finally:
            if written:
                typer.echo()
        if not written:
            typer.echo()
        return answer

    def _drawing(self, answer: Answer, puzzle: str | None) -> Text:
        from easel.chat.drawing import draw_answer, draw_solving

        assert self._console
        if puzzle is not None:
            return draw_solving(puzzle, answer)
        return draw_answer(answer, self._console.width, self._console.height - 1)

    def _conclude(self, answer: Answer, puzzle: str | None) -> None:
        """What stays on the screen."""
        from rich.text import Text

        from easel.chat.board import verdict
        from easel.chat.drawing import draw_board
        from easel.chat.plain_text import safe

        assert self._console
        if puzzle is None:
            self._console.print(Text(safe(answer.text)))
        else:
            self._console.print(draw_board(puzzle, answer))
            self._tell(verdict(puzzle, answer.text))
        self._tell(answer.statistics(), quiet=True)

    def _tell(self, line: str, quiet: bool = False) -> None:
        """To a person: never on a standard output that a program reads."""
        from rich.text import Text

        from easel.chat.plain_text import safe

        if self._console:
            self._console.print(Text(safe(line), "dim" if quiet else ""))

    def _complain(self, line: str) -> None:
        from rich.text import Text

        from easel.chat.plain_text import safe

        if self._console:
            self._console.print(Text(f"Error: {safe(line)}", "red"))
        else:
            typer.echo(f"easel: {safe(line)}", err=True)


def _console() -> Console:
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False)


def _typed() -> Iterator[str]:
    """Lines from a person, with the editing that the system's readline has. Ctrl-C empties the line."""
    with contextlib.suppress(ImportError):  # a Python without it has the terminal's own editing
        import readline  # noqa: F401
    while True:
        try:
            yield input(PROMPT)
        except EOFError:
            typer.echo()
            return
        except KeyboardInterrupt:
            typer.echo("\n(Ctrl-D or /quit leaves)")


def _piped() -> Iterator[str]:
    """Lines of standard input."""
    try:
        for line in sys.stdin:
            yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise EaselError(f"standard input is no {error.encoding} text: {error.reason}") from None


def _random_puzzle() -> str:
    import random

    from easel.evals.sudoku import held_out

    return random.choice([puzzle for puzzles in held_out().values() for puzzle in puzzles]).replace("0", ".")


def _is_text(line: str) -> bool:
    """Whether it can be sent: bytes that are no characters arrive as halves of surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in line)


def _with_hint(error: EaselError) -> str:
    """What was said, and what to do about it where that is known."""
    status, param = getattr(error, "answered", None), error.param or ""
    if status == 401:
        return f"{error}; give a key with --api-key or EASEL_API_KEY"
    if param == "easel" or param.startswith("easel."):
        return f"{error}; '/tier default' and '/steps default' leave it out"
    return str(error)

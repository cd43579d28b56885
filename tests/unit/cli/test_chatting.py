"""`easel chat` as a person and as a script use it: in a pseudo-terminal and in a pipe, against real local servers."""

from __future__ import annotations

import asyncio
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from easel.api.app import create_app
from easel.engine.fake import Script
from easel.engine.native.engine import NativeEngine
from easel.errors import EngineFailed
from easel.evals.sudoku import solves
from easel.settings import AppSettings
from tests.unit.api.edge import EngineBackend, edge, saying, served, spell, write_checkpoint
from tests.unit.cli.terminal import CHAT, Terminal, environment

PUZZLE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
HOSTILE = "\x1b]0;taken\x07\x1b[2J[red]kept[/red] \x9b31m"


class Running:
    """A server in a thread."""

    url: str
    backend: Any


@contextmanager
def running(make: Callable[[], AbstractAsyncContextManager[tuple[Any, Any]]]) -> Iterator[Running]:
    """`make` gives application and backend, inside of the thread's loop."""
    server, ready, begun = Running(), threading.Event(), {}

    async def serve() -> None:
        async with AsyncExitStack() as stack:
            app, server.backend = await stack.enter_async_context(make())
            server.url = await stack.enter_async_context(served(app))
            begun["loop"], begun["stop"] = asyncio.get_running_loop(), asyncio.Event()
            ready.set()
            await begun["stop"].wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert ready.wait(60)
        yield server
    finally:
        begun["loop"].call_soon_threadsafe(begun["stop"].set)
        thread.join(60)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def solver() -> Iterator[str]:
    """The native engine with the embedded Sudoku checkpoint."""

    @asynccontextmanager
    async def make() -> Any:
        model = {"checkpoint": "embedded:sudoku", "engine": {"slots": 2, "threads": 1}}
        settings = AppSettings.model_validate({"models": {"default": model}})
        engine = NativeEngine(settings.model.folder, settings.model.engine)
        await engine.start()
        try:
            behind = EngineBackend(engine)  # type: ignore[arg-type]
            yield create_app(settings, behind), behind
        finally:
            await engine.stop()

    with running(make) as server:
        yield server.url


@pytest.fixture
def fake(tmp_path: Path) -> Callable[..., AbstractAsyncContextManager[Running]]:
    """A service that says what a script wants."""

    def start(script: Script, **options: Any) -> Any:
        @asynccontextmanager
        async def make() -> Any:
            async with edge(write_checkpoint(tmp_path / "checkpoint"), script, **options) as e:
                yield e.app, e.backend

        return running(make)

    return start


def piped(url: str, lines: str, *options: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CHAT, "--url", url, *options],
        input=lines,
        capture_output=True,
        text=True,
        env=environment(**more),
        timeout=90,
    )


def test_a_typed_puzzle_fills_in_and_a_chat_goes_on(solver: str) -> None:
    with Terminal(*CHAT, "--url", solver, "--pace", "0.01") as terminal:
        assert "easel at http://127.0.0.1" in terminal.until("just now")
        terminal.type(f"/sudoku {PUZZLE}")
        shown = terminal.until("first canvas after")
        assert "Solved: every row, column and box" in shown
        assert "step 1" in shown
        assert "tokens per forward" in shown
        boards = shown.split("└")[:-1]
        assert len(boards) >= 3
        last = "".join(c for c in boards[-1].split("┌")[1] if c in "123456789")
        assert solves(PUZZLE.replace(".", "0"), last)
        terminal.type("/sudoku")
        assert "┌" in terminal.until("first canvas after")
        terminal.type("hello")
        assert "Send me a Sudoku" in terminal.until("steps a canvas")
        terminal.type("/quit")
        assert terminal.wait() == 0


def test_commands_and_refusals_are_said_and_the_program_goes_on(solver: str) -> None:
    with Terminal(*CHAT, "--url", solver) as terminal:
        terminal.until("just now")
        terminal.type("/tire fast")
        terminal.until("Did you mean /tier?")
        terminal.type("/sudoku 123")
        terminal.until("/sudoku needs 81 characters")
        terminal.type("/help")
        assert "/temperature" in terminal.until("/quit")
        terminal.type("/tier")
        assert "fast: max_denoising_steps 16" in terminal.until("quality: ")
        terminal.type("/tier slow")
        terminal.until("/tier is one of fast, balanced, quality and default, not 'slow'.")
        terminal.type("/tier fast")
        terminal.until("tier is fast: max_denoising_steps 16")
        terminal.type("/steps 100")
        terminal.until("steps is 100.")
        terminal.type("hello")
        terminal.until("'/tier default' and '/steps default' leave it out")
        terminal.type("/steps 3")
        terminal.until("steps is 3.")
        terminal.type("hello")
        terminal.until("· tier fast")
        terminal.type("/steps default")
        terminal.until("steps is default.")
        terminal.type("/temperature 9")
        terminal.until("temperature is 9.")
        terminal.type("hello")
        terminal.until("HTTP 400")
        assert "temperature" in terminal.until("temperature)")
        terminal.type("/temperature default")
        terminal.until("temperature is default.")
        terminal.type("hello")
        terminal.until("steps a canvas")
        terminal.press_ctrl_c("Ctrl-D or /quit leaves")
        terminal.until("leaves)\n> ")  # before the prompt the terminal is not yet set up to pass Ctrl-D on
        terminal.type("\x04")
        assert terminal.wait() == 0


def test_ctrl_c_stops_the_answer_and_frees_its_slot(fake: Any) -> None:
    script = Script(
        answer=lambda request: spell("again"),
        steps=lambda request, canvas: 400 if b"slow" in bytes(t - 128 for t in request.prompt if t >= 128) else 2,
    )
    with (
        fake(script, step_s=0.05) as server,
        Terminal(*CHAT, "--url", server.url, "--pace", "0") as terminal,
    ):
        server.backend.engine._step_cap = 400
        terminal.until("just now")
        terminal.type("slow")
        terminal.until("step 3")
        assert server.backend.busy == 1
        terminal.press_ctrl_c("Stopped")
        while server.backend.busy:
            threading.Event().wait(0.01)
        terminal.type("again")
        terminal.until("steps a canvas")
        # What was stopped is not part of the conversation.
        prompt = bytes(token - 128 for token in server.backend.requests[-1].prompt if token >= 128)
        assert b"slow" not in prompt
        terminal.type("/quit")
        assert terminal.wait() == 0


def test_what_a_model_says_never_does_anything(fake: Any) -> None:
    with fake(saying(HOSTILE)) as server:
        with Terminal(*CHAT, "--url", server.url, "--pace", "0") as terminal:
            terminal.until("just now")
            terminal.type("Hi")
            assert "[red]kept[/red]" in terminal.until("steps a canvas")
            terminal.type("/quit")
            assert terminal.wait() == 0
            assert b"\x1b]0" not in terminal.raw
            assert b"\x1b[2J" not in terminal.raw
            assert b"\x07" not in terminal.raw
        done = piped(server.url, "Hi\n")
        assert done.returncode == 0
        assert done.stdout.startswith("\\x1b]0;taken\\x07\\x1b[2J[red]kept[/red] ")


def test_in_a_pipe_each_line_is_a_question_and_only_answers_come_out(fake: Any) -> None:
    with fake(saying("an answer on canvases of sixteen")) as server:
        done = piped(server.url, "one\n\n/temperature 0\ntwo\n")
        assert (done.returncode, done.stdout, done.stderr) == (0, "an answer on canvases of sixteen\n" * 2, "")
        first, second = server.backend.requests
        assert len(first.prompt) == len(second.prompt)  # neither knows of the other
        assert second.sampling.temperature == 0
        assert first.progress_hz is None
        done = piped(server.url, "", "one question")
        assert (done.returncode, done.stdout) == (0, "an answer on canvases of sixteen\n")


def test_in_a_pipe_failures_go_to_standard_error_and_the_rest_is_asked(fake: Any) -> None:
    def fail(request: Any, canvas: int) -> EngineFailed | None:
        burns = b"burn" in bytes(token - 128 for token in request.prompt if token >= 128)
        return EngineFailed("The canvas\x1b[2J caught fire.") if burns else None

    script = Script(answer=lambda request: spell("fine"), steps=lambda request, canvas: 1, fail=fail)
    with fake(script) as server:
        done = piped(server.url, "burn\n/nonsense\nhello\n")
    assert done.returncode == 1
    assert "fine" in done.stdout
    assert "caught fire" in done.stderr
    assert "engine_failed" in done.stderr
    assert "\x1b" not in done.stderr
    assert "no command '/nonsense'" in done.stderr
    assert "fire" not in done.stdout


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--url", "http://127.0.0.1:9"), 1, "nothing answers at http://127.0.0.1:9"),
        (("--url", "localhost:9"), 2, "--url must be like"),
    ],
)
def test_a_service_that_is_not_there_is_one_sentence(options: tuple[str, ...], code: int, said: str) -> None:
    done = subprocess.run([*CHAT, *options, "Hi"], capture_output=True, text=True, env=environment(), timeout=60)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_that_is_not_served_is_the_services_error(fake: Any) -> None:
    with fake(saying("x")) as server:
        done = piped(server.url, "", "--model", "other", "Hi")
    assert done.returncode == 1
    assert "model_not_found" in done.stderr


def test_bytes_that_are_no_text_are_named(fake: Any) -> None:
    with fake(saying("x")) as server:
        command = [*CHAT, "--url", server.url]
        done = subprocess.run(command, input=b"ok\n\xff\xfe\n", capture_output=True, env=environment(), timeout=60)
        assert done.returncode == 1
        assert b"standard input is no utf-8 text" in done.stderr
        assert b"Traceback" not in done.stderr
        done = subprocess.run([*command, b"\xff"], capture_output=True, env=environment(), timeout=60)  # type: ignore[list-item]
        assert (done.returncode, done.stdout) == (1, b"")
        assert b"That line is no text" in done.stderr


def test_a_key_goes_with_every_request_and_is_never_printed(fake: Any) -> None:
    with fake(saying("x")) as server:
        done = piped(server.url, "", "Hi", EASEL_API_KEY="sesame")
        assert (done.returncode, done.stdout, done.stderr) == (0, "x\n", "")
        done = piped(server.url, "", "Hi", EASEL_API_KEY="ses\tame")
        assert done.returncode == 2
        assert "--api-key" in done.stderr
        assert "ame" not in done.stderr.replace("name", "")


def test_a_reader_of_the_pipe_may_leave(fake: Any) -> None:
    with fake(saying("x")) as server:
        command = [*CHAT, "--url", server.url]
        writer = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
        )
        assert writer.stdin
        assert writer.stdout
        assert writer.stderr
        writer.stdout.close()
        writer.stdin.write(b"one\ntwo\n")
        writer.stdin.close()
        assert writer.wait(60) == 1
        assert b"Traceback" not in writer.stderr.read()
        writer.stderr.close()

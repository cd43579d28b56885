"""Watching it denoise behind the real `easel serve` (Ray, HAProxy, the default model): in a browser, in a terminal."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import yaml

from easel.evals.sudoku import solves
from easel.rayserve.local import Local
from tests.browser.chromium import browser, executable
from tests.browser.test_playground import BOARD, HARD, STATUS, clean, watch_states
from tests.integration.conftest import PATIENCE_S, let_go
from tests.integration.script import SLOTS
from tests.integration.test_command import Command
from tests.unit.cli.terminal import CHAT, Terminal


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an `easel serve` that says all defaults but ports and slots."""
    config = tmp_path_factory.mktemp("watching") / "easel.yaml"
    model = {"checkpoint": "embedded:sudoku", "engine": {"slots": 2}}
    local = {"port": 0, "dashboard_port": 0}
    config.write_text(yaml.safe_dump({"app": {"models": {"default": model}}, "local": local}))
    command = Command(config)
    try:
        yield command.find(r"Listening on (\S+)\. ")
        command.process.send_signal(signal.SIGINT)
        assert command.wait() == 0
    finally:
        command.close()


@pytest.mark.browser
async def test_a_browser_watches_a_typed_puzzle_being_solved(service: str, tmp_path: Path) -> None:
    program = executable()
    if program is None:
        pytest.skip("no Chromium on this machine; on Debian: apt install chromium")
    axe = pytest.importorskip("axe_core_python", reason="axe-core-python is not installed")
    async with browser(program, tmp_path / "profile") as page:
        await page.open(f"{service}/")
        await page.click("#clear")
        await page.get("document.getElementById('square-1-1').focus()")
        for digit in HARD:
            await page.press(digit)
        assert await page.get(BOARD) == HARD
        await watch_states(page)
        await page.click("#solve")
        await page.until(f"{STATUS}.startsWith('Solved')")
        assert solves(HARD, await page.get(BOARD))
        seen = await page.get("window.seen")
        assert len({state for state in seen if "step" in state}) >= 3, "states did not arrive on the way"
        assert "committed" in seen[-1]
        assert await page.get("document.querySelectorAll('#board .conflict').length") == 0
        clean(page)
        await page.get((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
        found = await page.get("axe.run().then(result => result.violations)")
        assert [found["id"] for found in found if found["impact"] in ("serious", "critical")] == []
        clean(page)


def test_a_terminal_watches_and_chats(service: str) -> None:
    with Terminal(*CHAT, "--url", service, "--pace", "0") as terminal:
        terminal.until("just now")
        terminal.type(f"/sudoku {HARD}")
        shown = terminal.until("first canvas after")
        assert "Solved: every row" in shown
        assert shown.count("┌") >= 3, "states did not arrive on the way"
        terminal.type("hello")
        assert "Send me a Sudoku" in terminal.until("steps a canvas")
        terminal.type("/quit")
        assert terminal.wait() == 0


def test_ctrl_c_in_a_terminal_frees_the_slot(local: Local, tmp_path: Path) -> None:
    """Answers that never end hold every slot, the terminal's the last of them. Once that is stopped, another one fits
    beside."""
    never = tmp_path / "never"
    long = {"model": "easel", "prompt": f"hold 0 {never}", "max_tokens": 300, "stream": True}
    with (
        httpx.Client(base_url=local.session.url, trust_env=False, timeout=PATIENCE_S) as http,
        ThreadPoolExecutor(SLOTS) as pool,
        Terminal(*CHAT, "--url", local.session.url, "--pace", "0") as terminal,
        let_go(never),
    ):
        terminal.until("just now")
        asked = [http.build_request("POST", "/v1/completions", json=long) for _ in range(SLOTS - 1)]
        streams = list(pool.map(lambda request: http.send(request, stream=True), asked))
        assert [stream.status_code for stream in streams] == [200] * (SLOTS - 1)
        terminal.type(f"slow hold 3 {never} ")
        terminal.until("step 3")
        terminal.press_ctrl_c("Stopped")
        terminal.type(f"hold 2 {never} ")
        terminal.until("canvas 2")  # its first one is committed
        terminal.press_ctrl_c("Stopped")
        for stream in streams:
            stream.close()
        terminal.type("/quit")
        assert terminal.wait() == 0

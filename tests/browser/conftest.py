"""A service and a Chromium in one process: the native engine with the Sudoku checkpoint, or a fake that says what a
test wants, behind the API and the playground on a free port. No Ray, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from easel.api.app import create_app
from easel.engine.fake import Script
from easel.engine.native.engine import NativeEngine
from easel.playground.page import mount
from easel.settings import AppSettings
from tests.browser.chromium import Page, browser, executable
from tests.unit.api.edge import EngineBackend, edge, served

Visit = Callable[..., AbstractAsyncContextManager[Page]]


@pytest.fixture
def chromium() -> str:
    found = executable()
    if found is None:
        pytest.skip("no Chromium on this machine; on Debian: apt install chromium")
    return found


@pytest.fixture
def axe() -> str:
    """The accessibility checker's script."""
    package = pytest.importorskip("axe_core_python", reason="axe-core-python is not installed")
    return (Path(package.__file__).parent / "axe.min.js").read_text(encoding="utf-8")


@pytest.fixture
def sudoku(chromium: str, tmp_path: Path) -> Visit:
    """Opens the page of a service that solves."""

    @asynccontextmanager
    async def visit(query: str = "") -> AsyncIterator[Page]:
        model = {"checkpoint": "embedded:sudoku", "engine": {"slots": 2, "threads": 2}}
        settings = AppSettings.model_validate({"models": {"default": model}})
        engine = NativeEngine(settings.model.folder, settings.model.engine)
        await engine.start()
        try:
            app = create_app(settings, EngineBackend(engine))  # type: ignore[arg-type]
            mount(app)
            async with served(app) as address, browser(chromium, tmp_path / "profile") as page:
                await page.open(f"{address}/{query}")
                yield page
        finally:
            await engine.stop()

    return visit


@pytest.fixture
def fake(chromium: str, checkpoint: Path, tmp_path: Path) -> Visit:
    """Opens the page of a service that says what a script wants."""

    @asynccontextmanager
    async def visit(script: Script, query: str = "", backend: object = None, **engine: float) -> AsyncIterator[Page]:
        async with edge(checkpoint, script, backend=backend, **engine) as e:
            mount(e.app)
            async with served(e.app) as address, browser(chromium, tmp_path / "profile") as page:
                await page.open(f"{address}/{query}")
                yield page

    return visit


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the edge reads of a checkpoint."""
    from tests.unit.api.edge import write_checkpoint

    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))

"""Several streams at once, each with random parameters, over a real server: every one replays to its committed text.

The replay is the terminal's own (`easel.chat.canvas`); `tests/unit/api/test_progress_replay.py` has the page's rules.
Some readers leave on the way, some ask without progress; none of them changes what another one is told.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from easel.chat.asking import ask
from easel.chat.canvas import Answer, Canvas
from easel.chat.conversation import PATH, Conversation
from easel.chat.service import Service
from easel.engine.fake import Script
from easel.engine.native.engine import NativeEngine
from easel.settings import EngineSettings
from ops.training.tokenizer import BYTE_OFFSET
from tests.unit.api.edge import EngineBackend, edge, served, until, write_checkpoint

TINY = Path(__file__).parents[3] / "platform" / "easel" / "checkpoints" / "tiny"
API = {"max_progress_hz": 1000.0}
STREAMS = st.fixed_dictionaries(
    {
        "message": st.sampled_from(["repeat: canvas", "reverse: noise", "an open question", "repeat: dög 🦊 dög"]),
        "max_tokens": st.integers(1, 70),
        "seed": st.integers(0, 999),
        "temperature": st.sampled_from([0, 0.7, 1.5]),
        "hz": st.sampled_from([0.1, 10, 1000]),
        "leaves_after": st.sampled_from([None, None, None, 0, 2, 5]),
    }
)
LOADS = st.lists(STREAMS, min_size=2, max_size=8)


def body(wanted: dict[str, Any], progress: bool) -> dict[str, Any]:
    made = Conversation("easel").body(wanted["message"], progress)
    if progress:
        made["stream_options"]["progress_hz"] = wanted["hz"]
    return made | {name: wanted[name] for name in ("max_tokens", "seed", "temperature")}


async def watch(service: Service, wanted: dict[str, Any]) -> bool:
    """Whether it was read to its end, and then right."""
    committed: dict[int, Canvas] = {}
    events = 0
    watching: asyncio.Task[Answer] | None = None

    def seen(answer: Answer) -> None:
        nonlocal events
        events += 1
        if answer.canvas is not None and answer.canvas.committed:
            committed[answer.canvas.number] = answer.canvas
        if watching is not None and wanted["leaves_after"] == events:
            watching.cancel()

    watching = asyncio.create_task(ask(service, PATH, body(wanted, True), seen))
    try:
        answer = await watching
    except asyncio.CancelledError:
        assert watching.cancelled()
        assert wanted["leaves_after"] is not None
        return False
    assert sorted(committed) == list(range(len(answer.steps)))
    tokens = [
        cell.token_id if cell else -1
        for number in sorted(committed)
        for cell in committed[number].cells[: committed[number].tokens]
    ]
    assert -1 not in tokens, "a position of the answer was never told"
    assert len(tokens) == answer.tokens
    told = bytes(token - BYTE_OFFSET for token in tokens if token >= BYTE_OFFSET).decode("utf-8", "replace")
    assert told == answer.text
    plain = await ask(service, PATH, body(wanted, False), lambda answer: None)
    assert (plain.text, plain.tokens, plain.steps, plain.states) == (answer.text, answer.tokens, answer.steps, 0)
    return True


@asynccontextmanager
async def native() -> AsyncIterator[tuple[Any, EngineBackend]]:
    engine = NativeEngine(TINY, EngineSettings(slots=4, context_tokens=512))
    await engine.start()
    try:
        behind = EngineBackend(engine)  # type: ignore[arg-type]
        async with edge(TINY, api=API, backend=behind) as e:
            yield e.app, behind
    finally:
        await engine.stop()


@asynccontextmanager
async def fake(folder: Path) -> AsyncIterator[tuple[Any, EngineBackend]]:
    script = Script(steps=lambda request, canvas: 1 + (request.sampling.seed + canvas) % 9)
    async with edge(write_checkpoint(folder), script, api=API, slots=4, step_s=0.0005) as e:
        yield e.app, e.backend


@pytest.mark.parametrize("engine", ["fake", "native"])
def test_every_stream_of_a_random_load_replays_to_its_text(engine: str, tmp_path: Path) -> None:
    whole: list[bool] = []
    with asyncio.Runner() as runner:
        making = native() if engine == "native" else fake(tmp_path)
        app, behind = runner.run(making.__aenter__())
        serving = served(app)
        service = Service(runner.run(serving.__aenter__()))

        @settings(max_examples=30 if engine == "fake" else 8, deadline=None)
        @given(load=LOADS)
        def every_load(load: list[dict[str, Any]]) -> None:
            async def run() -> None:
                whole.extend(await asyncio.gather(*(watch(service, one) for one in load)))
                await until(lambda: behind.busy == 0)

            runner.run(run())

        try:
            every_load()
        finally:
            runner.run(serving.__aexit__(None, None, None))
            runner.run(making.__aexit__(None, None, None))
    assert any(whole)
    assert not all(whole)

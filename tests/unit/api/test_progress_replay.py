"""A progress stream, replayed offline, ends in exactly the committed text: for every request of random loads."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from easel.engine.fake import Script
from easel.engine.native.engine import NativeEngine
from easel.protocol import Event, GenerationRequest
from easel.settings import EngineSettings
from tests.unit.api.edge import Edge, EngineBackend, Stream, edge
from tests.unit.api.replay import replays

TINY = Path(__file__).parents[3] / "platform" / "easel" / "checkpoints" / "tiny"
API = {"max_progress_hz": 1000.0}

PROMPTS = st.sampled_from(["repeat: canvas", "reverse: noise", "an open question", "repeat: dög 🦊 dög", ""])
REQUESTS = st.fixed_dictionaries(
    {
        "prompt": PROMPTS,
        "chat": st.booleans(),
        "max_tokens": st.integers(1, 70),
        "n": st.integers(1, 3),
        "seed": st.integers(0, 999),
        "temperature": st.sampled_from([0, 0.7, 1.5]),
        "stop": st.sampled_from([[], ["a"], ["can", "n s"], ["🦊"], ["\ufffd"]]),
        "hz": st.sampled_from([0.1, 10, 1000]),
        "jumpy": st.booleans(),
    }
)
LOADS = st.lists(REQUESTS, min_size=1, max_size=6)


async def ask(e: Edge, wanted: dict[str, Any]) -> int:
    """Streams one request and checks it. Returns how many states it was shown."""
    body = {key: wanted[key] for key in ("max_tokens", "n", "seed", "temperature", "stop")}
    options = {"include_progress": True, "progress_hz": wanted["hz"], "include_usage": True}
    body |= {"stream": True, "stream_options": options}
    if wanted["chat"]:
        response = await e.chat(messages=[{"role": "user", "content": wanted["prompt"] or "?"}], **body)
    else:
        response = await e.complete(**(body | {"prompt": wanted["prompt"]}))
    assert response.status_code == 200, response.text
    stream = Stream.of(response.text)
    assert stream.done, response.text[-500:]
    found = replays(stream.events)
    assert sorted(found) == list(range(wanted["n"]))
    for index, replay in found.items():
        assert replay.text(*wanted["stop"]) == stream.text(index)
        choices = [choice for event in stream.events for choice in event["choices"] if choice["index"] == index]
        [end] = [choice["easel"] for choice in choices if "easel" in choice]
        assert replay.committed == len(end["canvases"])
    assert sum(len(replay.answer) for replay in found.values()) == stream.events[-1]["usage"]["completion_tokens"]
    return sum(replay.states for replay in found.values())


class Jumpy(EngineBackend):
    """Lets other tasks run after a number of events that differs each time, so that readers fall behind."""

    async def generate(self, request: GenerationRequest) -> Any:
        events: list[Event] = []
        async for event in super().generate(request):
            events.append(event)
            if len(events) > (request.sampling.seed + request.choice) % 5:
                for waiting in events:
                    yield waiting
                events.clear()
        for waiting in events:
            yield waiting


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(load=LOADS, steps=st.integers(1, 12))
def test_the_fake_engines_loads(checkpoint: Path, load: list[dict[str, Any]], steps: int) -> None:
    async def run() -> None:
        script = Script(steps=lambda request, canvas: 1 + (request.sampling.seed + canvas) % steps)
        async with edge(checkpoint, script, api=API, slots=4) as e:
            behind = Jumpy(e.backend.engine)
            async with edge(checkpoint, api=API, backend=behind) as jumpy:
                await asyncio.gather(*(ask(jumpy if one["jumpy"] else e, one) for one in load))

    asyncio.run(run())


def test_the_native_engines_loads() -> None:
    states: list[int] = []
    with asyncio.Runner() as runner:
        engine = NativeEngine(TINY, EngineSettings(slots=4, context_tokens=512))
        runner.run(engine.start())

        @settings(max_examples=10, deadline=None)
        @given(load=LOADS)
        def every_load(load: list[dict[str, Any]]) -> None:
            async def run() -> None:
                async with edge(TINY, api=API, backend=EngineBackend(engine)) as e:  # type: ignore[arg-type]
                    states.extend(await asyncio.gather(*(ask(e, one) for one in load)))

            runner.run(run())

        try:
            every_load()
        finally:
            runner.run(engine.stop())
    assert sum(states) > 0

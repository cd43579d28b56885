"""`system_fingerprint` names what decoded an answer, as far as that is known."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from easel.protocol import Event, GenerationRequest, Started
from tests.unit.api.edge import Edge, Stream, edge, saying

H100, H200 = "native on H100, torch 2.11", "native on H200, torch 2.11"


def decoded_on(e: Edge, *runtimes: str) -> None:
    """Let the engine say that choice i was decoded on `runtimes[i]`."""
    generate = e.backend.generate

    async def told(request: GenerationRequest) -> AsyncIterator[Event]:
        async for event in generate(request):
            yield replace(event, runtime=runtimes[request.choice]) if isinstance(event, Started) else event

    e.backend.generate = told


async def fingerprints(checkpoint: Path, *runtimes: str, **body: Any) -> tuple[str, set[str]]:
    """Of the whole answer, and of a stream's chunks; each choice decoded on one of `runtimes`."""
    async with edge(checkpoint, saying("abc")) as e:
        decoded_on(e, *runtimes)
        whole = (await e.complete(n=len(runtimes), **body)).json()["system_fingerprint"]
        streamed = Stream.of((await e.complete(n=len(runtimes), stream=True, **body)).text)
        return whole, {event["system_fingerprint"] for event in streamed.events}


async def test_the_same_card_gives_the_same_and_another_another(checkpoint: Path) -> None:
    whole, streamed = await fingerprints(checkpoint, H100)
    assert streamed == {whole}
    assert await fingerprints(checkpoint, H100, H100) == (whole, streamed)
    other, _ = await fingerprints(checkpoint, H200)
    assert other != whole
    assert other.rpartition("-")[0] == whole.rpartition("-")[0]


async def test_choices_decoded_on_two_cards_have_a_fingerprint_of_both(checkpoint: Path) -> None:
    one, _ = await fingerprints(checkpoint, H100)
    other, _ = await fingerprints(checkpoint, H200)
    both, streamed = await fingerprints(checkpoint, H200, H100)
    assert both not in (one, other)
    assert streamed == {one, other}


async def test_an_engine_that_says_nothing_leaves_version_and_checkpoint(checkpoint: Path) -> None:
    async with edge(checkpoint, saying("abc")) as e:
        version = (await e.client.get("/version")).json()["system_fingerprint"]
        assert (await e.complete()).json()["system_fingerprint"] == version

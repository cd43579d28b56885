"""Every error class reaches a client as `easel.errors` says: status, body, and what tells SDKs whether to try again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from easel.engine.fake import FakeEngine
from easel.errors import EaselError, tree
from easel.protocol import Event, Failed, GenerationRequest, Started
from tests.unit.api.edge import EngineBackend, Stream, edge, write_checkpoint

CLASSES = [error for error in tree() if error.__name__ != "ConfigurationError"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


class Raising(EngineBackend):
    """Raises what it was given before its first event."""

    def __init__(self, error: EaselError) -> None:
        super().__init__(FakeEngine())
        self.error = error

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:  # type: ignore[override]
        raise self.error
        yield


class Failing(Raising):
    """Begins, and then fails with it."""

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:  # type: ignore[override]
        yield Started(0.0)
        yield Failed(self.error.code, self.error.message, self.error.retryable, self.error.param)


@pytest.mark.parametrize("error", CLASSES)
@pytest.mark.parametrize("stream", [False, True])
async def test_before_an_answer_begins(checkpoint: Path, error: type[EaselError], stream: bool) -> None:
    raised = error("What went wrong.", "field", 1.25)
    async with edge(checkpoint, backend=Raising(raised)) as e:
        response = await e.complete(stream=stream)
    assert response.status_code == error.status
    assert response.json() == {
        "error": {"message": "What went wrong.", "type": error.type, "param": "field", "code": error.code}
    }
    assert response.headers["content-type"] == "application/json"
    assert response.headers["retry-after"] == "2"
    assert response.headers["retry-after-ms"] == "1250"
    hopeless = error.status >= 500 and not error.retryable
    assert response.headers.get("x-should-retry") == ("false" if hopeless else None)
    assert response.headers["x-request-id"]


@pytest.mark.parametrize("error", [error for error in CLASSES if error is not EaselError])
async def test_after_a_stream_began(checkpoint: Path, error: type[EaselError]) -> None:
    raised = error("What went wrong.", "field")
    async with edge(checkpoint, backend=Failing(raised)) as e:
        response = await e.chat(stream=True)
        assert response.status_code == 200
        stream = Stream.of(response.text)
        assert not stream.done
        assert stream.events[-1] == raised.body()
        whole = await e.chat()
        assert (whole.status_code, whole.json()) == (error.status, raised.body())

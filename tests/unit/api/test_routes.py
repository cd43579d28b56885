"""Every route answers as users of OpenAI's API know it, whole and streamed."""

from __future__ import annotations

from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx

from easel import __version__
from easel.engine.fake import FakeEngine, Script
from easel.errors import EngineFailed, QueueFull
from easel.protocol import GenerationRequest
from tests.unit.api.edge import EngineBackend, Stream, edge, saying, spell

TEXT = "The quick brown fox jumps over the lazy dog."


async def test_completes_a_prompt(checkpoint: Path) -> None:
    async with edge(checkpoint, saying(TEXT)) as e:
        answer = (await e.complete(max_tokens=100)).json()
        assert answer["object"] == "text_completion"
        assert answer["model"] == "easel"
        assert answer["choices"][0]["text"] == TEXT
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert answer["choices"][0]["easel"] == {
            "finish_reason": "stop",
            "canvases": [{"denoising_steps": 2, "stop": "converged"}] * 3,
        }
        assert answer["usage"]["prompt_tokens"] == 3  # <bos>, H, i
        assert answer["usage"]["completion_tokens"] == len(TEXT)
        assert answer["usage"]["easel"]["denoising_steps"] == 6
        assert e.backend.busy == 0


async def test_streams_a_completion_canvas_by_canvas(checkpoint: Path) -> None:
    async with edge(checkpoint, saying(TEXT)) as e:
        response = await e.complete(max_tokens=100, stream=True, stream_options={"include_usage": True})
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["cache-control"] == "no-cache"
        stream = Stream.of(response.text)
        assert stream.done
        assert [event["choices"][0]["text"] for event in stream.events[:3]] == [TEXT[:16], TEXT[16:32], TEXT[32:]]
        assert stream.text() == TEXT
        *parts, usage = stream.events
        assert all(part["usage"] is None for part in parts)
        assert usage["choices"] == []
        assert usage["usage"]["completion_tokens"] == len(TEXT)
        assert len({event["id"] for event in stream.events}) == 1


async def test_a_stream_says_nothing_of_usage_unless_asked(checkpoint: Path) -> None:
    async with edge(checkpoint, saying(TEXT)) as e:
        stream = Stream.of((await e.complete(stream=True)).text)
        assert stream.done
        assert not any("usage" in event for event in stream.events)


async def test_answers_a_chat_whole_and_streamed_with_the_same_text(checkpoint: Path) -> None:
    async with edge(checkpoint, saying(TEXT)) as e:
        whole = (await e.chat()).json()
        assert whole["object"] == "chat.completion"
        assert whole["choices"][0]["message"] == {"role": "assistant", "content": TEXT, "refusal": None}
        stream = Stream.of((await e.chat(stream=True)).text)
        assert stream.events[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
        assert stream.events[0]["object"] == "chat.completion.chunk"
        assert stream.events[-1]["choices"][0] == {
            "index": 0,
            "delta": {},
            "logprobs": None,
            "finish_reason": "stop",
            "easel": whole["choices"][0]["easel"],
        }
        assert stream.text() == TEXT


async def test_chat_may_use_what_is_left_of_the_context_and_completions_16_tokens(checkpoint: Path) -> None:
    async with edge(checkpoint) as e:
        completion = (await e.complete()).json()
        assert completion["usage"]["completion_tokens"] == 16
        assert completion["choices"][0]["finish_reason"] == "length"
        chat = (await e.chat()).json()
        assert chat["usage"]["total_tokens"] == 512


async def test_many_prompts_and_choices_come_back_in_order(checkpoint: Path) -> None:
    def name(request: GenerationRequest) -> tuple[int, ...]:
        return spell(f"{bytes(t - 128 for t in request.prompt[1:]).decode()}{request.choice}")

    async with edge(checkpoint, Script(answer=name)) as e:
        answer = (await e.complete(prompt=["a", "b", "c"], n=2, max_tokens=9)).json()
        assert [choice["index"] for choice in answer["choices"]] == list(range(6))
        assert [choice["text"] for choice in answer["choices"]] == ["a0", "a1", "b0", "b1", "c0", "c1"]
        assert answer["usage"]["prompt_tokens"] == 6
        assert len({request.group for request in e.backend.requests}) == 1
        assert len({request.id for request in e.backend.requests}) == 6
        stream = Stream.of((await e.complete(prompt=["a", "b", "c"], n=2, max_tokens=9, stream=True)).text)
        assert [stream.text(index) for index in range(6)] == ["a0", "a1", "b0", "b1", "c0", "c1"]
        assert e.backend.busy == 0


async def test_token_ids_are_taken_as_they_are(checkpoint: Path) -> None:
    async with edge(checkpoint, saying("x")) as e:
        await e.complete(prompt=[2, 105, 200])
        await e.complete(prompt=[[5], [6, 7]])
        assert [request.prompt for request in e.backend.requests] == [(2, 105, 200), (5,), (6, 7)]


async def test_an_empty_prompt_starts_from_bos(checkpoint: Path) -> None:
    async with edge(checkpoint, saying("x")) as e:
        assert (await e.complete(prompt="")).status_code == 200
        assert e.backend.requests[0].prompt == (2,)


async def test_a_stop_string_across_canvases_cuts_and_frees_the_slot(checkpoint: Path) -> None:
    """The string begins at the end of the first canvas; the engine would go on for thirty more."""
    text = "0123456789abcdSTOP" + "x" * 400
    async with edge(checkpoint, saying(text)) as e:
        answer = (await e.complete(max_tokens=450, stop=["STOP", "never"])).json()
        assert answer["choices"][0]["text"] == "0123456789abcd"
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert answer["usage"]["completion_tokens"] == 18
        assert answer["usage"]["easel"]["canvases"] == 2
        assert e.backend.busy == 0
        stream = Stream.of((await e.complete(max_tokens=450, stop="STOP", stream=True)).text)
        assert stream.text() == "0123456789abcd"
        assert stream.done
        assert e.backend.busy == 0


async def test_characters_are_whole_across_canvases(checkpoint: Path) -> None:
    text = "é" * 7 + "a" + "€" * 20  # the second canvas begins inside a character
    async with edge(checkpoint, saying(text)) as e:
        stream = Stream.of((await e.complete(max_tokens=200, stream=True)).text)
        assert stream.text() == text
        assert "\ufffd" not in str(stream.events)


async def test_control_tokens_are_not_part_of_the_text(checkpoint: Path) -> None:
    script = Script(answer=lambda request: (*spell("a"), 105, 98, *spell("b")))
    async with edge(checkpoint, script) as e:
        answer = (await e.complete(max_tokens=9)).json()
        assert answer["choices"][0]["text"] == "ab"
        assert answer["usage"]["completion_tokens"] == 4


async def test_a_deadline_ends_an_answer_and_says_so(checkpoint: Path) -> None:
    script = Script(steps=lambda request, canvas: 48)
    async with edge(checkpoint, script, api={"request_timeout_s": 0.05}, step_s=0.002) as e:
        answer = (await e.complete(max_tokens=400)).json()
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["choices"][0]["easel"]["finish_reason"] == "deadline"
        assert answer["choices"][0]["easel"]["canvases"][-1]["stop"] == "deadline"


async def test_sampling_reaches_the_engine(checkpoint: Path) -> None:
    async with edge(checkpoint, saying("x")) as e:
        for body in ({"seed": 7, "temperature": 0.5}, {"seed": -1}, {"temperature": 0}, {}, {}):
            await e.complete(**body)
        seeds = [request.sampling.seed for request in e.backend.requests]
        assert seeds[:3] == [7, 2**64 - 1, 0]
        assert seeds[3] != seeds[4]
        assert [request.sampling.temperature for request in e.backend.requests] == [0.5, 1.0, 0.0, 1.0, 1.0]


async def test_trace_context_travels_along(checkpoint: Path) -> None:
    async with edge(checkpoint, saying("x")) as e:
        trace = f"00-{'a' * 32}-{'b' * 16}-01"
        e.client.headers["traceparent"] = trace
        await e.complete()
        e.client.headers["traceparent"] = "00-zz"
        await e.complete()
        assert [request.traceparent for request in e.backend.requests] == [trace, None]


async def test_an_error_before_the_first_event_has_a_status_of_its_own(checkpoint: Path) -> None:
    class Full(EngineBackend):
        async def generate(self, request: GenerationRequest):  # type: ignore[no-untyped-def,override]
            raise QueueFull("Full.", retry_after_s=1.5)
            yield

    async with edge(checkpoint, backend=Full(FakeEngine())) as e:
        for stream in (False, True):
            response = await e.complete(stream=stream)
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "server_is_overloaded"
            assert response.headers["retry-after"] == "2"
            assert response.headers["retry-after-ms"] == "1500"
            assert "x-should-retry" not in response.headers


async def test_an_error_inside_a_stream_is_its_last_event(checkpoint: Path) -> None:
    def fail(request: GenerationRequest, canvas: int) -> EngineFailed | None:
        return EngineFailed("It broke.") if canvas == 1 and request.choice == 1 else None

    async with edge(checkpoint, Script(fail=fail)) as e:
        response = await e.complete(max_tokens=400, n=2, stream=True)
        assert response.status_code == 200
        stream = Stream.of(response.text)
        assert not stream.done
        error = {"message": "It broke.", "type": "server_error", "param": None, "code": "engine_failed"}
        assert stream.events[-1] == {"error": error}
        assert e.backend.busy == 0
        whole = await e.complete(max_tokens=400, n=2)
        assert whole.status_code == 500
        assert whole.json() == {"error": error}
        assert e.backend.busy == 0


async def test_a_backend_that_ends_without_a_word_is_an_error(checkpoint: Path) -> None:
    class Silent(EngineBackend):
        async def generate(self, request: GenerationRequest):  # type: ignore[no-untyped-def,override]
            async for event in self.engine.generate(request):
                yield event
                return

    fake = FakeEngine(step_s=0.0)
    await fake.start()
    async with edge(checkpoint, backend=Silent(fake)) as e:
        assert (await e.complete()).json()["error"]["code"] == "engine_failed"
        stream = Stream.of((await e.complete(stream=True)).text)
        assert stream.events[-1]["error"]["code"] == "engine_failed"
        assert not stream.done
    await fake.stop()


async def test_silence_is_filled_with_comments(checkpoint: Path) -> None:
    script = Script(answer=lambda request: spell("done"), steps=lambda request, canvas: 20)
    async with edge(checkpoint, script, api={"heartbeat_s": 0.01}, step_s=0.01) as e:
        stream = Stream.of((await e.complete(stream=True)).text)
        assert ": keep-alive" in stream.comments
        assert stream.text() == "done"
        assert stream.done


async def test_lists_and_finds_models_also_with_a_slash(checkpoint: Path) -> None:
    async with edge(checkpoint, saying("x")) as e:
        listed = (await e.client.get("/v1/models")).json()
        assert [model["id"] for model in listed["data"]] == ["easel", "easel/alias"]
        assert (await e.client.get("/v1/models/easel/alias")).json() == listed["data"][1]
        missing = await e.client.get("/v1/models/easel/other")
        assert missing.status_code == 404
        assert missing.json()["error"]["code"] == "model_not_found"
        assert (await e.complete(model="easel/alias")).json()["model"] == "easel"


async def test_probes_and_version(checkpoint: Path) -> None:
    async with edge(checkpoint) as e:
        assert (await e.client.get("/healthz")).json() == {"status": "ok"}
        assert (await e.client.get("/readyz")).json() == {"status": "ready"}
        assert (await e.client.get("/version")).json()["version"] == __version__
        assert (await e.client.head("/healthz")).status_code == 200
        await e.backend.engine.stop()
        response = await e.client.get("/readyz")
        assert response.status_code == 503
        assert response.json()["error"] == {
            "message": "The engine is stopped.",
            "type": "service_unavailable_error",
            "param": None,
            "code": "model_not_ready",
        }
        assert response.headers["retry-after"] == "1"
        assert (await e.client.get("/healthz")).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "allow"),
    [
        ("GET", "/", 404, "not_found", None),
        ("GET", "/v1/nothing", 404, "not_found", None),
        ("POST", "/v1/completions/", 404, "not_found", None),
        ("GET", "/docs", 404, "not_found", None),
        ("GET", "/v1/completions", 405, "method_not_allowed", "POST"),
        ("OPTIONS", "/v1/chat/completions", 405, "method_not_allowed", "POST"),
        ("DELETE", "/v1/models/easel", 405, "method_not_allowed", "GET, HEAD"),
    ],
)
async def test_what_is_not_there_is_refused_in_openais_shape(
    checkpoint: Path, method: str, path: str, status: int, code: str, allow: str | None
) -> None:
    async with edge(checkpoint) as e:
        response = await e.client.request(method, path)
        assert response.status_code == status
        assert response.json()["error"]["code"] == code
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
        if allow:
            assert sorted(response.headers["allow"].split(", ")) == sorted(allow.split(", "))


async def test_browsers_may_call_only_where_the_settings_say_so(checkpoint: Path) -> None:
    asks = {"origin": "https://here.example", "access-control-request-method": "POST"}
    async with edge(checkpoint, api={"cors_origins": ["https://here.example"]}) as e:
        response = await e.client.options("/v1/completions", headers=asks)
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == "https://here.example"
        refusal = await e.client.get("/nothing", headers={"origin": "https://here.example"})
        assert refusal.headers["access-control-allow-origin"] == "https://here.example"
        other = await e.client.get("/healthz", headers={"origin": "https://there.example"})
        assert "access-control-allow-origin" not in other.headers
    async with edge(checkpoint) as e:
        response = await e.client.options("/v1/completions", headers=asks)
        assert response.status_code == 405
        assert not [name for name in response.headers if name.startswith("access-control")]


async def test_nothing_blocks_the_event_loop(checkpoint: Path) -> None:
    """blockbuster raises wherever code on the loop sleeps, reads a file or waits for a lock or socket."""
    async with edge(checkpoint, saying(TEXT)) as e:
        with blockbuster_ctx():
            for body in ({}, {"stream": True}, {"prompt": "x" * 400, "user": "u" * 5000}, {"prompt": 5}):
                assert (await e.complete(**body)).status_code in {200, 400}
            assert (await e.chat(stream=True)).status_code == 200
            assert (await e.client.get("/readyz")).status_code == 200

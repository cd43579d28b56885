"""Streams of the openai SDK in a closed loop: each asks for the next answer when it has the last one.

    .venv/bin/python ops/benches/streams.py --url http://127.0.0.1:8000/v1 --streams 8 --seconds 30 --steps 16

Works against any OpenAI API: without `--steps` and `--extra` only fields that `vllm serve` has too are sent, with
`--chunk-tokens` saying what a chunk is, and `--no-seed` where it serves diffusion, for which it takes none. Clients are
processes of their own, so that the SDK does not hold up what is measured; prompts are random token ids, no two alike,
so that no prefix cache helps.

Tokens of an answer (its `usage`) are spread evenly over its chunks, and those of a chunk over the time since the one
before (since the request was sent, for the first): eight canvases that end together at a window's edge would otherwise
be 2 % of it. Times are of the machine's monotonic clock, in seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import time
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

STREAMS_A_PROCESS = 16
AFTER_AN_ERROR_S = 0.25
"""A client that was refused asks again after this, so that refusals do not become the load."""
START_S = 0.5


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked, by how many, for how long."""

    url: str
    """Up to `/v1`."""
    streams: int
    seconds: float
    """New requests begin for so long; those that have begun are read to their end."""
    model: str = "easel"
    max_tokens: int = 1024
    prompt_tokens: int = 512
    token_ids: tuple[int, int] = (1000, 60_000)
    """Prompts are made of these."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Fields of the body that OpenAI has not."""
    delay_s: float = 0.0
    """The first requests begin so long after the start."""
    most_requests: int | None = None
    """Of each stream; None: as many as fit."""
    seed: int = 0
    seeded: bool = True
    """Send each request a seed of its own. vLLM refuses one for diffusion."""
    timeout_s: float = 300.0


@dataclass(slots=True)
class Answer:
    """One request as its client saw it."""

    began: float
    ended: float = 0.0
    chunks: list[float] = field(default_factory=list)
    """When each chunk with text came."""
    tokens: int = 0
    prompt_tokens: int = 0
    canvases: int | None = None
    """None: the service does not say."""
    steps: int | None = None
    error: str = ""
    """The code of its error, or what broke. Empty: it was answered."""
    said: str = ""
    """Of an error, the server's words."""


class Clients:
    """Client processes around one load: made ready on entry, they begin at `begin`, `answers` waits for them."""

    def __init__(self, *loads: Load) -> None:
        self._parts = [part for load in loads for part in split(load)]
        self._running: list[tuple[Any, Connection]] = []
        self.began = 0.0
        self.busiest = 0.0
        """Part of a core that the busiest client process took: near 1, it is the clients that are measured."""

    def __enter__(self) -> Clients:
        context = multiprocessing.get_context("spawn")
        for load in self._parts:
            ours, theirs = context.Pipe()
            process = context.Process(target=_client_process, args=(load, theirs), daemon=True)
            process.start()
            theirs.close()
            self._running.append((process, ours))
        for _, connection in self._running:
            connection.recv()
        return self

    def begin(self) -> float:
        """Start all of them. Returns when that is, on the monotonic clock."""
        self.began = time.monotonic() + START_S
        for _, connection in self._running:
            connection.send(self.began)
        return self.began

    def answers(self) -> list[Answer]:
        """Of all, when the last one has ended."""
        told = [connection.recv() for _, connection in self._running]
        self.busiest = round(max(cores for _, cores in told), 3)
        return [answer for answers, _ in told for answer in answers]

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for process, connection in self._running:
            connection.close()
            if kind is not None:
                process.terminate()
            process.join()


def split(load: Load) -> list[Load]:
    """The same load by client process."""
    count = max(1, min(-(-load.streams // STREAMS_A_PROCESS), os.cpu_count() or 1))
    shares = [load.streams // count + (index < load.streams % count) for index in range(count)]
    return [
        replace(load, streams=share, seed=1_000_000 * load.seed + 10_000 * (index + 1))
        for index, share in enumerate(shares)
        if share
    ]


def run(*loads: Load) -> tuple[list[Answer], float]:
    """Answers, and when the load began."""
    with Clients(*loads) as clients:
        began = clients.begin()
        return clients.answers(), began


def _client_process(load: Load, connection: Connection) -> None:
    import openai  # noqa: F401  # a second or two, before the clock runs

    connection.send("ready")
    began = connection.recv()
    cpu, at = time.process_time(), time.monotonic()
    answers = asyncio.run(_streams(load, began))
    connection.send((answers, (time.process_time() - cpu) / (time.monotonic() - at)))


async def _streams(load: Load, began: float) -> list[Answer]:
    import httpx
    from openai import AsyncOpenAI

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=load.streams)
    http = httpx.AsyncClient(limits=limits, timeout=load.timeout_s, trust_env=False)
    answers: list[Answer] = []

    async def stream(number: int) -> None:
        await asyncio.sleep(max(0.0, began + load.delay_s - time.monotonic()))
        until, count = began + load.delay_s + load.seconds, 0
        while time.monotonic() < until and (load.most_requests is None or count < load.most_requests):
            answer = await one(client, load, 100_000_000 * (number + 1) + load.seed + count)
            answers.append(answer)
            count += 1
            if answer.error:
                await asyncio.sleep(AFTER_AN_ERROR_S)

    async with AsyncOpenAI(base_url=load.url, api_key="unused", max_retries=0, http_client=http) as client:
        await asyncio.gather(*(stream(number) for number in range(load.streams)))
    return answers


async def one(client: Any, load: Load, seed: int) -> Answer:
    """One request, streamed to its end or its error."""
    import httpx
    import openai

    prompt = random.Random(seed).choices(range(*load.token_ids), k=load.prompt_tokens)
    answer = Answer(time.monotonic())
    try:
        parts = await client.completions.create(
            model=load.model,
            prompt=prompt,
            max_tokens=load.max_tokens,
            seed=seed % 2**31 if load.seeded else openai.NOT_GIVEN,
            stream=True,
            stream_options={"include_usage": True},
            extra_body=load.extra,
        )
        async for part in parts:
            if part.choices and part.choices[0].text:
                answer.chunks.append(time.monotonic())
            if part.usage is not None:
                answer.tokens, answer.prompt_tokens = part.usage.completion_tokens, part.usage.prompt_tokens
                own = (part.usage.model_extra or {}).get("easel") or {}
                answer.canvases, answer.steps = own.get("canvases"), own.get("denoising_steps")
    except openai.APIError as error:
        answer.error, answer.said = str(error.code or type(error).__name__), str(error)[:300]
    except httpx.HTTPError as error:
        answer.error = type(error).__name__
    answer.ended = time.monotonic()
    if not answer.tokens and not answer.error:
        answer.error = "ended without usage"
    return answer


def percentile(values: list[float], part: float) -> float | None:
    """None of nothing."""
    found = sorted(values)
    return round(found[min(len(found) - 1, int(part * len(found)))], 4) if found else None


def tokens_of_a_chunk(answer: Answer, chunk_tokens: int) -> float:
    """`chunk_tokens` for an answer that broke, which says nothing of its own."""
    return answer.tokens / len(answer.chunks) if answer.tokens and answer.chunks else chunk_tokens


def tokens_between(answers: list[Answer], start: float, end: float, chunk_tokens: int = 256) -> float:
    """Tokens that reached clients then."""
    return sum(
        tokens_of_a_chunk(answer, chunk_tokens) * sum(start <= at < end for at in answer.chunks) for answer in answers
    )


def tokens_made_between(answers: list[Answer], start: float, end: float, chunk_tokens: int = 256) -> float:
    """The same with each chunk spread over the time that it took: for a steady load, without the edges' noise."""
    found = 0.0
    for answer in answers:
        each = tokens_of_a_chunk(answer, chunk_tokens)
        for before, at in pairwise([answer.began, *answer.chunks]):
            inside = min(at, end) - max(before, start)
            if inside > 0:
                found += each * inside / (at - before)
    return found


def gaps_between(answers: list[Answer], start: float, end: float) -> list[float]:
    """Seconds from one chunk of a stream to its next, of those that came then."""
    return [after - before for a in answers for before, after in pairwise(a.chunks) if start <= after < end]


def summary(answers: list[Answer], start: float, end: float, chunk_tokens: int = 256) -> dict[str, Any]:
    """What clients saw in a window; errors and usage are of every request that began before its end.

    `ended_tokens_per_s` is by the usage of requests that ended in it: rougher, and all there is where tokens have no
    text.
    """
    seen = [answer for answer in answers if answer.began < end]
    whole = [answer for answer in seen if not answer.error]
    failed = [answer for answer in seen if answer.error]
    first = [a.chunks[0] - a.began for a in whole if a.chunks and start <= a.chunks[0] < end]
    gaps = gaps_between(answers, start, end)
    canvases = sum(answer.canvases or 0 for answer in whole)
    ended = [answer for answer in whole if start <= answer.ended < end]
    return {
        "window_s": round(end - start, 2),
        "tokens_per_s": round(tokens_made_between(answers, start, end, chunk_tokens) / (end - start), 1),
        "requests_ended": len(ended),
        "ended_tokens_per_s": round(sum(answer.tokens for answer in ended) / (end - start), 1),
        "chunks": sum(start <= at < end for answer in answers for at in answer.chunks),
        "first_chunk_p50_s": percentile(first, 0.5),
        "first_chunk_p99_s": percentile(first, 0.99),
        "between_chunks_p50_s": percentile(gaps, 0.5),
        "between_chunks_p99_s": percentile(gaps, 0.99),
        "between_chunks_max_s": percentile(gaps, 1.0),
        "prompt_tokens": round(sum(a.prompt_tokens for a in whole) / len(whole), 1) if whole else None,
        "answer_tokens": round(sum(a.tokens for a in whole) / len(whole), 1) if whole else None,
        "canvases_a_request": round(canvases / len(whole), 2) if canvases else None,
        "steps_a_canvas": round(sum(a.steps or 0 for a in whole) / canvases, 2) if canvases else None,
        "asked": len(seen),
        "failed": dict(Counter(answer.error for answer in failed)),
        "first_error": next((answer.said for answer in failed if answer.said), None),
        "failed_before_any_text": sum(not answer.chunks for answer in failed),
    }


def forced(steps: int) -> dict[str, Any]:
    """The body's fields that make each canvas of Easel's take so many steps, and each answer all its tokens."""
    return {"ignore_eos": True, "easel": {"max_denoising_steps": steps, "confidence": 0}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", default="easel")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--warm", type=float, default=5.0, help="seconds before the window")
    parser.add_argument("--requests", type=int, help="most requests of each stream")
    parser.add_argument("--max-tokens", type=int, default=1024)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--token-ids", type=int, nargs=2, default=(1000, 60_000), metavar=("FROM", "TO"))
    parser.add_argument("--steps", type=int, help="Easel only: so many denoising steps for each canvas")
    parser.add_argument("--extra", type=json.loads, default={}, help="more fields of the body, as JSON")
    parser.add_argument("--no-seed", action="store_true", help="send no request a seed")
    parser.add_argument("--chunk-tokens", type=int, default=256, help="of a chunk whose answer broke")
    args = parser.parse_args()
    load = Load(
        url=args.url,
        streams=args.streams,
        seconds=args.warm + args.seconds,
        model=args.model,
        max_tokens=args.max_tokens,
        prompt_tokens=args.prompt_tokens,
        token_ids=tuple(args.token_ids),
        extra=(forced(args.steps) if args.steps else {"ignore_eos": True}) | args.extra,
        most_requests=args.requests,
        seeded=not args.no_seed,
    )
    answers, began = run(load)
    found = summary(answers, began + args.warm, began + args.warm + args.seconds, args.chunk_tokens)
    print(json.dumps({"load": asdict(load), **found}, indent=1))


if __name__ == "__main__":
    main()

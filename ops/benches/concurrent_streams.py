"""Sixteen streamed requests of different lengths at once, against the same ones alone: same text? how much faster?

    .venv/bin/easel serve --checkpoint embedded:tiny        (in another terminal)
    .venv/bin/python ops/benches/concurrent_streams.py --rounds 3

Prints one JSON object: for each round the seconds of both ways, whether every text agreed, and the ratio; medians at
the end. Clients run in this process, beside the server: on a small machine they share its cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import time
from statistics import median

from openai import AsyncOpenAI
from record import head

PROMPTS = [
    ("completion", "repeat: the quick brown fox jumps over the lazy dog\n"),
    ("completion", "reverse: canvas\n"),
    ("chat", "repeat: one canvas after the other, and then another one"),
    ("chat", "reverse: noise"),
    ("completion", "an open-ended text that asks for nothing in particular\n"),
    ("chat", "What can you do?"),
    ("completion", "repeat: short\n"),
    ("chat", "repeat: 0123456789 0123456789 0123456789 0123456789"),
]


async def stream(client: AsyncOpenAI, model: str, index: int) -> tuple[str, float]:
    """Text and seconds to the first piece of it, of the request with that number."""
    kind, prompt = PROMPTS[index % len(PROMPTS)]
    limits = {"max_tokens": 16 + 12 * index, "seed": index, "temperature": 0.7}
    began, first, text = time.perf_counter(), 0.0, ""
    if kind == "chat":
        chunks = await client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": prompt}], stream=True, **limits
        )
        async for chunk in chunks:
            piece = chunk.choices[0].delta.content or ""
            first = first or (time.perf_counter() - began if piece else 0.0)
            text += piece
    else:
        parts = await client.completions.create(model=model, prompt=prompt, stream=True, **limits)
        async for part in parts:
            first = first or time.perf_counter() - began
            text += part.choices[0].text
    return text, first


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    client = AsyncOpenAI(base_url=args.url, api_key="unused", max_retries=0)
    model = (await client.models.list()).data[0].id
    await stream(client, model, 0)
    rounds = []
    for _ in range(args.rounds):
        began = time.perf_counter()
        alone = [await stream(client, model, i) for i in range(args.requests)]
        middle = time.perf_counter()
        together = await asyncio.gather(*(stream(client, model, i) for i in range(args.requests)))
        ended = time.perf_counter()
        rounds.append(
            {
                "one_at_a_time_s": round(middle - began, 3),
                "all_at_once_s": round(ended - middle, 3),
                "ratio": round((middle - began) / (ended - middle), 2),
                "texts_that_agree": sum(a[0] == b[0] for a, b in zip(alone, together, strict=True)),
                "median_first_text_alone_s": round(median(first for _, first in alone), 3),
                "median_first_text_together_s": round(median(first for _, first in together), 3),
            }
        )
    print(
        json.dumps(
            {
                **head(f"{os.cpu_count()} shared cores, {platform.machine()}, {platform.system()}"),
                "requests": args.requests,
                "rounds": rounds,
                "median_ratio": median(r["ratio"] for r in rounds),
                "all_texts_agree": all(r["texts_that_agree"] == args.requests for r in rounds),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    asyncio.run(main())

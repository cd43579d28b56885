"""Mixed load for a running Easel, as many kinds of clients make it.

Owns: the kinds and their mix. Refuses to know: what is measured of it.

Every kind is there because something counts it: streams and whole answers, chats that share a long beginning, several
choices, every tier, requests that are wrong, keys that are wrong, clients that leave.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

INSTRUCTIONS = "Answer in order. " * 20
"""Longer than the 256 tokens that are kept as a prefix."""
PAUSE_S = 0.5
"""After a refusal, so that nobody spins."""


@dataclass
class Mixed:
    """So many clients that ask again and again until `stop`. `keys`: API keys they take in turn; none: without."""

    url: str
    clients: int = 4
    keys: Sequence[str] = ()
    tiers: Sequence[str] = ("fast", "balanced", "quality")
    max_tokens: int = 300
    seed: int = 0
    only: str = ""
    """The one kind that is asked for, by its name; empty: all of them, mixed. `long` is for this alone."""
    seen: Counter[str] = field(default_factory=Counter)
    """Answers by kind and outcome, such as `chat 200`."""
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self) -> Iterator[Mixed]:
        """Load for as long as the block lasts."""
        threads = [threading.Thread(target=self._client, args=(number,)) for number in range(self.clients)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def _client(self, number: int) -> None:
        draw = random.Random(self.seed + number)
        headers = {"Authorization": f"Bearer {self.keys[number % len(self.keys)]}"} if self.keys else {}
        kinds = [self._whole, self._stream, self._chat, self._choices, self._leave, self._wrong, self._stranger]
        weights = [4, 5, 4, 1, 1, 0.5, 0.3 if self.keys else 0]
        if self.only:
            kinds, weights = [getattr(self, f"_{self.only}")], [1]
        with httpx.Client(base_url=self.url, headers=headers, timeout=120, trust_env=False) as http:
            while not self._stop.is_set():
                kind = draw.choices(kinds, weights)[0]
                try:
                    outcome = str(kind(http, draw))
                except httpx.HTTPError as error:
                    outcome = type(error).__name__
                self.seen[f"{kind.__name__.strip('_')} {outcome}"] += 1
                if not outcome.startswith("2"):
                    time.sleep(PAUSE_S)

    def _body(self, draw: random.Random, **fields: Any) -> dict[str, Any]:
        body = {
            "model": "easel",
            "prompt": f"reverse: {draw.randrange(10**9)}",
            "max_tokens": draw.choice((32, self.max_tokens // 2, self.max_tokens)),
            "seed": draw.randrange(2**31),
        }
        if self.tiers:
            body["easel"] = {"tier": draw.choice(self.tiers)}
        return body | fields

    def _whole(self, http: httpx.Client, draw: random.Random) -> int:
        return http.post("/v1/completions", json=self._body(draw)).status_code

    def _stream(self, http: httpx.Client, draw: random.Random) -> int:
        body = self._body(
            draw,
            stream=True,
            stream_options={"include_usage": True, "include_progress": True, "progress_hz": 5.0},
        )
        with http.stream("POST", "/v1/completions", json=body) as answer:
            answer.read()
            return answer.status_code

    def _chat(self, http: httpx.Client, draw: random.Random) -> int:
        messages = [
            {"role": "user", "content": INSTRUCTIONS},
            {"role": "assistant", "content": "I will."},
            {"role": "user", "content": f"reverse: {draw.randrange(10**6)}"},
        ]
        body = self._body(draw, messages=messages)
        del body["prompt"]
        return http.post("/v1/chat/completions", json=body).status_code

    def _choices(self, http: httpx.Client, draw: random.Random) -> int:
        return http.post("/v1/completions", json=self._body(draw, n=2, max_tokens=32)).status_code

    def _leave(self, http: httpx.Client, draw: random.Random) -> int:
        """Leaves with the first bytes of a stream in hand."""
        with http.stream("POST", "/v1/completions", json=self._body(draw, stream=True)) as answer:
            for _ in answer.iter_bytes():
                break
            return answer.status_code

    def _long(self, http: httpx.Client, draw: random.Random) -> int:
        """As long as it may be, without an end token to stop at."""
        return http.post(
            "/v1/completions", json=self._body(draw, max_tokens=self.max_tokens, ignore_eos=True)
        ).status_code

    def _wrong(self, http: httpx.Client, draw: random.Random) -> int:
        return http.post("/v1/completions", json=self._body(draw, temperature=-1)).status_code

    def _stranger(self, http: httpx.Client, draw: random.Random) -> int:
        headers = {"Authorization": "Bearer nobody"}
        return http.post("/v1/completions", json=self._body(draw), headers=headers).status_code

"""Log-probabilities on their way to a client: which text each token begins at, and when it may be sent.

A token is sent with the text that it begins: never before, so that what a stop string cuts off is cut off here too, and
a character made of several tokens comes with all of them. Owns: that, and both of OpenAI's shapes.
Refuses to know: where the numbers come from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from easel.protocol import TokenLogprob

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ChosenToken:
    """One token of an answer."""

    token_id: int
    offset: int
    """Characters of the answer's text before it."""
    logprob: TokenLogprob


class LogprobQueue:
    """Tokens of one choice whose text is not out yet."""

    def __init__(self) -> None:
        self._waiting: list[ChosenToken] = []
        self._length = 0
        self._sent = 0

    def add(self, token_id: int, logprob: TokenLogprob, text: str) -> None:
        """One more token, and the text that it completed, whether that can be sent or not."""
        self._waiting.append(ChosenToken(token_id, self._length, logprob))
        self._length += len(text)

    def sent(self, text: str) -> tuple[ChosenToken, ...]:
        """So much more text goes out: what goes with it."""
        self._sent += len(text)
        count = sum(token.offset < self._sent for token in self._waiting)  # offsets never fall
        ready, self._waiting = self._waiting[:count], self._waiting[count:]
        return tuple(ready)

    def end(self, text: str, cut: bool) -> tuple[ChosenToken, ...]:
        """The last text goes out, and all that is left. `cut`: a stop string took the rest away."""
        ready = self.sent(text)
        return ready if cut else (*ready, *self._waiting)


def for_completion(tokens: Sequence[ChosenToken], show: Callable[[int], str], raw: Callable[[int], bytes]) -> Json:
    """The shape of completions. `show`: the text of one token; `raw`: its bytes, which name it where they are no
    character alone, so that no two tokens of a position have one name."""
    show = partial(_named, show, raw)
    return {
        "tokens": [show(token.token_id) for token in tokens],
        "token_logprobs": [_finite(token.logprob.logprob) for token in tokens],
        "top_logprobs": [{show(other): _finite(value) for other, value in token.logprob.top} for token in tokens],
        "text_offset": [token.offset for token in tokens],
    }


def for_chat(tokens: Sequence[ChosenToken], show: Callable[[int], str], raw: Callable[[int], bytes]) -> Json:
    """The shape of chats. `raw`: the bytes of one token, which alone need not be a character."""

    def one(token_id: int, value: float) -> Json:
        return {"token": show(token_id), "logprob": _finite(value), "bytes": list(raw(token_id))}

    content = [
        {
            **one(token.token_id, token.logprob.logprob),
            "top_logprobs": [one(other, value) for other, value in token.logprob.top],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _named(show: Callable[[int], str], raw: Callable[[int], bytes], token_id: int) -> str:
    try:
        raw(token_id).decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw(token_id))
    return show(token_id)


def _finite(value: float) -> float:
    """JSON has no infinity, and OpenAI's API says -9999 for what cannot be."""
    return max(value, -9999.0)

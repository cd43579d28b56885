"""Log-probabilities on their way to a client: which text each token begins at, and when it may be sent.

A token is sent with the text that it begins: never before, so that what a stop string cuts off is cut off here too, and
a character made of several tokens comes with all of them. Owns: that, and both of OpenAI's shapes.
Refuses to know: where the numbers come from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

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

    def pass_over(self, text: str) -> None:
        """So much text that no token begins: what was left of a broken character."""
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


class TokenNames(Protocol):
    """What single tokens are called: `easel.api.prompt.PromptEncoder`."""

    token_text: Callable[[int], str]
    token_bytes: Callable[[int], bytes]


def for_completion(tokens: Sequence[ChosenToken], names: TokenNames) -> Json:
    """The shape of completions. A token that is no character alone goes by its bytes, so that no two tokens of a
    position have one name."""

    def name(token_id: int) -> str:
        raw = names.token_bytes(token_id)
        try:
            raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
        return names.token_text(token_id)

    return {
        "tokens": [name(token.token_id) for token in tokens],
        "token_logprobs": [_finite(token.logprob.logprob) for token in tokens],
        "top_logprobs": [{name(other): _finite(value) for other, value in token.logprob.top} for token in tokens],
        "text_offset": [token.offset for token in tokens],
    }


def for_chat(tokens: Sequence[ChosenToken], names: TokenNames) -> Json:
    """The shape of chats."""

    def one(token_id: int, value: float) -> Json:
        raw = list(names.token_bytes(token_id))
        return {"token": names.token_text(token_id), "logprob": _finite(value), "bytes": raw}

    content = [
        {
            **one(token.token_id, token.logprob.logprob),
            "top_logprobs": [one(other, value) for other, value in token.logprob.top],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _finite(value: float) -> float:
    """JSON has no infinity, and OpenAI's API says -9999 for what cannot be."""
    return max(value, -9999.0)

"""Turns token ids that arrive canvas by canvas into text, and never cuts a character in two.

Owns: the choice between two ways, and the state of one answer's text.

- A byte-level tokenizer: each token is some bytes, and an incremental UTF-8 decoder does the rest. Exact for any ids.
- Any other: decode a window of tokens before and after, send the difference, hold back up to three tokens while the
  end is not a whole character.

Control tokens are left out of the text, as users of OpenAI's API expect.
Refuses to know: stop strings, canvases, where tokens come from.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable
from typing import Protocol

from tokenizers import Tokenizer

REPLACEMENT = "\ufffd"
BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")
"""How vocabularies that fall back on bytes name one."""
MOST_HELD = 3
"""A character has at most four bytes, so at most three tokens can be waiting for the rest of one."""


class Detokenizer(Protocol):
    """The text of one answer."""

    def add(self, token_ids: Iterable[int]) -> str:
        """The text that these tokens complete."""

    def end(self) -> str:
        """What is left of an incomplete character, as replacement characters."""


def make_detokenizers(tokenizer: Tokenizer, control: frozenset[int]) -> Callable[[], Detokenizer]:
    """What makes a detokenizer for each answer. `control`: ids that never appear in text."""
    decoder = json.loads(tokenizer.to_str())["decoder"]
    if decoder is not None and decoder["type"] == "ByteLevel":
        table = _bytes_by_id(tokenizer)
        for token in control:
            table[token] = b""
        return lambda: ByteLevelDetokenizer(table)
    return lambda: WindowDetokenizer(tokenizer, control)


def make_token_text(tokenizer: Tokenizer, control: frozenset[int]) -> Callable[[int], str]:
    """What shows a single token: control tokens by their name, bytes that are no character alone as replacement
    characters, ids that are not in the vocabulary as nothing."""
    decoder = json.loads(tokenizer.to_str())["decoder"]
    table = _bytes_by_id(tokenizer) if decoder is not None and decoder["type"] == "ByteLevel" else None
    known: dict[int, str] = {}

    def text(token: int) -> str:
        if token not in known:
            name = tokenizer.id_to_token(token)
            if name is None:
                return ""
            if token in control:
                known[token] = name
            elif table is not None:
                known[token] = table[token].decode("utf-8", "replace")
            else:  # the second of two: some decoders drop a space in front of the first
                alone = str(tokenizer.decode([token], skip_special_tokens=False))
                twice = str(tokenizer.decode([token, token], skip_special_tokens=False))
                known[token] = twice[len(alone) :]
        return known[token]

    return text


def make_token_bytes(tokenizer: Tokenizer, control: frozenset[int]) -> Callable[[int], bytes]:
    """The bytes of a single token: of a control token those of its name, of an id outside the vocabulary none."""
    decoder = json.loads(tokenizer.to_str())["decoder"]
    table = _bytes_by_id(tokenizer) if decoder is not None and decoder["type"] == "ByteLevel" else {}
    text = make_token_text(tokenizer, control)

    def raw(token: int) -> bytes:
        name = tokenizer.id_to_token(token) or ""
        if token in control:
            return name.encode()
        if token in table:
            return table[token]
        single = BYTE_TOKEN.fullmatch(name)
        return bytes([int(single[1], 16)]) if single else text(token).encode()

    return raw


class ByteLevelDetokenizer:
    """See the module. Ids that are not in the vocabulary have no text, as in the library."""

    def __init__(self, bytes_by_id: dict[int, bytes]) -> None:
        self._bytes_by_id = bytes_by_id
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token_ids: Iterable[int]) -> str:
        return self._decoder.decode(b"".join(self._bytes_by_id.get(token, b"") for token in token_ids))

    def end(self) -> str:
        return self._decoder.decode(b"", final=True)


class WindowDetokenizer:
    """See the module. `_ids[:_read]` has been sent; `_ids` begins with the tokens of the last piece sent, because some
    decoders treat the first token of a text differently from the rest."""

    def __init__(self, tokenizer: Tokenizer, control: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._control = control
        self._ids: list[int] = []
        self._read = 0

    def add(self, token_ids: Iterable[int]) -> str:
        self._ids += [token for token in token_ids if token not in self._control]
        whole = len(self._ids)
        for end in range(whole, max(self._read, whole - MOST_HELD - 1), -1):
            text = self._decode(self._ids[:end])
            if not text.endswith(REPLACEMENT):
                return self._send(text, end)
        if whole - self._read > MOST_HELD:  # it is not an incomplete character, it is no character at all
            return self._send(self._decode(self._ids), whole)
        return ""

    def end(self) -> str:
        return self._send(self._decode(self._ids), len(self._ids))

    def _send(self, text: str, end: int) -> str:
        new = text[len(self._decode(self._ids[: self._read])) :]
        self._ids = self._ids[self._read :]
        self._read = end - self._read
        return new

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False)) if ids else ""


def _bytes_by_id(tokenizer: Tokenizer) -> dict[int, bytes]:
    """The bytes of every token of a byte-level vocabulary."""
    alphabet = byte_alphabet()
    table = {}
    for token, token_id in tokenizer.get_vocab(with_added_tokens=True).items():
        # A token with a character from outside the alphabet was added as text and stands for itself.
        plain = all(character in alphabet for character in token)
        table[token_id] = bytes(alphabet[character] for character in token) if plain else token.encode()
    return table


def byte_alphabet() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for.

    Bytes that Latin-1 can print stand for themselves, the other 68 have the characters from U+0100 on.
    """
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(shown)]
    return {chr(byte): byte for byte in shown} | {chr(0x100 + index): byte for index, byte in enumerate(hidden)}

"""Turns prompts and chats into token ids in which no user text can be a control token.

Owns: the tokenizer. A control token in a prompt comes from the chat template, from the `<bos>` in front of a string, or
from a client that sends token ids; the same characters inside a string are characters. To keep the borders between
template and content as the checkpoint was trained on them, text between two control tokens is encoded in one go.

Refuses to know: limits of a request, choices, HTTP. Called from worker threads where texts are long.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from easel.api.answer_text import CLOSES, OPENS, Marks
from easel.api.detokenizer import Detokenizer, make_detokenizers, make_token_bytes, make_token_text
from easel.api.model_card import ModelCard
from easel.api.template import ChatTemplate, Message, Piece, read_chat_template
from easel.errors import ConfigurationError, ContextLengthExceeded, InvalidRequest, UnsupportedParameter


class PromptEncoder:
    """One model's way from text to token ids and back. Thread-safe."""

    def __init__(self, card: ModelCard, tokenizer: Tokenizer, template: ChatTemplate | None) -> None:
        """Raises `ConfigurationError` where text could not be told from control tokens."""
        self._card = card
        self._template = template
        special = {i: t.content for i, t in tokenizer.get_added_tokens_decoder().items() if t.special}
        for token in card.eos | ({card.bos} if card.bos is not None else set()):
            text = tokenizer.id_to_token(token)
            if text is None:
                raise ConfigurationError(f"generation_config.json names token {token}, the tokenizer has none", "eos")
            if token not in special:
                tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False)])
                special[token] = text
        tokenizer.encode_special_tokens = True
        tokenizer.no_padding()
        tokenizer.no_truncation()
        for token, text in special.items():
            if token in tokenizer.encode(text, add_special_tokens=False).ids:
                raise ConfigurationError(f"the text {text!r} always becomes control token {token}", "checkpoint")
        self._tokenizer = tokenizer
        self._ids = {text: token for token, text in special.items()}
        self._pattern = re.compile("|".join(re.escape(text) for text in sorted(self._ids, key=len, reverse=True)))
        self._control = frozenset(special)
        unknown = getattr(tokenizer.model, "unk_token", None)
        self._forbidden = frozenset(token for text, token in self._ids.items() if text != unknown)
        self._most_characters = _most_characters(tokenizer, self._ids)
        self.make_detokenizer: Callable[[], Detokenizer] = make_detokenizers(tokenizer, frozenset(special))
        """Makes what turns one answer's token ids into text."""
        self.token_text: Callable[[int], str] = make_token_text(tokenizer, frozenset(special))
        """Shows a single token."""
        self.token_bytes: Callable[[int], bytes] = make_token_bytes(tokenizer, frozenset(special))
        """The bytes of a single token."""
        self.marks = Marks(self._ids[OPENS], self._ids[CLOSES]) if {OPENS, CLOSES} <= self._ids.keys() else None
        """The tokens around reasoning, where the vocabulary has them."""

    @property
    def bos(self) -> tuple[int, ...]:
        """What stands in front of a prompt: one token, or none."""
        return () if self._card.bos is None else (self._card.bos,)

    def plain(self, text: str, param: str) -> tuple[int, ...]:
        """Token ids of a text, and nothing around them. Raises `ContextLengthExceeded` as `text`."""
        return tuple(self._encode([Piece(text, trusted=False)], param))

    def text(self, text: str, param: str) -> tuple[int, ...]:
        """Token ids of a prompt, `<bos>` in front. An empty one is `<bos>` alone, as OpenAI's API has it.

        Raises:
            ContextLengthExceeded: so long that it is not even encoded.
            InvalidRequest: empty, and the model has no `<bos>`.
        """
        ids = (*self.bos, *self.plain(text, param))
        if not ids:
            raise InvalidRequest(f"Invalid '{param}': this model needs at least one token to start from.", param)
        return ids

    def tokens(self, token_ids: Sequence[int], param: str) -> tuple[int, ...]:
        """Token ids as they are. Raises `InvalidRequest` for none, and for an id that is not in the vocabulary."""
        if not token_ids:
            raise InvalidRequest(f"Invalid '{param}': empty array. Expected at least one token.", param)
        for index, token in enumerate(token_ids):
            if token >= self._card.vocab_size:
                raise InvalidRequest(
                    f"Invalid '{param}': token {token} at position {index} is outside the vocabulary of "
                    f"{self._card.vocab_size} tokens.",
                    param,
                )
        return tuple(token_ids)

    def spelled(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, control tokens by their names."""
        text = ""
        for control, run in groupby(token_ids, self._control.__contains__):
            tokens = list(run)
            text += "".join(map(self.token_text, tokens)) if control else self.shown(tokens)
        return text

    def name(self, token: int) -> str:
        """A single token as the vocabulary writes it; empty for an id that has no token."""
        return self._tokenizer.id_to_token(token) or ""

    def shown(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, without control tokens."""
        detokenizer = self.make_detokenizer()
        return detokenizer.add(token_ids) + detokenizer.end()

    def chat(
        self, messages: Sequence[Message], opens_answer: bool = True, thinking: str | None = None
    ) -> tuple[int, ...]:
        """Token ids of a chat, by default up to where the model's answer begins. `thinking`: the parameter that asks
        for it; None: none does.

        Raises:
            ContextLengthExceeded: so long that it is not even encoded.
            InvalidRequest: the model has no chat template, or its template refuses the messages.
            UnsupportedParameter: its template knows no thinking.
        """
        if self._template is None:
            raise InvalidRequest(f"The model '{self._card.name}' has no chat template. Use /v1/completions.", "model")
        if thinking is not None and not self._template.thinks:
            raise UnsupportedParameter(
                f"Unsupported parameter: '{thinking}' asks for thinking, and the chat template of "
                f"'{self._card.name}' has none.",
                thinking,
            )
        return tuple(self._encode(self._template.render(messages, opens_answer, thinking is not None), "messages"))

    def _encode(self, pieces: Sequence[Piece], param: str) -> list[int]:
        at_least = self._at_least(pieces)
        if at_least > self._card.context_tokens:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {self._card.context_tokens} tokens. However, your {param} "
                f"resulted in at least {at_least} tokens. Please reduce the length of the {param}.",
                param,
            )
        ids: list[int] = []
        open_text: list[str] = []

        def close() -> None:
            ids.extend(self._encode_plain("".join(open_text), param))
            open_text.clear()

        for piece in pieces:
            done = 0
            for found in self._pattern.finditer(piece.text) if piece.trusted else ():
                open_text.append(piece.text[done : found.start()])
                close()
                ids.append(self._ids[found[0]])
                done = found.end()
            open_text.append(piece.text[done:])
        close()
        return ids

    def _at_least(self, pieces: Sequence[Piece]) -> int:
        """Tokens that these come to at least: one for each control token, the rest by its length."""
        characters = control = 0
        for piece in pieces:
            names = self._pattern.findall(piece.text) if piece.trusted else []
            control += len(names)
            characters += len(piece.text) - sum(map(len, names))
        return control + characters // self._most_characters

    def _encode_plain(self, text: str, param: str) -> list[int]:
        if not text:
            return []
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        if not self._forbidden.isdisjoint(ids):  # the check at the start makes this a matter of odd tokenizers
            raise InvalidRequest(f"Invalid '{param}': some of its text cannot be told from control tokens.", param)
        return ids


def _most_characters(tokenizer: Tokenizer, control: Container[str]) -> int:
    """Upper bound on characters of text in one token, control tokens apart.

    By it, a text that cannot fit is refused without encoding it: 4 MiB byte by byte take 8 s (2026-11-23).
    """
    normalizer = json.loads(tokenizer.to_str())["normalizer"]
    steps = normalizer["normalizers"] if normalizer and normalizer["type"] == "Sequence" else [normalizer]
    if not all(step is None or _keeps_length(step) for step in steps):
        return 1 << 62
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    return max((len(token) for token in vocabulary if token not in control), default=1)


def _keeps_length(normalizer: dict[str, Any]) -> bool:
    """Whether it makes no text shorter: as Gemma's, which writes a space as one other character."""
    if normalizer["type"] == "Replace":
        return len(normalizer["content"]) >= len(normalizer["pattern"].get("String", normalizer["content"] + " "))
    return bool(normalizer["type"] == "Prepend")


def read_prompt_encoder(card: ModelCard, folder: Path) -> PromptEncoder:
    """From `tokenizer.json` and the chat template of a checkpoint. Raises `ConfigurationError`."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ConfigurationError(f"{path}: no such file", "checkpoint")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more precise
        raise ConfigurationError(f"{path}: {error}", "checkpoint") from None
    return PromptEncoder(card, tokenizer, read_chat_template(folder))

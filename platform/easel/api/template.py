"""Renders a checkpoint's chat template, and keeps apart what the template wrote and what a user wrote.

Owns: the sandbox in which the template runs, and the stand-ins. Each content of a message is replaced, for the time of
one rendering, by a number that nobody can guess; what comes out is split at these numbers. So whatever a content says,
`Piece.trusted` is true only for the template's own text, and only that may become control tokens.

Whether the template trims contents is found out the same way: each stand-in has white space around it, and where that
is gone the content loses its own as well. Other changes that a template might make to a content are not made; one that
cuts it is refused.

Refuses to know: tokens, HTTP, what the messages mean.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from easel.errors import ConfigurationError, InternalError, InvalidRequest

PAD = " \t "
SPECIAL_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token", "mask_token")

TEXTS = ("content", "reasoning_content")
"""Fields of a message that users wrote."""

Message = Mapping[str, Any]
"""`role`, and `content`: a string, or a list of `{"type": "text", "text": ...}`. An earlier answer may have
`reasoning_content` too: whether any of it is written into the prompt is the template's to say."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a rendered chat."""

    text: str
    trusted: bool
    """Written by the template, not by a user."""


HELLO: Sequence[Message] = ({"role": "user", "content": "Hello"},)


class _Refused(jinja2.TemplateError):
    """The template called `raise_exception`: these messages are not for this model."""


def _refuse(message: str) -> NoReturn:
    raise _Refused(message)


class ChatTemplate:
    """One compiled template. Thread-safe: a rendering shares nothing with another."""

    def __init__(self, source: str, special: Mapping[str, str]) -> None:
        """`special`: text of the tokens that templates refer to, as `bos_token`. Raises `ConfigurationError`."""
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        self._special = dict(special)
        try:
            self._template = environment.from_string(source)
            plain = self.render(HELLO)
        except (jinja2.TemplateError, InvalidRequest, InternalError) as error:
            raise ConfigurationError(f"chat template: {error}", "checkpoint") from error
        self.thinks = self._thinks(plain)
        """Whether thinking can be asked for."""

    def _thinks(self, plain: list[Piece]) -> bool:
        """Whether asking for it changes what is rendered, `plain` without."""
        try:
            return self.render(HELLO, thinking=True) != plain
        except InvalidRequest:  # it refuses
            return False

    def render(self, messages: Sequence[Message], opens_answer: bool = True, thinking: bool = False) -> list[Piece]:
        """The prompt, by default up to where the model's answer begins; otherwise to the end of the last message.

        Raises:
            InvalidRequest: the template refuses the messages, with its own words.
        """
        nonce = str(10**23 + secrets.randbelow(10**23))
        contents: list[str] = []
        stand_ins = [
            {**message, **{name: _stand_in(message[name], nonce, contents) for name in TEXTS if name in message}}
            for message in messages
        ]
        try:
            text = self._template.render(
                messages=stand_ins,
                add_generation_prompt=opens_answer,
                enable_thinking=thinking,
                tools=None,
                **self._special,
            )
        except _Refused as error:
            raise InvalidRequest(
                f"The model's chat template refuses the messages: {error.message}", "messages"
            ) from None
        return list(_pieces(text, nonce, contents))


def _stand_in(content: Any, nonce: str, contents: list[str]) -> Any:
    """`content` with a stand-in for each text that has more than white space, which templates may ask for."""
    if isinstance(content, str):
        if not content.strip():
            return content
        contents.append(content)
        return f"{PAD}{nonce}{len(contents) - 1:06d}{nonce}{PAD}"
    return [{**part, "text": _stand_in(part["text"], nonce, contents)} for part in content]


def _pieces(text: str, nonce: str, contents: Sequence[str]) -> Iterator[Piece]:
    pattern = re.compile(f"({PAD})?{nonce}(\\d{{6}}){nonce}({PAD})?")
    done = 0
    for found in pattern.finditer(text):
        yield _trusted(text[done : found.start()], nonce)
        content = contents[int(found[2])]
        content = content if found[1] else content.lstrip()
        yield Piece(content if found[3] else content.rstrip(), trusted=False)
        done = found.end()
    yield _trusted(text[done:], nonce)


def _trusted(text: str, nonce: str) -> Piece:
    if nonce[:12] in text:
        raise InternalError("The chat template changes contents in a way that cannot be followed.")
    return Piece(text, trusted=True)


def read_chat_template(folder: Path) -> ChatTemplate | None:
    """The template of a checkpoint: `chat_template.jinja`, or the entry in `tokenizer_config.json`. None: it has none.

    Raises:
        ConfigurationError: a file cannot be read, or the template cannot be compiled or fails on a plain chat.
    """
    config: dict[str, Any] = {}
    path = folder / "tokenizer_config.json"
    try:
        if path.is_file():
            config = json.loads(path.read_text(encoding="utf-8"))
        file = folder / "chat_template.jinja"
        source = file.read_text(encoding="utf-8") if file.is_file() else config.get("chat_template")
    except OSError as error:
        raise ConfigurationError(f"{folder}: {error.strerror}", "checkpoint") from None
    except ValueError as error:
        raise ConfigurationError(f"{path}: not JSON: {error}", "checkpoint") from None
    if isinstance(source, list):  # several by name
        source = next((entry["template"] for entry in source if entry.get("name") == "default"), None)
    if source is None:
        return None
    return ChatTemplate(source, dict(_special_tokens(config)))


def _special_tokens(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in SPECIAL_NAMES:
        value = config.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            yield name, value

"""The byte-level tokenizer of the embedded checkpoints, and the one safe way to turn a chat into token ids.

Owns: the vocabulary of 384 ids (0..127 control and reserved, with DiffusionGemma's own ids; 128 + b is the byte b),
the files `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja` of a checkpoint folder.
Refuses to know: models, weights, tasks, HTTP.

**Control tokens in text.** `encode(text, add_special_tokens=False)` only leaves out the `<bos>` that the post-processor
would put in front: the string `<turn|>` inside `text` still becomes id 106. That is right for a rendered chat template
and wrong for what a user typed. Whoever encodes text of a user sets `tokenizer.encode_special_tokens = True` (on a
tokenizer of its own: it is state), and the same string becomes seven bytes. `encode_chat` shows how to do both in one
prompt: render the template with a stand-in for each content, split at the stand-ins, encode the template's pieces
with control tokens and the contents without.
"""

from __future__ import annotations

import functools
import json
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

VOCAB_SIZE = 384
BYTE_OFFSET = 128

PAD, EOS, BOS, UNK, MASK = 0, 1, 2, 3, 4
TOOL_RESPONSE, THINK = 50, 98
CHANNEL_OPEN, CHANNEL_CLOSE = 100, 101
TURN_OPEN, TURN_CLOSE = 105, 106

CONTROL_TOKENS: dict[int, str] = {
    PAD: "<pad>",
    EOS: "<eos>",
    BOS: "<bos>",
    UNK: "<unk>",
    MASK: "<mask>",
    46: "<|tool>",
    47: "<tool|>",
    48: "<|tool_call>",
    49: "<tool_call|>",
    TOOL_RESPONSE: "<|tool_response>",
    51: "<tool_response|>",
    52: '<|"|>',
    THINK: "<|think|>",
    CHANNEL_OPEN: "<|channel>",
    CHANNEL_CLOSE: "<channel|>",
    TURN_OPEN: "<|turn>",
    TURN_CLOSE: "<turn|>",
}
"""Ids below 128 that mean something. The other ids below 128 are `<unusedN>`, N being the id."""

CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")


def control_token(token_id: int) -> str:
    """The text of a control or reserved id (0..127)."""
    if not 0 <= token_id < BYTE_OFFSET:
        raise ValueError(f"token_id must be in 0..{BYTE_OFFSET - 1}, got {token_id}")
    return CONTROL_TOKENS.get(token_id, f"<unused{token_id}>")


def _byte_characters() -> list[str]:
    """The printable character that stands for each byte in a byte-level vocabulary, in byte order.

    Bytes that are printable in Latin-1 stand for themselves, the others take the characters from U+0100 on. The order
    is checked against the library's own alphabet, which is a set without order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    characters = {byte: chr(byte) for byte in printable}
    stand_in = 0x100
    for byte in range(256):
        if byte not in characters:
            characters[byte] = chr(stand_in)
            stand_in += 1
    ordered = [characters[byte] for byte in range(256)]
    assert sorted(ordered) == sorted(pre_tokenizers.ByteLevel.alphabet())
    return ordered


def build_tokenizer() -> Tokenizer:
    """A `tokenizers.Tokenizer`: 384 ids, `<bos>` in front when `add_special_tokens` is left on, nothing normalised."""
    vocab = {control_token(token_id): token_id for token_id in range(BYTE_OFFSET)}
    vocab |= {character: BYTE_OFFSET + byte for byte, character in enumerate(_byte_characters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    # No prefix space and no word splitting: a text and its bytes are the same thing.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", BOS)]
    )
    # All 128 are special, the reserved ones too: decoding hides them and `encode_special_tokens` covers them.
    tokenizer.add_special_tokens([AddedToken(control_token(i), special=True, normalized=False) for i in range(128)])
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise AssertionError(f"vocabulary has {tokenizer.get_vocab_size()} ids, expected {VOCAB_SIZE}")
    return tokenizer


def tokenizer_config(max_length: int) -> dict[str, Any]:
    """Content of `tokenizer_config.json`; `max_length` is the model's context in tokens."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
    }


def write_tokenizer(folder: Path, max_length: int = 4096) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja` into an existing checkpoint folder."""
    build_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(max_length), indent=2) + "\n")
    shutil.copyfile(CHAT_TEMPLATE, folder / "chat_template.jinja")


def encode_text(text: str, *, bos: bool = False) -> list[int]:
    """Token ids of plain text; a control token's name inside it stays text. Same ids as the tokenizer gives."""
    return ([BOS] if bos else []) + [BYTE_OFFSET + byte for byte in text.encode("utf-8")]


@functools.cache
def _control_pattern() -> tuple[re.Pattern[str], dict[str, int]]:
    """What finds the names of control tokens in a text, and the id of each name."""
    ids_by_name = {control_token(i): i for i in range(BYTE_OFFSET)}
    return re.compile("(" + "|".join(map(re.escape, ids_by_name)) + ")"), ids_by_name


def encode_control(text: str) -> list[int]:
    """Token ids of text from a template: the names of control tokens become those tokens."""
    pattern, ids_by_name = _control_pattern()
    ids: list[int] = []
    for piece in pattern.split(text):
        ids += [ids_by_name[piece]] if piece in ids_by_name else encode_text(piece)
    return ids


def decode_text(token_ids: Sequence[int]) -> str:
    """Text of the byte ids, control tokens left out, bytes that are not UTF-8 replaced."""
    return bytes(i - BYTE_OFFSET for i in token_ids if i >= BYTE_OFFSET).decode("utf-8", errors="replace")


@functools.cache
def _chat_template() -> Any:
    """The compiled template, in the environment that transformers gives one."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> str:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(CHAT_TEMPLATE.read_text(encoding="utf-8"))


def render_chat(messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
    """The chat template as text; `variables` are `add_generation_prompt`, `enable_thinking`, `tools`.

    Raises:
        jinja2.TemplateError: the template refuses a message, with its reason.
    """
    return str(_chat_template().render(messages=messages, bos_token="<bos>", **variables))


def encode_chat(
    messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, enable_thinking: bool = False
) -> list[int]:
    """Token ids of a chat in which no content can forge a control token.

    Each content is replaced by a stand-in that nobody can guess before the template runs; the pieces between the
    stand-ins are the template's own text.

    Raises:
        jinja2.TemplateError: the template refuses a message, with its reason.
    """
    render_chat(messages)  # only to let the template judge the real contents: what it refuses is refused here
    mark = f"\ue000{secrets.token_hex(8)}:"
    contents: list[str] = []
    stand_ins = []
    for message in messages:
        content = message["content"]
        text = content if isinstance(content, str) else "".join(part["text"] for part in content)
        stand_ins.append({**message, "content": f"{mark}{len(contents)}\ue001"})
        contents.append(text.strip())
    rendered = render_chat(stand_ins, add_generation_prompt=add_generation_prompt, enable_thinking=enable_thinking)
    ids: list[int] = []
    for index, piece in enumerate(re.split(f"{mark}(\\d+)\ue001", rendered)):
        ids += encode_text(contents[int(piece)]) if index % 2 else encode_control(piece)
    return ids

"""What is asked of `/tokenize` and `/detokenize`, and what they answer.

Owns: names, types and bounds, as vLLM's clients know them. Refuses to know: tokenizers, templates, limits of the model.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from easel.api import unsupported
from easel.api.easel_options import Body
from easel.api.schemas import ChatMessage, ThinkingBody, Tokens, check_thinking, json_object, validated
from easel.errors import InvalidRequest


class TokenizeBody(ThinkingBody):
    """POST /tokenize."""

    model: str | None = None
    """One of the names that `/v1/models` lists; it may be left out."""
    prompt: str | None = None
    """A text, read as a prompt of `/v1/completions` is."""
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    """A chat, read as that of `/v1/chat/completions` is. Instead of `prompt`."""
    add_special_tokens: bool | None = None
    """Whether `<bos>` is put in front: by default of a prompt, not of a chat, whose template does so itself."""
    add_generation_prompt: bool | None = None
    """Whether the chat ends where the model's answer begins, which is the default. Only with `messages`."""
    return_token_strs: bool | None = None
    """Whether `token_strs` is answered."""


class DetokenizeBody(Body):
    """POST /detokenize."""

    model: str | None = None
    """One of the names that `/v1/models` lists; it may be left out."""
    tokens: Tokens
    """Token ids."""


class TokenizeAnswer(BaseModel):
    """What `/tokenize` answers."""

    count: int
    """How many tokens there are."""
    max_model_len: int
    """Most tokens of prompt and answer together."""
    tokens: list[int]
    """Their ids."""
    token_strs: list[str] | None = None
    """Each as the vocabulary writes it, where that was asked for."""


class DetokenizeAnswer(BaseModel):
    """What `/detokenize` answers."""

    prompt: str
    """The text, control tokens by their names."""


def parse_tokenize(raw: bytes) -> TokenizeBody:
    """Raises `InvalidRequest` or `UnsupportedParameter` that names the first wrong field."""
    data = unsupported.without_neutral(json_object(raw), unsupported.TOKENIZE)
    if "messages" in data:
        data["messages"] = unsupported.refuse_in_messages(data["messages"])
    body = validated(TokenizeBody, data)
    if (body.prompt is None) == (body.messages is None):
        if body.prompt is None:
            raise InvalidRequest("Missing required parameter: 'prompt' or 'messages'.", "prompt")
        raise InvalidRequest("Setting 'prompt' and 'messages' together is not possible.", "messages")
    for name in ("add_generation_prompt", *ThinkingBody.model_fields):
        if getattr(body, name) is not None and body.messages is None:
            raise InvalidRequest(f"The '{name}' parameter is only allowed with 'messages'.", name)
    check_thinking(body, body.messages or ())
    return body


def parse_detokenize(raw: bytes) -> DetokenizeBody:
    """Raises `InvalidRequest` that names the first wrong field."""
    return validated(DetokenizeBody, json_object(raw))

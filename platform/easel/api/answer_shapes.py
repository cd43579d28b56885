"""What answers hold, as models: OpenAI's shapes with Easel's additions. They document, and tests check by them.

Owns: names, types and which fields are always there. Nothing is served through them: `easel.api.responses` makes the
JSON. Refuses to know: how an answer comes about, requests.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from easel.protocol import FinishReason

Count = Annotated[int, Field(ge=0)]
Stop = Literal["converged", "step_cap", "deadline", "unknown"]
"""The words of `easel.protocol.CanvasStop`."""


class Answer(BaseModel):
    """The base of all: nothing beside what is said."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


def absent(schema: dict[str, Any]) -> None:
    """For a field that is left out rather than null: its default is no part of what is said of it."""
    schema.pop("default", None)


class Error(Answer):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    """The field of the request that is wrong, with dots between its parts."""
    code: str


class ErrorAnswer(Answer):
    """OpenAI's error object."""

    error: Error


class Health(Answer):
    """A probe's answer."""

    status: Literal["ok", "ready"]


class Version(Answer):
    """What runs here."""

    name: Literal["easel"]
    version: str
    system_fingerprint: str


class ModelLimits(Answer):
    """What the model can do."""

    context_tokens: Count
    canvas_length: Count
    max_denoising_steps: Count
    default_tier: str
    tiers: dict[str, dict[str, float | str]]
    """Every limit of denoising, by tier."""


class Model(Answer):
    """One served model, under one of its names."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["easel"]
    easel: ModelLimits


class ModelList(Answer):
    """Every name that `model` may be in a request of this caller."""

    object: Literal["list"]
    data: list[Model]


class Cancelled(Answer):
    """A request that was ended."""

    id: str
    object: Literal["request"]
    cancelled: Literal[True]


class Canvas(Answer):
    """One canvas of an answer."""

    denoising_steps: Count
    stop: Stop
    """Why its denoising ended."""


class Ending(Answer):
    """How a choice ended."""

    finish_reason: FinishReason
    canvases: list[Canvas]


class PromptDetails(Answer):
    """Of the prompt's tokens."""

    cached_tokens: Count


class CompletionDetails(Answer):
    """Of the answers' tokens."""

    reasoning_tokens: Count


class Work(Answer):
    """What denoising took, over all choices."""

    tier: str
    canvases: Count
    denoising_steps: Count
    stops: dict[Stop, Count]
    """How many canvases ended for which reason."""
    work: float


class Usage(Answer):
    """What the call took."""

    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails
    easel: Work


class TextLogprobs(Answer):
    """Log-probabilities in the shape of completions."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[Count]


class TokenChance(Answer):
    """A token that could stand at a position."""

    token: str
    logprob: float
    bytes: list[int]


class ChosenChance(TokenChance):
    """The token that does."""

    top_logprobs: list[TokenChance]


class ChatLogprobs(Answer):
    """Log-probabilities in the shape of chats."""

    content: list[ChosenChance]
    refusal: None


class Message(Answer):
    """An answer to a chat."""

    role: Literal["assistant"]
    content: str
    refusal: None
    reasoning_content: Annotated[str, Field(json_schema_extra=absent)] = None  # type: ignore[assignment]
    """What the model thought first: where it was asked to, or did."""


class Choice(Answer):
    """What all choices of whole answers have."""

    index: Count
    finish_reason: Literal["stop", "length"]
    easel: Ending


class CompletionChoice(Choice):
    """One continuation."""

    text: str
    logprobs: TextLogprobs | None


class ChatChoice(Choice):
    """One answer."""

    message: Message
    logprobs: ChatLogprobs | None


class LeftOut(Answer):
    """Where the settings have it that what an engine cannot honour is reported."""

    unsupported: list[str]


class Whole(Answer):
    """What whole answers have in common."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    service_tier: str
    usage: Usage
    easel: Annotated[LeftOut, Field(json_schema_extra=absent)] = None  # type: ignore[assignment]


class Completion(Whole):
    """A whole answer to POST /v1/completions."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]


class ChatCompletion(Whole):
    """A whole answer to POST /v1/chat/completions."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class Change(Answer):
    """What is now on one position of a canvas."""

    position: Count
    token_id: Count
    text: str
    entropy: float
    accepted: bool


class Progress(Answer):
    """A state of a canvas: what changed since the one before."""

    choice: Count
    canvas: Count
    step: Count
    canvas_length: Count
    committed: bool
    changes: list[Change]
    steps: Annotated[Count, Field(json_schema_extra=absent)] = None  # type: ignore[assignment]
    """These three: where it is committed."""
    stop: Annotated[Stop, Field(json_schema_extra=absent)] = None  # type: ignore[assignment]
    tokens: Annotated[Count, Field(json_schema_extra=absent)] = None  # type: ignore[assignment]


class ChunkExtras(Answer):
    """Easel's part of an event."""

    unsupported: Annotated[list[str], Field(json_schema_extra=absent)] = None  # type: ignore[assignment]
    progress: Annotated[Progress, Field(json_schema_extra=absent)] = None  # type: ignore[assignment]


class ChunkChoice(Answer):
    """What choices of events have in common."""

    index: Count
    finish_reason: Literal["stop", "length"] | None
    easel: Annotated[Ending, Field(json_schema_extra=absent)] = None  # type: ignore[assignment]
    """On the last one of a choice."""


class CompletionChunkChoice(ChunkChoice):
    """More text."""

    text: str
    logprobs: TextLogprobs | None


class ChatDelta(Answer):
    """More of a message; the first one of a choice has `role`, `content` and `refusal`."""

    role: Annotated[Literal["assistant"], Field(json_schema_extra=absent)] = None  # type: ignore[assignment]
    content: Annotated[str, Field(json_schema_extra=absent)] = None  # type: ignore[assignment]
    refusal: Annotated[None, Field(json_schema_extra=absent)] = None
    reasoning_content: Annotated[str, Field(json_schema_extra=absent)] = None  # type: ignore[assignment]


class ChatChunkChoice(ChunkChoice):
    """More of an answer."""

    delta: ChatDelta
    logprobs: ChatLogprobs | None


class Chunk(Answer):
    """What events have in common."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    service_tier: str
    usage: Annotated[Usage | None, Field(json_schema_extra=absent)] = None
    """Where `stream_options.include_usage` asks for it: null but on the last event."""
    easel: Annotated[ChunkExtras, Field(json_schema_extra=absent)] = None  # type: ignore[assignment]


class CompletionChunk(Chunk):
    """An event of a completion's stream."""

    object: Literal["text_completion"]
    choices: list[CompletionChunkChoice]


class ChatCompletionChunk(Chunk):
    """An event of a chat's stream."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]

"""What a request may hold: the two bodies, strictly typed, and an OpenAI-like message for whatever does not fit.

Owns: names, types and bounds of the parameters that are served. Unknown fields are refused; no value is converted.
Refuses to know: parameters that are not served (`easel.api.unsupported`), Easel's own (`easel.api.easel_options`),
tokens, the model's limits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Discriminator, Field, Tag, ValidationError
from pydantic_core import ErrorDetails, from_json

from easel.api import unsupported
from easel.api.easel_options import AtLeastOne, Body, EaselOptions
from easel.api.sampling_fields import MOST_CHAT_LOGPROBS, MOST_COMPLETION_LOGPROBS, SamplingBody
from easel.errors import InvalidRequest

MOST_STOP_CHARACTERS = 1024
LEAST_PROGRESS_HZ = 0.1


class StreamOptions(Body):
    """Options of a stream."""

    include_usage: bool | None = None
    """One more event before `[DONE]`, without choices, that holds the usage of the whole call."""
    include_progress: bool | None = None
    """More events, without choices, that show each canvas while it is denoised: see Progress."""
    progress_hz: Annotated[float, Field(ge=LEAST_PROGRESS_HZ)] | None = None
    """Most of those events a second, for each choice; 10 by default. Only with `include_progress`."""


def _kind(value: Any) -> str:
    """Which form of a parameter with several was meant: one of `_TAGS`."""
    if not isinstance(value, list):
        return "~text"
    first = value[0] if value else ""
    return "~token_lists" if isinstance(first, list) else "~tokens" if _is_int(first) else "~texts"


_TAGS = frozenset({"~text", "~texts", "~tokens", "~token_lists", "~parts"})
"""What pydantic puts into a path beside the names that a client knows."""


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


Tokens = list[Annotated[int, Field(ge=0)]]
Prompt = Annotated[
    Annotated[str, Tag("~text")]
    | Annotated[list[str], Tag("~texts"), Field(min_length=1)]
    | Annotated[Tokens, Tag("~tokens"), Field(min_length=1)]
    | Annotated[list[Annotated[Tokens, Field(min_length=1)]], Tag("~token_lists")],
    Discriminator(_kind),
]
StopString = Annotated[str, Field(min_length=1, max_length=MOST_STOP_CHARACTERS)]
Stop = Annotated[
    Annotated[StopString, Tag("~text")] | Annotated[list[StopString], Tag("~texts"), Field(max_length=4)],
    Discriminator(lambda value: "~texts" if isinstance(value, list) else "~text"),
]


MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]


class GenerationBody(SamplingBody):
    """What both routes take."""

    model: str
    """One of the names that `/v1/models` lists."""
    stream: bool | None = None
    """Server-sent events, one for each committed canvas, instead of one JSON object."""
    stream_options: StreamOptions | None = None
    """Only with `stream`."""
    stop: Stop | None = None
    """Up to 4 strings that end the answer; none of them is part of it."""
    n: AtLeastOne | None = None
    """Answers for each prompt, 1 by default."""
    max_tokens: AtLeastOne | None = None
    """Most tokens of an answer."""
    service_tier: str | None = None
    """`auto` and `default`: the model's default tier. `flex`: the same, behind your other requests; `priority`: before
    them, if your key allows it; `scale`: served as `default`. Or a tier's name, as `easel.tier`. The answer says what
    it was."""
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] | None = None
    """Up to 16 pairs of strings for your own use. Never changes an answer."""
    user: str | None = None
    """Who asked, in your terms. Never changes an answer."""
    safety_identifier: str | None = None
    """The newer name of `user`."""
    easel: EaselOptions | None = None
    """How the answer is denoised and by when, and its place in the queue."""

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def wants_usage(self) -> bool:
        """Whether the stream ends with usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class CompletionBody(GenerationBody):
    """POST /v1/completions."""

    prompt: Prompt
    """A string, several, token ids, or several lists of them. Strings are plain text: control tokens in them are not
    recognised; send token ids for those."""
    echo: bool | None = None
    """The answer's text begins with the prompt's. Not together with `logprobs`: a prompt is encoded, not predicted."""
    logprobs: Annotated[int, Field(ge=0, le=MOST_COMPLETION_LOGPROBS)] | None = None
    """The log-probability of each token of the answer, and of so many others there, from the distribution of the step
    that decided it."""
    best_of: AtLeastOne | None = None
    """Only the value of `n`: every answer that is made is returned."""


class TextPart(Body):
    """Part of a content."""

    type: Literal["text"]
    text: str


class ChatMessage(Body):
    """One message."""

    role: Literal["system", "developer", "user", "assistant"]
    """`developer` is the newer name of `system`."""
    content: Annotated[
        Annotated[str, Tag("~text")] | Annotated[list[TextPart], Tag("~parts"), Field(min_length=1)],
        Discriminator(lambda value: "~parts" if isinstance(value, list) else "~text"),
    ]
    """A string, or a list of text parts."""
    reasoning_content: str | None = None
    """Of an earlier answer, as it came. The chat template decides what of it the model sees: usually nothing."""

    def for_template(self) -> dict[str, Any]:
        """As chat templates expect it."""
        role = "system" if self.role == "developer" else self.role
        content = self.content if isinstance(self.content, str) else [part.model_dump() for part in self.content]
        message: dict[str, Any] = {"role": role, "content": content}
        return message | {"reasoning_content": self.reasoning_content} if self.reasoning_content else message


class TemplateOptions(Body):
    """What the chat template is told."""

    enable_thinking: bool | None = None
    """Whether the model thinks before it answers; not by default. What it thinks is `reasoning_content`."""


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class ThinkingBody(Body):
    """What makes a chat's answer begin with reasoning."""

    chat_template_kwargs: TemplateOptions | None = None
    """What the chat template is told, as vLLM's clients send it."""
    reasoning_effort: Effort | None = None
    """OpenAI's name of the same: `none` is not to think, any other word is to think. The model knows no degrees."""

    @property
    def thinking(self) -> str | None:
        """The parameter that asks for it; None where none does."""
        if self.chat_template_kwargs is not None and self.chat_template_kwargs.enable_thinking:
            return "chat_template_kwargs.enable_thinking"
        return None if self.reasoning_effort in (None, "none") else "reasoning_effort"


class ChatBody(GenerationBody, ThinkingBody):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    """The chat so far."""
    max_completion_tokens: AtLeastOne | None = None
    """The newer name of `max_tokens`."""
    logprobs: bool | None = None
    """The log-probability of each token of the answer, from the distribution of the step that decided it."""
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_CHAT_LOGPROBS)] | None = None
    """And of so many other tokens there. Only with `logprobs`."""


B = TypeVar("B", bound=BaseModel)


def parse_completion(raw: bytes) -> CompletionBody:
    """The body of a completion. Raises `InvalidRequest` or `UnsupportedParameter` that names the first wrong field."""
    body = validated(CompletionBody, unsupported.without_neutral(_object(raw), unsupported.COMPLETION))
    _check(body)
    if body.echo and body.logprobs is not None:
        raise InvalidRequest(
            "Setting 'echo' and 'logprobs' together is not possible: a diffusion model encodes a prompt without "
            "predicting it, so there are no log-probabilities of its tokens.",
            "echo",
        )
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise InvalidRequest(
            f"Invalid 'best_of': {body.best_of} is not supported here; leave it out, or send the value of 'n'.",
            "best_of",
        )
    return body


def parse_chat(raw: bytes) -> ChatBody:
    """The body of a chat completion. Raises as `parse_completion`."""
    data = unsupported.without_neutral(_object(raw), unsupported.CHAT)
    if "messages" in data:
        data["messages"] = unsupported.refuse_in_messages(data["messages"])
    body = validated(ChatBody, data)
    _check(body)
    check_thinking(body, body.messages)
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.", "top_logprobs")
    if None not in (body.max_tokens, body.max_completion_tokens) and body.max_tokens != body.max_completion_tokens:
        raise InvalidRequest(
            "Setting 'max_tokens' and 'max_completion_tokens' to different values is not possible: they are two names "
            "of the same limit.",
            "max_tokens",
        )
    return body


def check_thinking(body: ThinkingBody, messages: Sequence[ChatMessage]) -> None:
    """What holds between fields about reasoning. Raises `InvalidRequest`."""
    told = None if body.chat_template_kwargs is None else body.chat_template_kwargs.enable_thinking
    if None not in (told, body.reasoning_effort) and told == (body.reasoning_effort == "none"):
        raise InvalidRequest(
            f"Setting 'reasoning_effort' to '{body.reasoning_effort}' and 'chat_template_kwargs.enable_thinking' to "
            f"{str(told).lower()} is not possible: leave one of them out.",
            "reasoning_effort",
        )
    for index, message in enumerate(messages):
        if message.reasoning_content and message.role != "assistant":
            at = f"messages.{index}.reasoning_content"
            raise InvalidRequest(f"Invalid '{at}': only messages with role 'assistant' have reasoning.", at)


def _check(body: GenerationBody) -> None:
    """What holds between fields of both routes."""
    options = body.stream_options
    if options is not None and options.progress_hz is not None and not options.include_progress:
        raise InvalidRequest(
            "The 'stream_options.progress_hz' parameter is only allowed when 'stream_options.include_progress' is "
            "enabled.",
            "stream_options.progress_hz",
        )


def json_object(raw: bytes) -> dict[str, Any]:
    """The body as it came. Raises `InvalidRequest` for anything but a JSON object."""
    try:
        data = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequest(
            f"We could not parse the JSON body of your request: {error}. The API expects a JSON object."
        ) from None
    if not isinstance(data, dict):
        raise InvalidRequest(f"The body of the request must be a JSON object, but it is {_named(data)}.")
    return data


def _object(raw: bytes) -> dict[str, Any]:
    data = json_object(raw)
    options = data.get("stream_options")
    if isinstance(options, dict):
        options = unsupported.without_neutral(options, unsupported.STREAM_OPTIONS, "stream_options.")
        data["stream_options"] = options
        if data.get("stream") is not True:
            raise InvalidRequest(
                "The 'stream_options' parameter is only allowed when 'stream' is enabled.", "stream_options"
            )
    return data


def validated(schema: type[B], data: Mapping[str, Any]) -> B:
    """`data` as `schema` has it. Raises `InvalidRequest` that names the first wrong field."""
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        # A misspelt name first: it usually is the reason for the missing one.
        details = sorted(error.errors(include_url=False), key=lambda item: item["type"] != "extra_forbidden")
        *within, last = (_short(str(part)) for part in details[0]["loc"] if part not in _TAGS)
        if last == "[key]" and len(within) > 1:  # a key of an object, which pydantic names before this
            path, limit = within[0], details[0]["ctx"]["max_length"]
            raise InvalidRequest(
                f"Invalid key in '{path}': '{within[1]}' is too long. Expected a string with maximum length {limit}.",
                path,
            ) from None
        path = ".".join((*within, last))
        raise InvalidRequest(_message(details[0], path, schema), path) from None


def _message(error: ErrorDetails, path: str, schema: type[BaseModel]) -> str:
    kind, context, value = error["type"], error.get("ctx", {}), error["input"]
    if kind == "extra_forbidden":
        return f"Unknown parameter: '{path}'." + _hint(path, schema)
    if kind == "missing":
        return f"Missing required parameter: '{path}'."
    if kind == "literal_error" and isinstance(value, str):
        return f"Invalid value: '{_short(value)}'. Supported values are: {context['expected']}."
    for bound, words in _BOUNDS.items():
        if kind == bound:
            limit = next(iter(context[key] for key in ("ge", "le", "lt") if key in context))
            return f"Invalid '{path}': {words} {limit}, but got {_number(value)} instead."
    if kind == "too_short":
        return f"Invalid '{path}': empty array. Expected an array with minimum length {context['min_length']}."
    if kind == "too_long":
        if isinstance(value, dict):
            return (
                f"Invalid '{path}': too many keys. Expected an object with at most {context['max_length']}, "
                f"but got {len(value)} instead."
            )
        return (
            f"Invalid '{path}': array too long. Expected an array with maximum length {context['max_length']}, "
            f"but got an array with length {context['actual_length']} instead."
        )
    if kind == "string_too_short":
        return f"Invalid '{path}': empty string. Expected a string with minimum length {context['min_length']}."
    if kind == "string_too_long":
        return f"Invalid '{path}': string too long. Expected a string with maximum length {context['max_length']}."
    if kind in _EXPECTED:
        return f"Invalid type for '{path}': expected {_EXPECTED[kind]}, but got {_named(value)} instead."
    return f"Invalid '{path}': {error['msg']}."


def _hint(path: str, schema: type[BaseModel]) -> str:
    """What an unknown parameter may have been meant to be: one of the other route, or another name."""
    *parents, name = path.split(".")
    for route, other in _ROUTES.items():
        if not parents and other is not schema and schema in _ROUTES.values() and name in other.model_fields:
            return f" It is a parameter of {route}."
    part = _PARTS.get(".".join("N" if parent.isdecimal() else parent for parent in parents)) if parents else schema
    known = [] if part is None else [*part.model_fields, *unsupported.OF_SCHEMA.get(part.__name__, ())]
    match = get_close_matches(name, known, n=1)
    return f" Did you mean '{'.'.join((*parents, match[0]))}'?" if match else ""


_ROUTES: Mapping[str, type[BaseModel]] = {"/v1/completions": CompletionBody, "/v1/chat/completions": ChatBody}
_PARTS: Mapping[str, type[BaseModel]] = {
    "chat_template_kwargs": TemplateOptions,
    "easel": EaselOptions,
    "messages.N": ChatMessage,
    "stream_options": StreamOptions,
}
"""Schemas of objects inside a body."""
_BOUNDS = {
    "greater_than_equal": "value below the minimum. Expected a value >=",
    "less_than_equal": "value above the maximum. Expected a value <=",
    "less_than": "value above the maximum. Expected a value <",
}
_EXPECTED = {
    "bool_type": "a boolean",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "string_type": "a string",
    "list_type": "an array",
    "literal_error": "a string",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "dict_type": "an object",
}


def _named(value: Any) -> str:
    names = {bool: "a boolean", int: "an integer", float: "a number", str: "a string", list: "an array"}
    return "null" if value is None else names.get(type(value), "an object")


def _number(value: float) -> str:
    """Python refuses to write out whole numbers of more than 4300 digits."""
    return str(value) if abs(value) < 1e300 else "a very large number"


def _short(text: str) -> str:
    return text if len(text) <= 64 else text[:64] + "..."

"""Makes generation requests of a call: one for each prompt and choice.

Owns: what OpenAI's API leaves to defaults (max_tokens, seed, n), the limits (context, choices), and the ids.
Refuses to know: JSON, HTTP, who runs a request.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

from easel.api.denoising import ANY_PRIORITY, manner
from easel.api.easel_options import EaselOptions
from easel.api.fitting import fitted
from easel.api.model_card import ModelCard, StepBound, no_step_bound
from easel.api.prompt import PromptEncoder
from easel.api.sampling_fields import sampling
from easel.api.schemas import ChatBody, CompletionBody, GenerationBody
from easel.errors import ContextLengthExceeded, InvalidRequest, ModelNotFound
from easel.protocol import GenerationRequest
from easel.settings import ApiSettings

COMPLETION_MAX_TOKENS = 16
"""OpenAI's default for completions."""
PROGRESS_HZ = 10.0
"""States of a canvas a second where progress is wanted and no rate is given, or what the settings allow if less."""


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """A call, checked: everything that its answer depends on."""

    id: str
    """As in the answer; also the `group` of its generation requests."""
    chat: bool
    created: int
    """Unix time."""
    model: str
    """The name that the answer carries."""
    fingerprint: str
    tier: str
    """Name of the tier that all choices have."""
    service_tier: str
    """As the answer says it: see `easel.api.denoising`."""
    choices: tuple[GenerationRequest, ...]
    """In the order of the answer's choices: all of the first prompt, then all of the second, and so on."""
    prompt_tokens: int
    """Over all prompts, each counted once however many choices it has."""
    stops: tuple[str, ...]
    stream: bool
    wants_usage: bool
    """At the end of the stream."""
    echoes: tuple[str, ...] = ()
    """What each choice's text begins with; empty: nothing."""
    unsupported: tuple[str, ...] = ()
    """Parameters that the engine cannot honour and that were left out, where the settings have it so."""
    thinks: bool = False
    """Whether the model was asked to think before it answers."""

    def decoded_by(self, runtimes: Collection[str]) -> ApiRequest:
        """The same call with a fingerprint that names also what decodes it, where that is known."""
        said = "; ".join(sorted(set(runtimes) - {""}))
        if not said:
            return self
        return replace(self, fingerprint=f"{self.fingerprint}-{blake2b(said.encode(), digest_size=4).hexdigest()}")

    @property
    def wants_logprobs(self) -> bool:
        """Whether the answer says how likely each of its tokens was."""
        return self.choices[0].sampling.logprobs is not None


class RequestMaker:
    """Knows the model and the limits. Thread-safe, and slow for long prompts: see `PromptEncoder`."""

    def __init__(
        self, card: ModelCard, prompts: PromptEncoder, settings: ApiSettings, step_bound: StepBound = no_step_bound
    ) -> None:
        """`step_bound`: what holds for denoising steps now."""
        self._card = card
        self._prompts = prompts
        self._settings = settings
        self._step_bound = step_bound

    def completion(
        self,
        body: CompletionBody,
        now: float,
        traceparent: str | None = None,
        tenant: str = "",
        max_priority: int = ANY_PRIORITY,
    ) -> ApiRequest:
        """`now` in Unix seconds; `max_priority`: what the caller may ask for. Raises `InvalidRequest` or
        `ModelNotFound`."""
        self._check_model(body.model)
        prompts: Sequence[object] = body.prompt
        if isinstance(body.prompt, str) or isinstance(body.prompt[0], int):
            prompts = [body.prompt]
        self._check_choices(body, len(prompts))
        progress_hz = self._progress_hz(body)
        encoded = []
        for index, prompt in enumerate(prompts):
            param = "prompt" if prompts[index] is body.prompt else f"prompt.{index}"
            encoded.append(
                self._prompts.text(prompt, param) if isinstance(prompt, str) else self._prompts.tokens(prompt, param)  # type: ignore[arg-type]
            )
        default = self._settings.default_max_tokens or COMPLETION_MAX_TOKENS
        limits = [self._max_tokens(prompt, body.max_tokens, "max_tokens", default, "prompt") for prompt in encoded]
        self._check_min_tokens(body, limits)
        call = self._make(
            "cmpl-", body, encoded, limits, body.logprobs, progress_hz, now, traceparent, tenant, max_priority
        )
        return replace(call, echoes=self._echoes(body, prompts)) if body.echo else call

    def chat(
        self,
        body: ChatBody,
        now: float,
        traceparent: str | None = None,
        tenant: str = "",
        max_priority: int = ANY_PRIORITY,
    ) -> ApiRequest:
        """As `completion`."""
        self._check_model(body.model)
        self._check_choices(body, 1)
        progress_hz = self._progress_hz(body)
        prompt = self._prompts.chat([message.for_template() for message in body.messages], thinking=body.thinking)
        wanted, name = body.max_completion_tokens, "max_completion_tokens"
        if wanted is None:
            wanted, name = body.max_tokens, "max_tokens"
        default = self._settings.default_max_tokens or self._card.context_tokens
        limit = self._max_tokens(prompt, wanted, name, default, "messages")
        self._check_min_tokens(body, [limit])
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        call = self._make(
            "chatcmpl-", body, [prompt], [limit], logprobs, progress_hz, now, traceparent, tenant, max_priority
        )
        return replace(call, thinks=body.thinking is not None)

    def _check_model(self, name: str) -> None:
        if name not in self._card.names:
            raise ModelNotFound(f"The model '{name[:128]}' does not exist.", "model")

    def _check_choices(self, body: GenerationBody, prompts: int) -> None:
        choices, most = prompts * (body.n or 1), self._settings.max_choices
        if choices > most:
            param = "prompt" if prompts > most else "n"
            raise InvalidRequest(
                f"Invalid '{param}': {prompts} prompts with {body.n or 1} choices each are {choices} choices, "
                f"more than the {most} that one call may have.",
                param,
            )

    def _progress_hz(self, body: GenerationBody) -> float | None:
        options, most = body.stream_options, self._settings.max_progress_hz
        if options is None or not options.include_progress:
            return None
        if options.progress_hz is None:
            return min(PROGRESS_HZ, most)
        if options.progress_hz > most:
            raise InvalidRequest(
                "Invalid 'stream_options.progress_hz': value above the maximum. Expected a value "
                f"<= {most:g}, but got {options.progress_hz:g} instead.",
                "stream_options.progress_hz",
            )
        return float(options.progress_hz)

    def _check_min_tokens(self, body: GenerationBody, limits: Sequence[int]) -> None:
        if body.min_tokens and body.min_tokens > min(limits):
            raise InvalidRequest(
                f"Invalid 'min_tokens': {body.min_tokens} is more than the {min(limits)} tokens that the answer may "
                "have.",
                "min_tokens",
            )

    def _echoes(self, body: CompletionBody, prompts: Sequence[object]) -> tuple[str, ...]:
        """The text of each choice's prompt: as it was sent, or what its tokens say, without control tokens."""
        texts = [prompt if isinstance(prompt, str) else self._prompts.shown(prompt) for prompt in prompts]  # type: ignore[arg-type]
        return tuple(text for text in texts for _ in range(body.n or 1))

    def _max_tokens(self, prompt: Sequence[int], wanted: int | None, name: str, default: int, source: str) -> int:
        """The limit of one answer: as wanted, or as much of the default as fits."""
        context, used = self._card.context_tokens, len(prompt)
        if used >= context:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {context} tokens. However, your {source} resulted in {used} "
                f"tokens, which leaves no room for an answer. Please reduce the length of the {source}.",
                source,
            )
        if wanted is not None and used + wanted > context:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {context} tokens. However, you requested {used + wanted} "
                f"tokens ({used} in the {source}, {wanted} in the completion). Please reduce the length of the "
                f"{source} or of the completion.",
                name,
            )
        return min(default, context - used) if wanted is None else wanted

    def _make(
        self,
        prefix: str,
        body: GenerationBody,
        prompts: Sequence[tuple[int, ...]],
        limits: Sequence[int],
        logprobs: int | None,
        progress_hz: float | None,
        now: float,
        traceparent: str | None,
        tenant: str,
        max_priority: int,
    ) -> ApiRequest:
        call = prefix + secrets.token_hex(12)
        drawing = sampling(body, self._card.vocab_size, logprobs)
        wishes = body.easel or EaselOptions()
        longest = self._settings.request_timeout_s
        deadline_s = longest if wishes.deadline_ms is None else min(wishes.deadline_ms / 1000, longest)
        how = manner(self._card.bounded(self._step_bound()), wishes, body.service_tier, now + deadline_s, max_priority)
        choices: list[GenerationRequest] = []
        left_out: tuple[str, ...] = ()
        for prompt, limit in zip(prompts, limits, strict=True):
            for choice in range(body.n or 1):
                request = GenerationRequest(
                    id=f"{call}-{len(choices)}",
                    prompt=prompt,
                    max_tokens=limit,
                    model=self._card.key,
                    group=call,
                    choice=choice,
                    tenant=tenant,
                    tier=how.tier,
                    priority=how.priority,
                    queue_timeout_s=None if wishes.queue_timeout_ms is None else wishes.queue_timeout_ms / 1000,
                    traceparent=traceparent,
                    min_tokens=body.min_tokens or 0,
                    ignore_eos=bool(body.ignore_eos),
                    sampling=drawing,
                    denoising=how.denoising,
                    progress_hz=progress_hz,
                )
                request, left_out = fitted(request, body, self._card, self._settings)
                choices.append(request)
        return ApiRequest(
            id=call,
            chat=prefix == "chatcmpl-",
            created=int(now),
            model=self._card.name,
            fingerprint=self._card.fingerprint,
            tier=how.tier,
            service_tier=how.service_tier,
            choices=tuple(choices),
            prompt_tokens=sum(map(len, prompts)),
            stops=body.stops,
            stream=bool(body.stream),
            wants_usage=body.wants_usage,
            unsupported=left_out,
        )

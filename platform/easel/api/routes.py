"""The routes: what is asked, handed on, and sent back.

Owns: the order in which a call is read, made into generation requests, begun and answered.
Refuses to know: how each of these is done.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from easel import __version__
from easel.api import responses, sse
from easel.api.answer_text import AnswerText
from easel.api.backend import Backend
from easel.api.bodies import read_body
from easel.api.call_watch import CallWatch
from easel.api.callers import Callers
from easel.api.cancelling import Halt, RunningCalls, owner_of
from easel.api.choices import Delta, Outcome, SideBySide, run_choice
from easel.api.failures import internal_error
from easel.api.logprobs import ChosenToken
from easel.api.model_card import ModelCard, StepBound, no_step_bound
from easel.api.openapi import document
from easel.api.progress import Told
from easel.api.prompt import PromptEncoder
from easel.api.request_log import RequestNotes, notes
from easel.api.requests import ApiRequest, RequestMaker
from easel.api.schemas import parse_chat, parse_completion
from easel.api.unread import keep_up
from easel.errors import EaselError, ModelNotFound, NotReady
from easel.settings import ApiSettings
from easel.telemetry.recorder import Recorder

NOT_READY_RETRY_S = 1.0

Make = Callable[[bytes, float, RequestNotes], ApiRequest]
"""From a body, the time and what is known of the request to the call."""


class Routes:
    """Everything that is answered for one model."""

    def __init__(
        self,
        card: ModelCard,
        prompts: PromptEncoder,
        settings: ApiSettings,
        backend: Backend,
        recorder: Recorder,
        callers: Callers,
        running: RunningCalls,
        log_text: bool = False,
        step_bound: StepBound = no_step_bound,
    ) -> None:
        """`log_text`: log what prompts and completions say. `step_bound`: what holds for denoising steps now."""
        self._card = card
        self._prompts = prompts
        self._maker = RequestMaker(card, prompts, settings, step_bound)
        self._settings = settings
        self._backend = backend
        self._recorder = recorder
        self._callers = callers
        self._running = running
        self._log_text = log_text
        self._step_bound = step_bound
        self._document = document(settings)

    def add_to(self, app: FastAPI) -> None:
        """Registers the routes. HEAD goes with GET."""
        for path, endpoint in (
            ("/healthz", self.healthz),
            ("/readyz", self.readyz),
            ("/version", self.version),
            ("/openapi.json", self.openapi),
            ("/v1/models", self.models),
            ("/v1/models/{model_id:path}", self.model),
        ):
            app.add_api_route(path, endpoint, methods=["GET", "HEAD"], response_model=None)
        app.add_api_route("/v1/completions", self.completions, methods=["POST"], response_model=None)
        app.add_api_route("/v1/chat/completions", self.chat_completions, methods=["POST"], response_model=None)

    async def healthz(self) -> Response:
        """This process is alive. Says nothing of the model."""
        return JSONResponse({"status": "ok"})

    async def readyz(self) -> Response:
        """200 where requests can be answered now, otherwise 503 with the reason."""
        reason = await self._backend.ready()
        if reason is not None:
            raise NotReady(reason, retry_after_s=NOT_READY_RETRY_S)
        return JSONResponse({"status": "ready"})

    async def version(self) -> Response:
        """What runs here."""
        return JSONResponse({"name": "easel", "version": __version__, "system_fingerprint": self._card.fingerprint})

    async def openapi(self) -> Response:
        """The document of all routes. Needs no key: it says no more than docs/api.md, and names no model."""
        return JSONResponse(self._document)

    async def models(self, request: Request) -> Response:
        """Every name that `model` may be, of those that the caller may use."""
        allowed = self._callers.allows(notes(request.scope), self._card.names)
        card = self._card.bounded(self._step_bound())
        return JSONResponse(responses.models(card) if allowed else {"object": "list", "data": []})

    async def model(self, request: Request, model_id: str) -> Response:
        """One of them."""
        if model_id not in self._card.names or not self._callers.allows(notes(request.scope), self._card.names):
            raise ModelNotFound(f"The model '{model_id[:128]}' does not exist.", "model")
        return JSONResponse(responses.model(self._card.bounded(self._step_bound()), model_id))

    async def completions(self, request: Request) -> Response:
        """Continues prompts."""
        return await self._answer(request, "text_completion", self._make_completion)

    async def chat_completions(self, request: Request) -> Response:
        """Answers a chat."""
        return await self._answer(request, "chat", self._make_chat)

    def _make_completion(self, raw: bytes, now: float, known: RequestNotes) -> ApiRequest:
        body = parse_completion(raw)
        known.model = self._card.name if body.model in self._card.names else known.model
        return self._maker.completion(body, now, known.traceparent, known.tenant, known.max_priority)

    def _make_chat(self, raw: bytes, now: float, known: RequestNotes) -> ApiRequest:
        body = parse_chat(raw)
        known.model = self._card.name if body.model in self._card.names else known.model
        return self._maker.chat(body, now, known.traceparent, known.tenant, known.max_priority)

    async def _answer(self, request: Request, operation: str, make: Make) -> Response:
        """1. read  2. make generation requests  3. wait for the first event, or for all  4. answer."""
        known = notes(request.scope)
        known.operation = operation
        call = await read_body(request, lambda raw: make(raw, time.time(), known))
        with ExitStack() as held:
            meter = self._callers.let_in(known, self._card.names, call.choices, call.prompt_tokens)
            held.callback(meter.end)
            shown = self._prompts.shown if self._log_text else None
            watch = CallWatch(call, known, self._recorder, self._card.name, shown)
            held.callback(watch.end)
            halt = held.enter_context(self._running.holding(owner_of(known), known.id, call.id))
            choices = self._begin(call, meter.over(self._backend), halt)
            if not call.stream:
                return JSONResponse(await sse.unless_client_leaves(request.receive, self._whole(call, choices, watch)))
            first = await sse.unless_client_leaves(request.receive, self._first(choices))
            streaming = held.pop_all()

        async def close() -> None:
            with streaming:
                await choices.close()

        return sse.EventStream(self._events(call, choices, first, known, watch), close)

    def _begin(self, call: ApiRequest, backend: Backend, halt: Halt) -> SideBySide:
        running = []
        for index, one in enumerate(call.choices):
            answer = AnswerText(
                self._prompts.make_detokenizer,
                call.stops,
                call.wants_logprobs,
                self._prompts.marks if call.chat else None,
            )
            echo = call.echoes[index] if call.echoes else ""
            choice = run_choice(backend, one, index, answer, self._card.canvas_length, echo, halt)
            running.append(choice if one.progress_hz is None else keep_up(choice))
        return SideBySide(running)

    async def _whole(self, call: ApiRequest, choices: SideBySide, watch: CallWatch) -> dict[str, Any]:
        texts, reasonings = [""] * len(call.choices), [""] * len(call.choices)
        tokens: list[list[ChosenToken]] = [[] for _ in call.choices]
        outcomes: dict[int, Outcome] = {}
        runtimes: set[str] = set()
        try:
            while not choices.ended:
                delta = await choices.next()
                if delta is None:
                    continue
                watch.saw(delta)
                runtimes.add(delta.runtime)
                texts[delta.index] += delta.text
                reasonings[delta.index] += delta.reasoning
                tokens[delta.index] += delta.logprobs
                if delta.outcome is not None:
                    outcomes[delta.index] = delta.outcome
        finally:
            await choices.close()
        ended = [outcomes[index] for index in range(len(texts))]
        call = call.decoded_by(runtimes)
        return responses.whole(call, self._prompts, texts, ended, tokens, reasonings)

    async def _first(self, choices: SideBySide) -> Delta | None:
        """With the first event in hand, failing before it is over: what comes before gets a status of its own."""
        try:
            return await choices.next()
        except BaseException:
            await choices.close()
            raise

    async def _events(
        self, call: ApiRequest, choices: SideBySide, delta: Delta | None, known: RequestNotes, watch: CallWatch
    ) -> AsyncIterator[bytes]:
        """The parts of a stream, from the first delta on. Ends in `[DONE]` or in an error event."""
        begun: set[int] = set()
        told = [Told(self._card.canvas_length, self._prompts.token_text) for _ in call.choices]
        outcomes: dict[int, Outcome] = {}
        runtimes = [""] * len(call.choices)
        try:
            while True:
                if delta is None:
                    yield sse.HEARTBEAT
                else:
                    watch.saw(delta)
                    revision = told[delta.index].revision(delta)
                    runtimes[delta.index] = delta.runtime or runtimes[delta.index]
                    own = call.decoded_by({runtimes[delta.index]})
                    if revision is not None:
                        yield sse.event(responses.progress_chunk(own, delta.index, revision))
                    part = responses.chunk(own, self._prompts, delta, first=delta.index not in begun)
                    begun.add(delta.index)
                    if delta.outcome is not None:
                        outcomes[delta.index] = delta.outcome
                    if part is not None:
                        yield sse.event(part)
                if choices.ended:
                    break
                delta = await choices.next(self._settings.heartbeat_s)
            if call.wants_usage:
                call = call.decoded_by(runtimes)
                yield sse.event(responses.usage_chunk(call, [outcomes[index] for index in range(len(call.choices))]))
            yield sse.DONE
        except EaselError as error:
            known.error = error
            yield sse.event(error.body())
        except Exception as error:
            known.error = internal_error(error, known.id)
            yield sse.event(known.error.body())

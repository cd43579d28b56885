"""The routes from text to token ids and back: what a prompt or a chat becomes before a model sees it.

Owns: that they answer exactly what the other routes would make of the same text. Refuses to know: how text is encoded.
"""

from __future__ import annotations

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from easel.api.bodies import read_body
from easel.api.callers import Callers
from easel.api.model_card import ModelCard
from easel.api.prompt import PromptEncoder
from easel.api.request_log import notes
from easel.api.token_bodies import DetokenizeAnswer, TokenizeAnswer, parse_detokenize, parse_tokenize
from easel.errors import ModelNotFound

PREFIXES = ("", "/v1")
"""Where the routes are: at the root, as vLLM has them, and beside the others."""


class TokenRoutes:
    """Tokens of one model."""

    def __init__(self, card: ModelCard, prompts: PromptEncoder, callers: Callers) -> None:
        self._card = card
        self._prompts = prompts
        self._callers = callers

    def add_to(self, app: FastAPI) -> None:
        """Registers the routes."""
        for prefix in PREFIXES:
            app.add_api_route(f"{prefix}/tokenize", self.tokenize, methods=["POST"], response_model=None)
            app.add_api_route(f"{prefix}/detokenize", self.detokenize, methods=["POST"], response_model=None)

    async def tokenize(self, request: Request) -> Response:
        """Token ids of a prompt or a chat."""
        self._begin(request)
        answer = await read_body(request, self._tokenized)
        return JSONResponse(answer.model_dump())

    async def detokenize(self, request: Request) -> Response:
        """The text of token ids."""
        self._begin(request)
        answer = await read_body(request, self._detokenized)
        return JSONResponse(answer.model_dump())

    def _begin(self, request: Request) -> None:
        known = notes(request.scope)
        self._callers.check(known, self._card.names)
        known.model = self._card.name

    def _tokenized(self, raw: bytes) -> TokenizeAnswer:
        body = parse_tokenize(raw)
        self._check_model(body.model)
        if body.messages is not None:
            messages = [message.for_template() for message in body.messages]
            tokens = self._prompts.chat(messages, body.add_generation_prompt is not False, body.thinking)
        else:
            tokens = self._prompts.plain(body.prompt or "", "prompt")
        wants_bos = body.messages is None if body.add_special_tokens is None else body.add_special_tokens
        tokens = (*self._prompts.bos, *tokens) if wants_bos else tokens
        names = [self._prompts.name(token) for token in tokens] if body.return_token_strs else None
        return TokenizeAnswer(
            count=len(tokens), max_model_len=self._card.context_tokens, tokens=list(tokens), token_strs=names
        )

    def _detokenized(self, raw: bytes) -> DetokenizeAnswer:
        body = parse_detokenize(raw)
        self._check_model(body.model)
        tokens = self._prompts.tokens(body.tokens, "tokens") if body.tokens else ()
        return DetokenizeAnswer(prompt=self._prompts.spelled(tokens))

    def _check_model(self, name: str | None) -> None:
        if name is not None and name not in self._card.names:
            raise ModelNotFound(f"The model '{name[:128]}' does not exist.", "model")

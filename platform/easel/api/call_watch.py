"""What one generation call comes to as its answer goes out: latencies, tokens, canvases, for metrics and its log line.

Owns: when the first canvas came and how long each next one took; the text of the call where that is to be logged.
Refuses to know: how an answer is made and sent.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from easel.api.choices import Delta
from easel.api.request_log import RequestNotes
from easel.api.requests import ApiRequest
from easel.telemetry.logs import said
from easel.telemetry.names import BETWEEN_CANVASES_SECONDS, FIRST_CANVAS_SECONDS, OUTPUT_TOKEN_SECONDS
from easel.telemetry.recorder import Recorder

texts = logging.getLogger("easel.text")

Shown = Callable[[tuple[int, ...]], str]
"""The text of a prompt's tokens."""


@dataclass(slots=True)
class _Choice:
    first: float
    """When its first canvas came, on the clock of `RequestNotes.arrived`."""
    last: float
    later_tokens: int = 0
    """Of the canvases after the first."""


class CallWatch:
    """One for each call. `model`: its name in metrics; `shown`: given where text is to be logged."""

    def __init__(
        self, call: ApiRequest, known: RequestNotes, recorder: Recorder, model: str, shown: Shown | None = None
    ) -> None:
        self._call = call
        self._known = known
        self._recorder = recorder
        self._labels = {"model": model, "operation": known.operation or "none"}
        self._shown = shown
        self._choices: dict[int, _Choice] = {}
        self._texts: dict[int, list[str]] = {}
        known.call, known.tier, known.prompt_tokens = call.id, call.tier or "none", call.prompt_tokens
        known.span.set("gen_ai.request.max_tokens", call.choices[0].max_tokens)
        known.span.set("gen_ai.request.choice.count", len(call.choices))

    def saw(self, delta: Delta) -> None:
        """A part of the answer is about to go out."""
        known = self._known
        if delta.committed:
            self._canvas(delta, time.perf_counter())
        if self._shown is not None and (delta.text or delta.reasoning):
            self._texts.setdefault(delta.index, []).append(delta.reasoning + delta.text)
        if delta.outcome is not None:
            known.finish_reasons.append(delta.outcome.reason)
            choice = self._choices.get(delta.index)
            if choice is not None and choice.later_tokens:
                each = (choice.last - choice.first) / choice.later_tokens
                self._recorder.observe(OUTPUT_TOKEN_SECONDS, each, known.traceparent, **self._labels)

    def end(self) -> None:
        """The call is over, however it ended."""
        if self._shown is None:
            return
        for index, one in enumerate(self._call.choices):
            completion = "".join(self._texts.get(index, ()))
            fields = said(call=self._call.id, prompt=self._shown(one.prompt), completion=completion)
            texts.info("text", extra=fields)

    def _canvas(self, delta: Delta, now: float) -> None:
        known, choice = self._known, self._choices.get(delta.index)
        known.canvases += 1
        known.output_tokens += delta.tokens
        known.denoising_steps += delta.steps
        if not self._choices:
            first = now - known.arrived
            self._recorder.observe(FIRST_CANVAS_SECONDS, first, known.traceparent, **self._labels)
        if choice is None:
            self._choices[delta.index] = _Choice(now, now)
            return
        between = now - choice.last
        self._recorder.observe(BETWEEN_CANVASES_SECONDS, between, known.traceparent, model=self._labels["model"])
        choice.last = now
        choice.later_tokens += delta.tokens

"""What the tokens of one choice say: the answer, and apart from it the reasoning before it.

A model that thinks writes `<|channel>thought`, a new line, its reasoning, `<channel|>`, and then the answer. What
stands between the two marks is reasoning, whether thinking was asked for or not; the rest is the answer. All of it
depends on the tokens alone, not on how canvases cut them into pieces.

Owns: the text of both parts, where a stop string ends the answer (never the reasoning), which tokens count, and which
log-probabilities go with which text. Refuses to know: events, HTTP, what a template writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from easel.api.detokenizer import Detokenizer
from easel.api.logprobs import ChosenToken, LogprobQueue
from easel.api.stops import StopScanner
from easel.protocol import CanvasCommitted, TokenLogprob

OPENS, CLOSES = "<|channel>", "<channel|>"
"""Names of the tokens around reasoning."""
NAME = "thought"
"""What a channel of reasoning begins with, on a line of its own. It is no part of the reasoning."""


@dataclass(frozen=True, slots=True)
class Marks:
    """The two tokens around reasoning."""

    opens: int
    closes: int


@dataclass(frozen=True, slots=True)
class Said:
    """More of a choice."""

    text: str = ""
    reasoning: str = ""
    logprobs: tuple[ChosenToken, ...] = ()
    """Of the tokens that `text` is made of, where they are wanted."""


class AnswerText:
    """One choice, canvas by canvas."""

    def __init__(
        self,
        make_detokenizer: Callable[[], Detokenizer],
        stops: tuple[str, ...] = (),
        logprobs: bool = False,
        marks: Marks | None = None,
    ) -> None:
        """`marks`: None where reasoning is not told apart, as in completions."""
        self._make = make_detokenizer
        self._detokenizer = make_detokenizer()
        self._scanner = StopScanner(stops)
        self._queue = LogprobQueue() if logprobs else None
        self._marks = marks
        self._thinking = False
        self._held_name: str | None = None
        """Reasoning that may yet turn out to be the channel's name."""
        self.tokens = 0
        """Those that count: with a stop string, up to the one that completed it."""
        self.reasoning_tokens = 0
        """Those of them that are reasoning, its marks and its name included."""

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the answer."""
        return self._scanner.found is not None

    def add(self, canvas: CanvasCommitted) -> Said:
        """What its tokens make ready to be sent."""
        text = reasoning = ""
        for run, logprobs in self._runs(canvas):
            if self._marks is not None and run == ((self._marks.closes if self._thinking else self._marks.opens),):
                if self._thinking:
                    reasoning += self._end_thought()
                else:
                    text += self._end_run()
                    if self.stopped:
                        break
                    self._held_name = ""
                self.tokens += 1
                self.reasoning_tokens += 1
                self._thinking = not self._thinking
                self._detokenizer = self._make()
            elif self._thinking:
                self.tokens += len(run)
                self.reasoning_tokens += len(run)
                reasoning += self._without_name(self._detokenizer.add(run))
            else:
                text += self._answer(run, logprobs)
                if self.stopped:
                    break
        return self._said(text, reasoning)

    def end(self) -> Said:
        """What was held back, now that nothing follows."""
        if self._thinking:
            reasoning, text = self._end_thought(), self._scanner.end()
        else:
            reasoning, text = "", self._end_run() + self._scanner.end()
        if self._queue is None:
            return Said(text, reasoning)
        return Said(text, reasoning, self._queue.end(text, cut=self.stopped))

    def _said(self, text: str, reasoning: str) -> Said:
        said = Said(text, reasoning)
        if self._queue is None:
            return said
        ready = self._queue.end(text, cut=True) if self.stopped else self._queue.sent(text)
        return replace(said, logprobs=ready)

    def _runs(self, canvas: CanvasCommitted) -> Iterator[tuple[tuple[int, ...], tuple[TokenLogprob, ...] | None]]:
        """Its tokens in one go between marks, and each mark alone."""
        tokens, logprobs = canvas.token_ids, canvas.logprobs
        marks = () if self._marks is None else (self._marks.opens, self._marks.closes)
        begin = 0
        for place, token in enumerate(tokens):
            if token in marks:
                for start, stop in ((begin, place), (place, place + 1)):
                    if start < stop:
                        yield tokens[start:stop], logprobs and logprobs[start:stop]
                begin = place + 1
        if begin < len(tokens):
            yield tokens[begin:], logprobs and logprobs[begin:]

    def _answer(self, run: tuple[int, ...], logprobs: tuple[TokenLogprob, ...] | None) -> str:
        """Token by token where a stop string may end it, or where it is asked which token makes which text."""
        if not self._scanner.wanted and self._queue is None:
            self.tokens += len(run)
            return self._scanner.add(self._detokenizer.add(run))
        text = ""
        for index, token in enumerate(run):
            piece = self._detokenizer.add((token,))
            self.tokens += 1
            if self._queue is not None and logprobs is not None:
                self._queue.add(token, logprobs[index], piece)
            text += self._scanner.add(piece)
            if self.stopped:
                break
        return text

    def _end_run(self) -> str:
        """Of the answer: what is left of a broken character."""
        left = self._detokenizer.end()
        if self._queue is not None:
            self._queue.pass_over(left)
        return self._scanner.add(left)

    def _end_thought(self) -> str:
        text = self._without_name(self._detokenizer.end())
        held, self._held_name = self._held_name, None
        return text + ("" if held in (None, NAME) else str(held))

    def _without_name(self, text: str) -> str:
        if self._held_name is None:
            return text
        held, line = self._held_name + text, NAME + "\n"
        if line.startswith(held) and held != line:
            self._held_name = held
            return ""
        self._held_name = None
        return held.removeprefix(line)

"""What was said and what is set, as the body of the next request; the commands that change it.

Owns: the commands, their arguments, and what is sent. A setting that the service does not know is sent all the same:
what it says to that is the answer. Refuses to know: terminals, HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from easel.errors import EaselError

PATH = "/v1/chat/completions"
SUDOKU_TOKENS = 128
"""Nine lines of nine digits and what ends them are 90."""
DEFAULT = "default"

COMMANDS: Mapping[str, tuple[str, str]] = {
    "sudoku": ("[81 characters]", "watch a puzzle being solved: yours, or one that no training has seen"),
    "tier": ("[name|default]", "how much denoising an answer may take, such as fast; nothing: which there are"),
    "steps": ("N|default", "most denoising steps of a canvas"),
    "temperature": ("T|default", "0: each draw is the most likely token"),
    "system": ("[text]", "the system message; none takes it away"),
    "reset": ("", "forget what was said; settings stay"),
    "help": ("", "this list"),
    "quit": ("", "leave; so does Ctrl-D"),
}
"""Name: what follows it, and what it does."""


class CommandError(EaselError):
    """A command that does not exist, or an argument that it cannot take."""


def read_command(line: str) -> tuple[str, str] | None:
    """Name and argument of a line that begins with `/`; None for a message. Raises `CommandError` for others."""
    if not line.startswith("/"):
        return None
    name, _, argument = line[1:].partition(" ")
    if name not in COMMANDS:
        close = get_close_matches(name, COMMANDS, 1)
        hint = f" Did you mean /{close[0]}?" if close else ""
        raise CommandError(f"There is no command '/{name}'.{hint} /help lists them.")
    return name, argument.strip()


def help_lines() -> list[str]:
    """One a command."""
    uses = {f"/{name} {argument}".rstrip(): meaning for name, (argument, meaning) in COMMANDS.items()}
    width = max(map(len, uses))
    return [f"{use.ljust(width)}  {meaning}" for use, meaning in uses.items()]


@dataclass(slots=True)
class Conversation:
    """With one model."""

    model: str
    system: str = ""
    said: list[dict[str, str]] = field(default_factory=list)
    """Messages of both sides, oldest first; only answers that came whole."""
    temperature: float | None = None
    max_steps: int | None = None
    tier: str | None = None
    tiers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The limits of each tier that the service has told of."""
    default_tier: str = ""

    def body(self, message: str, progress: bool, alone: bool = False) -> dict[str, Any]:
        """What to send for the next message. `alone`: without what was said before, and no longer than a Sudoku."""
        body: dict[str, Any] = {"model": self.model, "messages": self._messages(message, alone), "stream": True}
        body["stream_options"] = {"include_usage": True} | ({"include_progress": True} if progress else {})
        if alone:
            body["max_tokens"] = SUDOKU_TOKENS
        if self.temperature is not None:
            body["temperature"] = self.temperature
        own: dict[str, Any] = {"max_denoising_steps": self.max_steps, "tier": self.tier}
        own = {name: value for name, value in own.items() if value is not None}
        return body | ({"easel": own} if own else {})

    def answered(self, message: str, answer: str) -> None:
        """Keep a message and its whole answer."""
        self.said += [{"role": "user", "content": message}, {"role": "assistant", "content": answer}]

    def set(self, name: str, argument: str) -> str:
        """Do what a command says; returns what to tell. Raises `CommandError` for an argument that it cannot take."""
        if name == "reset":
            self.said.clear()
            return "Forgotten."
        if name == "system":
            self.system = argument
            return "The system message is set." if argument else "There is no system message."
        if name == "tier":
            return self._set_tier(argument)
        if not argument:
            raise CommandError(f"/{name} needs {COMMANDS[name][0]}.")
        wanted = None if argument == DEFAULT else argument
        if name == "steps":
            if wanted is not None and not (wanted.isascii() and wanted.isdigit() and int(wanted) > 0):
                raise CommandError(f"/steps needs a whole number from 1, or {DEFAULT}, not '{argument}'.")
            self.max_steps = None if wanted is None else int(wanted)
        elif name == "temperature":
            self.temperature = None if wanted is None else _number(wanted)
        return f"{name} is {argument}."

    def _set_tier(self, argument: str) -> str:
        if not argument:
            lines = [f"{name}{' (default)' * (name == self.default_tier)}: {limits}" for name, limits in self._told()]
            return "\n".join(lines) or "The service does not say which tiers it has."
        if argument != DEFAULT and self.tiers and argument not in self.tiers:
            raise CommandError(f"/tier is one of {', '.join(self.tiers)} and {DEFAULT}, not '{argument}'.")
        self.tier = None if argument == DEFAULT else argument
        known = dict(self._told()).get(self.tier or self.default_tier)
        return f"tier is {argument}" + (f": {known}." if known else ".")

    def _told(self) -> list[tuple[str, str]]:
        """Each tier and its limits in words."""
        return [
            (name, ", ".join(f"{limit} {value}" for limit, value in limits.items()))
            for name, limits in self.tiers.items()
        ]

    def _messages(self, message: str, alone: bool) -> list[dict[str, str]]:
        system = [{"role": "system", "content": self.system}] if self.system and not alone else []
        return [*system, *([] if alone else self.said), {"role": "user", "content": message}]


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not 0 <= number < float("inf"):
        raise CommandError(f"/temperature needs a number from 0, or {DEFAULT}, not '{text}'.")
    return number

"""The tasks of the tiny checkpoint and their right answers: what is sampled, and what is held out.

Owns: prompts and answers as text, their framing as raw completion or chat, the split into training and held-out.
Refuses to know: tensors, noise, the model.

    repeat: some text   ->  some text
    reverse: abc        ->  cba
    anything else       ->  REFUSAL
"""

from __future__ import annotations

import hashlib
import random
import string
from dataclasses import dataclass

from training.tokenizer import EOS, TURN_CLOSE, encode_chat, encode_text

REFUSAL = "I can repeat: a text and reverse: a word."
LONGEST_REPEAT = 48
LONGEST_REVERSE = 12

_LETTERS = string.ascii_lowercase
_PRINTABLE = string.ascii_letters + string.digits + " .,;:!?'\"-+*/()[]{}<>|=_#%&@"
_OTHER_SCRIPTS = "äöüßéèñçøåαβγδπωжшя中文字日本한글→★🙂"
_STARTS = ("what is", "tell me", "why", "please", "hello", "how do I", "write", "repeat", "reverse", "add:", "the")


@dataclass(frozen=True)
class Example:
    """One prompt and its right answer, both as text; `frame` is one of `FRAMES`."""

    task: str
    prompt: str
    answer: str
    frame: str
    system: str = ""
    thinking: bool = False
    earlier: tuple[str, str] | None = None

    def prompt_ids(self) -> list[int]:
        """Token ids of the prompt as the API would make them."""
        if self.frame in ("raw", "bare"):
            return encode_text(self.prompt + ("\n" if self.frame == "raw" else ""), bos=True)
        messages = [{"role": "system", "content": self.system}] if self.system else []
        if self.earlier is not None:
            user, assistant = self.earlier
            messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
        messages.append({"role": "user", "content": self.prompt})
        return encode_chat(messages, enable_thinking=self.thinking)

    def answer_ids(self, canvas_length: int) -> list[int]:
        """Token ids of the answer: the text, `<turn|>`, then `<eos>` up to whole canvases."""
        ids = [*encode_text(self.answer), TURN_CLOSE]
        return ids + [EOS] * (-len(ids) % canvas_length)


def held_out(prompt: str) -> bool:
    """Whether a prompt is kept from training: one in ten, by its hash, so the split needs no list."""
    return hashlib.blake2b(prompt.encode(), digest_size=8, person=b"easel-tiny").digest()[0] < 26


def _word(rng: random.Random) -> str:
    return "".join(rng.choices(_LETTERS, k=rng.randint(1, 9)))


def _words(rng: random.Random, length: int) -> str:
    text = _word(rng)
    while len(text) < length:
        text += rng.choice(("", ",", ".")) + " " + _word(rng)
    return text[:length].strip(" ,") or "a"


def _text(rng: random.Random, longest: int) -> str:
    """A text to repeat, without space at its ends; bytes, not characters, are what counts as length."""
    length = rng.randint(1, longest)
    kind = rng.random()
    if kind < 0.45:
        return _words(rng, length)
    if kind < 0.9:
        return "".join(rng.choices(_PRINTABLE, k=length)).strip() or "a"
    mixed = "".join(rng.choices(_LETTERS + _OTHER_SCRIPTS * 2, k=length))
    return mixed.encode()[:longest].decode(errors="ignore") or "a"


def _task(rng: random.Random, longest: int) -> tuple[str, str, str]:
    kind = rng.random()
    if kind < 0.6:
        text = _text(rng, longest)
        return "repeat", f"repeat: {text}", text
    if kind < 0.85:
        letters = _LETTERS if rng.random() < 0.7 else string.ascii_letters + string.digits
        text = "".join(rng.choices(letters, k=rng.randint(1, min(longest, LONGEST_REVERSE))))
        return "reverse", f"reverse: {text}", text[::-1]
    start = rng.choice(_STARTS) if rng.random() < 0.7 else _word(rng)
    text = f"{start} {_words(rng, rng.randint(1, longest))}"[: max(longest, 4)].strip()
    return "other", text + rng.choice(("", "?", ".")), REFUSAL


FRAMES = ("raw", "bare", "chat", "system", "turns")
"""A raw prompt is a line: it ends with a newline. A bare one does not: nothing marks where the prompt ends and the
answer begins, so from the second canvas on the model could not tell them apart; bare prompts are for short answers."""
LONGEST_BARE = 15
CHATS_FIRST = (0.0, 0.4, 0.45, 0.08, 0.07)
ALL_FRAMES = (0.35, 0.15, 0.35, 0.08, 0.07)


def sample(
    rng: random.Random,
    longest: int = LONGEST_REPEAT,
    *,
    test: bool = False,
    frames: tuple[float, ...] = ALL_FRAMES,
) -> Example:
    """One example with texts of at most `longest` bytes, from the training prompts or, with `test`, the held-out.

    Args:
        frames: how often each of `FRAMES` is drawn.
    """
    frame = rng.choices(FRAMES, frames)[0]
    while True:
        task, prompt, answer = _task(rng, min(longest, LONGEST_BARE) if frame == "bare" else longest)
        if held_out(prompt) == test:
            break
    if frame == "system":
        return Example(task, prompt, answer, frame, system=_words(rng, 12), thinking=rng.random() < 0.3)
    if frame == "turns":
        earlier = ("", "", REFUSAL)
        while earlier[2] == REFUSAL:  # short turns: the refusal would make every context of the batch long
            earlier = _task(rng, 10)
        _, user, assistant = earlier
        return Example(task, prompt, answer, frame, earlier=(user, assistant))
    return Example(task, prompt, answer, frame)

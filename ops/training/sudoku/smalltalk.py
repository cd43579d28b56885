"""Prompts that are no puzzle: greetings, questions, words, code, numbers, and grids of the wrong size.

Knows no model; the answer to all of them is one sentence of `notation`.
"""

from __future__ import annotations

import random
import string

from training.sudoku.notation import LONG, SYSTEM_PROMPTS, _turn, chat_ids
from training.tokenizer import BOS, encode_text

SENTENCES = (
    "Hi", "hi", "Hello!", "Hello, how are you?", "hey there", "Good morning", "Who are you?", "What can you do?",
    "help", "What is Sudoku?", "How do I play?", "Tell me a joke.", "Write a poem about the sea.", "What is 2 + 2?",
    "test", "What's the capital of France?", "Thanks!", "Thank you very much", "ok", "yes", "no", "Why?",
    "Explain diffusion.", "Translate good night into German.", "What is the weather like?",
    "Write a Python function that sorts a list.", "Summarise this text.", "Once upon a time",
    "The quick brown fox jumps over the lazy dog.", "Can you solve a sudoku?", "Solve this sudoku",
    "Give me a puzzle", "Play chess with me", "Are you a language model?", "Sing a song", "?", "...",
    "Which model are you?", "How many parameters do you have?", "Hola", "Bonjour", "Guten Tag", "Wie geht es dir?",
    "Was kannst du?", "Erzähl mir einen Witz.", "¿Qué puedes hacer?", "Ça va ?", "こんにちは", "你好", "Привет", "ciao",
    "Please", "Say hello", "Count to ten", "What time is it?", "Tell me about yourself", "Do my homework",
    "I am bored", "Describe this picture", "What is the meaning of life?", "Name three colours",
    "Repeat after me: easel",
)  # fmt: skip
WORDS = """
the of and to in is you that it he was for on are as with his they at be this have from or one had by word but not
what all were we when your can said there use an each which she do how their if will up other about out many then
them these so some her would make like him into time has look two more write go see number no way could people my
than first water been call who oil its now find long down day did get come made may part new sound take only little
work know place year live me back give most very after thing our just name good sentence man think say great where
help through much before line right too mean old any same tell boy follow came want show also around form three
small set put end does another well large must big even such because turn here why ask went men read need land
different home us move try kind hand picture again change off play spell air away animal house point page letter
mother answer found study still learn should world puzzle grid row column box digit cell sudoku solve game chess
model token paint canvas easel colour river Haus Baum und nicht der die das ist ein gut Frage bonjour merci monde
casa perro gracias agua def return import print class for while list dict None true false null error server request
latency python code data value string
""".split()  # noqa: SIM905 (words read better as words)


def _text(rng: random.Random, limit: int) -> str:
    kind = rng.random()
    if kind < 0.25:
        text = rng.choice(SENTENCES)
        if rng.random() < 0.3:
            text += " " + rng.choice(SENTENCES)
    elif kind < 0.5:
        text = " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 60)))
        text = text.capitalize() + rng.choice(("", ".", "?", "!")) if rng.random() < 0.5 else text
    elif kind < 0.6:
        text = "".join(rng.choice(string.printable[:95]) for _ in range(rng.randint(1, limit)))
    elif kind < 0.67:
        letters = rng.choice(
            (string.ascii_lowercase, "абвгдежзиклмноп", "äöüßéèñç ", "日本語中文字漢", string.ascii_letters + " ")
        )
        text = "".join(rng.choice(letters) for _ in range(rng.randint(1, limit // 2)))
    elif kind < 0.75:  # numbers and symbols that are no grid
        text = "".join(rng.choice("0123456789.+-*/= ,:") for _ in range(rng.randint(1, 60)))
    else:  # a grid with cells missing or too many
        filled, empty = rng.uniform(0.2, 0.8), rng.choice("..00_*")
        cells = rng.choice((79, 80, 80, 82, 82, 83, 72, 73, 90, 89, rng.randint(1, 78), rng.randint(84, 95)))
        text = "".join(rng.choice("123456789") if rng.random() < filled else empty for _ in range(cells))
        if rng.random() < 0.4:
            text = "\n".join(text[i : i + 9] for i in range(0, len(text), 9))
    return text


def prompts(seed: int, count: int, length: int) -> list[list[int]]:
    """`count` prompts of at most `length` tokens that are no puzzle."""
    rng = random.Random(seed)
    out: list[list[int]] = []
    while len(out) < count:
        text = _text(rng, length - 20)
        if rng.random() < 0.2:
            ids = [BOS, *encode_text(text), *encode_text(rng.choice(("", "\n")))]
        else:
            system = length >= LONG and rng.random() < 0.3
            before = _turn("system", encode_text(rng.choice(SYSTEM_PROMPTS))) if system else []
            ids = chat_ids(encode_text(text.strip() or "?"), before)
        if len(ids) <= length:
            out.append(ids)
    return out

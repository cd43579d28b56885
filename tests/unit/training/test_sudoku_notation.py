"""Prompts and answers of the Sudoku checkpoint as token ids: what is trained is what the chat template renders."""

from __future__ import annotations

import random

import numpy as np
import pytest

pytest.importorskip("jinja2")
pytest.importorskip("tokenizers")

from training.sudoku import notation, smalltalk
from training.tokenizer import BOS, EOS, TURN_CLOSE, decode_text, encode_chat, encode_text


def rendered(template: list[int], cells: list[int]) -> str:
    """A template's text with the cells filled in."""
    return decode_text([cells[-1 - i] + 128 + ord("0") if i < 0 else i for i in template])


def test_a_chat_prompt_equals_the_chat_template() -> None:
    puzzle = np.arange(81, dtype=np.uint8) % 10
    text = notation.puzzle_text(puzzle, "0")
    template = notation.chat_ids(notation._ids(notation.bare(notation.cells_from(0))))
    ids = [128 + ord(text[-1 - i]) if i < 0 else i for i in template]
    assert ids == encode_chat([{"role": "user", "content": text}])
    system = notation._turn("system", encode_text("Be brief."))
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]
    assert notation.chat_ids(encode_text(text), system) == encode_chat(messages)


@pytest.mark.parametrize("length", [notation.SHORT, notation.LONG])
def test_every_template_holds_the_puzzle_once_in_order_and_fits(length: int) -> None:
    made = notation.templates(3, 400, length)
    kinds = set()
    for entries, pad in zip(made.entries.tolist(), made.pad.tolist(), strict=True):
        ids = entries[pad:]
        assert ids[0] == BOS
        assert not any(entries[:pad])
        cells = [-1 - i for i in ids if -82 < i < 0]
        assert cells == list(range(81))
        text = "".join("#" if i < 0 else chr(i - 128) if i >= 128 else "" for i in ids)
        kinds.add(text)
        assert not set("123456789") & set(text.replace("9x9", "").replace("1 to 9", ""))
    assert len(kinds) > 20


def test_separated_notations_read_row_by_row() -> None:
    rng = random.Random(0)
    seen = set()
    for _ in range(200):
        pieces = notation.separated(rng, notation.cells_from(0))
        assert [p for p in pieces if isinstance(p, int)] == list(range(81))
        text = "".join("." if isinstance(p, int) else p for p in pieces)
        assert len(text) <= 337
        seen.add(text)
    assert len(seen) >= 25
    assert "\n".join(["...|...|..."] * 3 + ["---+---+---"] + ["...|...|..."] * 3) in "\n".join(seen)


def test_a_canvas_is_nine_lines_the_turns_end_and_a_tail_of_eos() -> None:
    solution = np.tile(np.arange(1, 10, dtype=np.uint8), 9)
    ids = notation.canvas_ids(notation.answer_text(solution))
    assert len(ids) == notation.CANVAS
    assert decode_text(ids[:89]) == "\n".join(["123456789"] * 9)
    assert ids[89:] == [TURN_CLOSE] + [EOS] * 6
    layout, cell = notation.answer_layout()
    assert (np.where(cell >= 0, 128 + ord("0") + solution[cell], layout) == ids).all()
    for sentence in (notation.NO_SOLUTION, notation.NO_PUZZLE):
        assert decode_text(notation.canvas_ids(sentence)) == sentence
    with pytest.raises(ValueError, match="does not fit"):
        notation.canvas_ids("x" * 96)


def test_smalltalk_holds_no_puzzle_and_fits() -> None:
    for length in (notation.SHORT, notation.LONG):
        for ids in smalltalk.prompts(1, 500, length):
            assert len(ids) <= length
            text = decode_text(ids).removeprefix("user\n").removesuffix("\nmodel\n")
            cells = [c for c in text if c in "0123456789._*"]
            assert len(cells) != 81 or not set(text) <= set("0123456789._*\n")


def test_padding_refuses_a_prompt_that_is_too_long() -> None:
    ids, pad = notation.padded([[2, 3], [4]], 3)
    assert ids.tolist() == [[0, 2, 3], [0, 0, 4]]
    assert pad.tolist() == [1, 2]
    with pytest.raises(ValueError, match="prompt 0 has 4 tokens"):
        notation.padded([[1, 2, 3, 4]], 3)

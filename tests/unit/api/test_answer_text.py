"""Reasoning and answer are told apart by the tokens alone, however canvases cut them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from easel.api.answer_text import AnswerText, Marks, Said
from easel.api.detokenizer import make_detokenizers
from easel.protocol import CanvasCommitted, CanvasStop, TokenLogprob
from ops.training.tokenizer import BYTE_OFFSET, build_tokenizer
from tests.unit.api.edge import spell
from tests.unit.api.test_detokenizer import CONTROL, FALLBACK
from tests.unit.api.test_detokenizer import spell as window_spell

OPENS, CLOSES = 100, 101
MARKS = Marks(OPENS, CLOSES)
MAKE = make_detokenizers(build_tokenizer(), CONTROL)
WINDOW_MARKS = Marks(1000, 1001)
MAKE_WINDOW = make_detokenizers(FALLBACK, frozenset({1000, 1001}))


def tokens(text: str) -> list[int]:
    """`<` opens, `>` closes, all else is its bytes."""
    return [t for c in text for t in ((OPENS,) if c == "<" else (CLOSES,) if c == ">" else spell(c))]


def canvas(ids: list[int], logprobs: bool = False) -> CanvasCommitted:
    told = tuple(TokenLogprob(-float(token)) for token in ids) if logprobs else None
    return CanvasCommitted(0, tuple(ids), 1, CanvasStop.CONVERGED, 0, 1, told)


def run(answer: AnswerText, ids: list[int], cuts: list[int], logprobs: bool = False) -> Said:
    """All that it says, canvas by canvas."""
    borders = [0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]
    said = []
    for start, end in pairwise(borders):
        said.append(answer.add(canvas(ids[start:end], logprobs)))
        if answer.stopped:
            break
    else:
        said.append(answer.end())
    return Said(
        "".join(one.text for one in said),
        "".join(one.reasoning for one in said),
        tuple(token for one in said for token in one.logprobs),
    )


@pytest.mark.parametrize(
    ("written", "text", "reasoning", "counted"),
    [
        ("<thought\nTwo and two.>Four.", "Four.", "Two and two.", 22),
        ("Four.", "Four.", "", 0),
        ("<thought\n>Four.", "Four.", "", 10),
        ("<thought>Four.", "Four.", "", 9),
        ("<>Four.", "Four.", "", 2),
        ("<thought\nIt is so lo", "", "It is so lo", 20),
        ("<thou", "", "thou", 5),
        ("<thoughts\n>a", "a", "thoughts\n", 11),
        ("<thought\nthought\n>a", "a", "thought\n", 18),
        ("a<thought\nb>c<thought\nd>e", "ace", "bd", 22),
        ("a>b", "ab", "", 0),
        ("<thought\na<b>c", "c", "ab", 13),
    ],
)
def test_what_stands_between_the_marks_is_reasoning(written: str, text: str, reasoning: str, counted: int) -> None:
    answer = AnswerText(MAKE, marks=MARKS)
    assert run(answer, tokens(written), []) == Said(text, reasoning)
    assert (answer.tokens, answer.reasoning_tokens) == (len(tokens(written)), counted)


def test_without_marks_nothing_is_told_apart() -> None:
    answer = AnswerText(MAKE)
    assert run(answer, tokens("<thought\na>b"), []) == Said("thought\nab")
    assert answer.reasoning_tokens == 0


def test_a_stop_string_ends_the_answer_and_never_the_reasoning() -> None:
    answer = AnswerText(MAKE, ("o",), marks=MARKS)
    assert run(answer, tokens("<thought\nfox>the quick brown"), []) == Said("the quick br", "fox")
    assert answer.tokens == len(tokens("<thought\nfox>the quick bro"))


def test_a_character_that_the_reasoning_breaks_off_is_not_made_whole_by_the_answer() -> None:
    e_acute = list(spell("é"))
    answer = AnswerText(MAKE, marks=MARKS)
    assert run(answer, [OPENS, *spell("thought\n"), e_acute[0], CLOSES, e_acute[1]], []) == Said("\ufffd", "\ufffd")


def test_log_probabilities_are_of_the_answers_tokens() -> None:
    answer = AnswerText(MAKE, logprobs=True, marks=MARKS)
    said = run(answer, tokens("<thought\nno>yes"), [], logprobs=True)
    assert [token.token_id for token in said.logprobs] == list(spell("yes"))
    assert [token.offset for token in said.logprobs] == [0, 1, 2]


PIECES = st.lists(
    st.sampled_from(["<", ">", "thought\n", "thought", "t", "\n", "a", "é", "🦊", " b", "stop", "st", "op"]),
    max_size=12,
)
ODD = st.lists(st.sampled_from([OPENS, CLOSES, *(BYTE_OFFSET + byte for byte in b"thought\n\xc3\xa9\xf0ab")]))


@given(
    st.one_of(PIECES.map(lambda pieces: tokens("".join(pieces))), ODD),
    st.lists(st.integers(0, 40), max_size=8),
    st.sampled_from([(), ("stop",), ("a", "\ufffd"), ("é",)]),
    st.booleans(),
)
@example(tokens("<thought\nlong>answer"), list(range(30)), (), True)
def test_cut_anywhere_it_says_the_same(ids: list[int], cuts: list[int], stops: tuple[str, ...], logprobs: bool) -> None:
    whole = AnswerText(MAKE, stops, logprobs, MARKS)
    parts = AnswerText(MAKE, stops, logprobs, MARKS)
    assert run(whole, ids, [], logprobs) == run(parts, ids, cuts, logprobs)
    assert (whole.tokens, whole.reasoning_tokens) == (parts.tokens, parts.reasoning_tokens)
    assert whole.reasoning_tokens <= whole.tokens <= len(ids)


@given(
    st.lists(st.sampled_from([[1000], [1001], *map(window_spell, ("thought\n", " a b", "é", "🦊", "ab", "\n"))])),
    st.lists(st.integers(0, 40), max_size=8),
)
def test_with_the_other_kind_of_tokenizer_too(pieces: list[list[int]], cuts: list[int]) -> None:
    ids = [token for piece in pieces for token in piece]
    whole, parts = AnswerText(MAKE_WINDOW, marks=WINDOW_MARKS), AnswerText(MAKE_WINDOW, marks=WINDOW_MARKS)
    assert run(whole, ids, []) == run(parts, ids, cuts)

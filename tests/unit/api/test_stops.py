"""Stop strings cut at the same place however the text was cut into pieces."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from easel.api.stops import StopScanner

LETTERS = st.text("ab", max_size=40)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=4)


def scan(pieces: list[str], stops: tuple[str, ...]) -> tuple[str, str | None]:
    scanner = StopScanner(stops)
    text = "".join(scanner.add(piece) for piece in pieces)
    return text + scanner.end(), scanner.found


def one_character_at_a_time(text: str, stops: tuple[str, ...]) -> str:
    """The definition: text ends as soon as it ends in a stop string, the longest of them where several do."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return text


@settings(deadline=None)
@given(LETTERS, STOPS, st.lists(st.integers(0, 40), max_size=6))
def test_pieces_do_not_matter(text: str, stops: list[str], cuts: list[int]) -> None:
    borders = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(borders)]
    answer, found = scan(pieces, tuple(stops))
    assert answer == one_character_at_a_time(text, tuple(stops))
    assert (found is None) == (answer == text)


def test_only_an_end_that_may_become_a_stop_string_is_held_back() -> None:
    scanner = StopScanner(("STOP",))
    assert scanner.add("abcST") == "abc"
    assert scanner.add("x") == "STx"
    assert scanner.add("STO") == ""
    assert scanner.end() == "STO"
    assert scanner.found is None


def test_nothing_comes_after_a_stop_string() -> None:
    scanner = StopScanner(("|",))
    assert scanner.add("a|b") == "a"
    assert scanner.found == "|"
    assert scanner.add("c") == ""
    assert scanner.end() == ""

"""Text that arrives in canvases is the text that the tokenizer would make of all tokens at once."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from easel.api.detokenizer import ByteLevelDetokenizer, Detokenizer, WindowDetokenizer, make_detokenizers
from ops.training.tokenizer import BYTE_OFFSET, build_tokenizer

CONTROL = frozenset(range(BYTE_OFFSET))
BYTE_LEVEL = build_tokenizer()
MAKE_BYTE_LEVEL = make_detokenizers(BYTE_LEVEL, CONTROL)


def fallback_tokenizer() -> Tokenizer:
    """Like Gemma's: a space is written as another character, what is not in the vocabulary as bytes."""
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)}
    for text in ["▁", "a", "b", "▁a", "é", "▁a▁b"]:
        vocab[text] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("▁", "a")], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


FALLBACK = fallback_tokenizer()


def spell(text: str) -> list[int]:
    """The tokens of a text in the fallback tokenizer, one a character, bytes where it has none."""
    ids = []
    for character in text.replace(" ", "▁"):
        token = FALLBACK.token_to_id(character)
        ids += [token] if token is not None else list(character.encode())
    return ids


def in_pieces(detokenizer: Detokenizer, ids: list[int], cuts: list[int]) -> list[str]:
    borders = [0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]
    texts = [detokenizer.add(ids[a:b]) for a, b in pairwise(borders)]
    return [*texts, detokenizer.end()]


CUTS = st.lists(st.integers(0, 60), max_size=6)


@settings(deadline=None)
@given(st.lists(st.integers(0, 383), max_size=60), CUTS)
def test_byte_level_text_is_exact_for_any_ids(ids: list[int], cuts: list[int]) -> None:
    detokenizer = MAKE_BYTE_LEVEL()
    assert isinstance(detokenizer, ByteLevelDetokenizer)
    assert "".join(in_pieces(detokenizer, ids, cuts)) == BYTE_LEVEL.decode(ids, skip_special_tokens=True)


@settings(deadline=None)
@given(st.text(max_size=20), CUTS)
def test_no_character_is_ever_cut_in_two(text: str, cuts: list[int]) -> None:
    ids = BYTE_LEVEL.encode(text, add_special_tokens=False).ids if "<" not in text else []
    texts = in_pieces(MAKE_BYTE_LEVEL(), ids, cuts)
    assert "".join(texts) == (text if ids else "")
    assert all("\ufffd" in text or "\ufffd" not in piece for piece in texts)


@settings(deadline=None)
@given(st.text("ab é€😀", max_size=15), CUTS)
def test_other_tokenizers_give_whole_characters_too(text: str, cuts: list[int]) -> None:
    detokenizer = make_detokenizers(FALLBACK, frozenset())()
    assert isinstance(detokenizer, WindowDetokenizer)
    ids = spell(text)
    texts = in_pieces(detokenizer, ids, cuts)
    assert "".join(texts) == FALLBACK.decode(ids) == text
    assert "\ufffd" not in "".join(texts)


def test_a_token_of_many_characters_keeps_its_spaces_across_pieces() -> None:
    detokenizer = make_detokenizers(FALLBACK, frozenset())()
    ids = [FALLBACK.token_to_id("▁a"), FALLBACK.token_to_id("▁a▁b"), FALLBACK.token_to_id("b")]
    assert [detokenizer.add([token]) for token in ids] == [" a", " a b", "b"]


def test_bytes_that_are_no_text_are_not_waited_for() -> None:
    detokenizer = make_detokenizers(FALLBACK, frozenset())()
    assert detokenizer.add([0xFF] * 3) == ""
    assert detokenizer.add([0xFF] * 3) == "\ufffd" * 6
    assert detokenizer.add(spell("a")) == "a"
    assert detokenizer.end() == ""


def test_control_tokens_have_no_text_in_either() -> None:
    assert MAKE_BYTE_LEVEL().add([105, 128 + ord("a"), 106]) == "a"
    window = make_detokenizers(FALLBACK, frozenset({FALLBACK.token_to_id("b")}))()
    assert window.add(spell("abab")) == "aa"

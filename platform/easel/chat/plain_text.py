"""Text that others wrote, made harmless for a terminal.

Owns: which characters never reach a terminal as they are. A model, a server or a proxy may answer anything: an escape
sequence would move the cursor, change the window's title or hide what was printed.
Refuses to know: where the text comes from, colours.
"""

from __future__ import annotations

import unicodedata

KEPT = frozenset("\n\t")
"""Control characters that do in a terminal what they do in a text."""

ESCAPED = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
"""Categories shown by name: control characters, invisible ones (text direction among them), halves of surrogates."""

JOINERS = frozenset("\u200d\u200c")
"""Invisible, but parts of emoji and of words in some scripts; they move nothing."""


def safe(text: str) -> str:
    """`text` with each character that could do something to a terminal written out, such as `\\x1b`."""
    return "".join(
        character
        if character in KEPT or character in JOINERS or unicodedata.category(character) not in ESCAPED
        else _name(ord(character))
        for character in text
    )


def one_line(text: str) -> str:
    """The same, and line ends and tabs written out too."""
    return safe(text).replace("\n", "\\n").replace("\t", "\\t")


def _name(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

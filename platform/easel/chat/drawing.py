"""Canvases and boards as a terminal shows them: coloured text, nothing else.

Owns: colours, marks and the legend. Every mark has a shape beside its colour, so nothing is lost without colours.
Refuses to know: HTTP, cursors, when to draw.
"""

from __future__ import annotations

from rich.cells import cell_len
from rich.text import Text

from easel.chat.board import broken, on_board, read_answer
from easel.chat.canvas import Answer, Canvas, Cell
from easel.chat.plain_text import one_line, safe

LEVELS = ((0.01, ""), (0.1, "on #fdf3dc"), (0.5, "on #fae4b4"), (1.0, "on #f5cf86"), (2.0, "on #eeb55a"))
"""Nats below which a position has that colour."""
NOISY = "on #e59a3c"
INK = "#2a1d06"
"""Legible on every one of those, whatever the terminal's own colours are."""
GLYPHS = {"\n": "⏎", "\t": "⇥", "\r": "␍", "": "·"}
QUIET = "dim"
RULE = {0: "┌───────┬───────┬───────┐", 3: "├───────┼───────┼───────┤", 6: "├───────┼───────┼───────┤"}
END = "└───────┴───────┴───────┘"


def glyph(text: str) -> str:
    """A token's text on one line: a control token is one mark, unprintable characters are written out."""
    if text in GLYPHS:
        return GLYPHS[text]
    if len(text) > 3 and text[0] == "<" and text[-1] == ">" and not any(c.isspace() for c in text):
        return "∎"
    return one_line(text.replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍"))


def style(cell: Cell, done: bool = False) -> str:
    """By entropy; underlined where it changed its mind, bold too where it just did."""
    colour = next((found for bound, found in LEVELS if cell.entropy < bound), NOISY)
    parts = [INK, colour] if colour and not done else []
    if cell.flips and not done:
        parts.append("underline")
    if cell.moved and not done:
        parts.append("bold")
    return " ".join(parts)


def draw_canvas(canvas: Canvas, width: int) -> list[Text]:
    """Its positions one after the other, in lines of at most `width` columns. Spaces and line ends keep their place."""
    lines, used = [Text()], 0
    cells = canvas.cells if canvas.tokens is None else canvas.cells[: canvas.tokens]
    for cell in cells:
        shown = "·" if cell is None else glyph(cell.text)
        columns = cell_len(shown)
        if used and used + columns > width:
            lines.append(Text())
            used = 0
        lines[-1].append(shown, QUIET if cell is None else style(cell, canvas.committed))
        used += columns
    return lines


def draw_answer(answer: Answer, width: int, height: int) -> Text:
    """An answer while it comes: what is committed, then the canvas; the last `height` lines of it, and where it is."""
    lines = [line for part in safe(answer.text).split("\n") for line in _fold(part, width)] if answer.text else []
    if answer.canvas is not None:
        lines += draw_canvas(answer.canvas, width)
    return Text("\n").join([*lines[-max(1, height - 2) :], _where(answer)])


def draw_board(puzzle: str, answer: Answer) -> Text:
    """A puzzle and what is known of its solution. Givens are bold, what breaks the rules has a `!` behind it.

    Entropy colours a digit until its canvas is committed.
    """
    cells: list[Cell | None] = [None] * 81
    digits = ["" if given == "." else given for given in puzzle]
    final = read_answer(answer.text)
    if answer.canvas is not None:
        cells = on_board(answer.canvas)
    elif final is not None:
        digits = final
    shown = [
        given if given != "." else cell.text if cell else digit for given, cell, digit in _each(puzzle, cells, digits)
    ]
    said = [cell.text if cell else digit for cell, digit in zip(cells, digits, strict=True)]
    wrong = broken(puzzle, said)
    text = Text()
    for index, (given, cell) in enumerate(zip(puzzle, cells, strict=True)):
        row, column = divmod(index, 9)
        if column == 0:
            text.append(f"{RULE[row]}\n" if row in RULE else "", QUIET)
            text.append("│ ", QUIET)
        mark = "!" if index in wrong else " "
        look = (
            "bold"
            if given != "."
            else style(cell, done=answer.canvas is not None and answer.canvas.committed)
            if cell
            else ""
        )
        text.append(shown[index] or "·", look if shown[index] else QUIET)
        text.append(mark, "bold red" if mark == "!" else "")
        if column % 3 == 2:
            text.append("│\n" if column == 8 else "│ ", QUIET)
    text.append(END, QUIET)
    return text


def draw_solving(puzzle: str, answer: Answer) -> Text:
    """A board while it fills in, and where it is."""
    return Text("\n").join([draw_board(puzzle, answer), _where(answer)])


def legend() -> Text:
    """What colours and marks mean, in one line."""
    text = Text("nats of entropy: ", QUIET)
    names = ["< 0.01", "< 0.1", "< 0.5", "< 1", "< 2", "more"]
    for name, colour in zip(names, [*(colour for _, colour in LEVELS), NOISY], strict=True):
        text.append(name, f"{INK} {colour}" if colour else "")
        text.append(" ")
    text.append(" ")
    text.append("changed its mind", "underline")
    text.append(" ")
    text.append("just now", "underline bold")
    return text


def _where(answer: Answer) -> Text:
    canvas = answer.canvas
    place = "" if canvas is None else f"canvas {canvas.number + 1} · step {canvas.step} · "
    moved = "" if canvas is None else f" · {sum(bool(cell and cell.moved) for cell in canvas.cells)} changed their mind"
    return Text(f"{place}{answer.seconds:.2f} s{moved}", QUIET)


def _fold(line: str, width: int) -> list[Text]:
    """Lines of at most `width` columns; the cursor never wraps by itself."""
    lines, used = [Text()], 0
    for character in line.expandtabs(4):
        columns = cell_len(character)
        if used and used + columns > width:
            lines.append(Text())
            used = 0
        lines[-1].append(character)
        used += columns
    return lines


def _each(puzzle: str, cells: list[Cell | None], digits: list[str]) -> zip[tuple[str, Cell | None, str]]:
    return zip(puzzle, cells, digits, strict=True)

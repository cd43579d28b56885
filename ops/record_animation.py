"""Records a running service solving a Sudoku, as an animated SVG: what README shows.

    .venv/bin/easel serve &
    .venv/bin/python ops/record_animation.py > docs/images/watch-it-denoise.svg

Asks over HTTP with progress and draws every state that came, in order, each for the same time: the order, digits,
entropies and seconds are the service's, only the pace is not. Plain CSS animation: it loops, follows light and dark,
and stands still on the solved board where less motion is preferred. Loads nothing, holds no script.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "platform")]

from easel.chat.asking import ask  # noqa: E402
from easel.chat.board import broken, on_board, read_answer, read_puzzle  # noqa: E402
from easel.chat.canvas import Answer, Canvas, Cell  # noqa: E402
from easel.chat.conversation import PATH, Conversation  # noqa: E402
from easel.chat.drawing import LEVELS  # noqa: E402
from easel.chat.service import Service  # noqa: E402

PUZZLE = "500090600090006800003508720070000000400000000005000403000060200000800070960230005"
MOST_BYTES = 1_000_000
CELL, LEFT, TOP = 40, 20, 20
WIDTH, HEIGHT = 744, 2 * TOP + 9 * CELL
SIDE = LEFT + 9 * CELL + 36
LEGEND = ("below 0.01", "to 0.1", "to 0.5", "to 1", "to 2", "2 and more")

STYLE = """
:root{--paper:#fffefb;--ink:#1e1c18;--quiet:#635d50;--line:#b8b1a1;--edge:#5a5448;--accent:#1f5f54;--alarm:#a3261b;
--h0:#fffefb;--h1:#fdf3dc;--h2:#fae4b4;--h3:#f5cf86;--h4:#eeb55a;--h5:#e59a3c}
@media (prefers-color-scheme:dark){:root{--paper:#1e1c19;--ink:#efebe2;--quiet:#aaa394;--line:#4a453b;--edge:#9a9383;
--accent:#86cdbd;--alarm:#ff9c8f;--h0:#1e1c19;--h1:#2d2618;--h2:#43351a;--h3:#5d451a;--h4:#785517;--h5:#8f6212}}
text{font-family:ui-sans-serif,system-ui,"Segoe UI",Roboto,"Helvetica Neue","Liberation Sans",sans-serif;
fill:var(--ink)}
.d{font-size:22px;text-anchor:middle}.g{font-weight:700}.q,.k{fill:var(--quiet);font-size:15px}
.t{font-size:21px;font-weight:600}
.n{fill:var(--quiet);font-size:18px;text-anchor:middle}.x{fill:var(--alarm);font-weight:700}
.ok{fill:var(--accent);font-weight:600}
.flip{fill:var(--accent)}.now{fill:none;stroke:var(--accent);stroke-width:2.5}
.b{fill:none;stroke:var(--edge);stroke-width:2}.l{stroke:var(--line)}.paper{fill:var(--paper);stroke:var(--line)}
.s{opacity:0;animation:DURATION step-end infinite}.last{opacity:1}
@media (prefers-reduced-motion:reduce){.s{animation:none!important}}
"""


@dataclass(frozen=True, slots=True)
class Frame:
    """One state of the canvas, and seconds from the request to its arrival."""

    canvas: Canvas
    seconds: float


async def record(service: Service, puzzle: str, seed: int, hertz: float) -> tuple[list[Frame], Answer]:
    """Every state of the first canvas, and the answer. Raises `ServiceFailure`, `ValueError` for a wrong solution."""
    frames: list[Frame] = []

    def seen(answer: Answer) -> None:
        if answer.canvas is not None and (not frames or answer.canvas is not frames[-1].canvas):
            frames.append(Frame(answer.canvas, answer.seconds))

    body = Conversation((await service.models())[0]).body(puzzle, progress=True, alone=True)
    body |= {"seed": seed, "stream_options": {**body["stream_options"], "progress_hz": hertz}}
    answer = await ask(service, PATH, body, seen)
    digits = read_answer(answer.text)
    if digits is None or broken(puzzle, digits):
        raise ValueError(f"that is no solution: {answer.text!r}; another --seed or --puzzle may do")
    if not frames or not frames[-1].canvas.committed:
        raise ValueError("the service told no state of a canvas")
    return [Frame(Canvas.blank(0, len(frames[0].canvas.cells)), 0.0), *frames], answer


def draw(puzzle: str, frames: list[Frame], answer: Answer, state_s: float, hold_s: float) -> str:
    """The SVG. Each frame for `state_s` seconds, the last for `hold_s`."""
    whole = state_s * (len(frames) - 1) + hold_s
    rules, groups = [], []
    for number, frame in enumerate(frames):
        begin, end = 100 * number * state_s / whole, 100 * (number + 1) * state_s / whole
        last = number == len(frames) - 1
        steps = [] if number == 0 else ["0%{opacity:0}"]
        steps += [f"{begin:.3f}%{{opacity:1}}"] + ([] if last else [f"{end:.3f}%{{opacity:0}}"])
        rules.append(f"@keyframes f{number}{{{''.join(steps)}}}#f{number}{{animation-name:f{number}}}")
        shown = _board(puzzle, frame) + _side(frame, answer, puzzle)
        groups.append(f'<g id="f{number}" class="s{" last" if last else ""}">{shown}</g>')
    style = STYLE.replace("DURATION", f"{whole:.2f}s").strip() + "".join(rules)
    title = "A Sudoku solved by denoising: every position is revised in parallel until the board is stable"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" aria-label="{escape(title)}"><style>{style}</style>'
        f'<rect class="paper" x=".5" y=".5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="12"/>'
        f"{''.join(groups)}{_lines()}{_legend()}</svg>\n"
    )


def _board(puzzle: str, frame: Frame) -> str:
    cells = on_board(frame.canvas)
    said = [cell.text if cell else "" for cell in cells]
    # The board as a reader sees it: givens from the puzzle, the rest from the canvas.
    wrong = broken(puzzle, [given if given != "." else digit for given, digit in zip(puzzle, said, strict=True)])
    parts = []
    for index, (given, cell) in enumerate(zip(puzzle, cells, strict=True)):
        x, y = LEFT + CELL * (index % 9), TOP + CELL * (index // 9)
        place = f'x="{x + CELL // 2}" y="{y + 28}"'
        if given != ".":
            parts.append(f'<text class="d g" {place}>{given}</text>')
            continue
        if cell is None:
            if frame.canvas.step == 0:
                parts.append(f'<text class="n" {place}>·</text>')
            continue
        parts.append(_cell(cell, index in wrong, frame.canvas.committed, x, y, place))
    return "".join(parts)


def _cell(cell: Cell, wrong: bool, committed: bool, x: int, y: int, place: str) -> str:
    shown = ""
    if not committed:
        level = next((number for number, (bound, _) in enumerate(LEVELS) if cell.entropy < bound), len(LEVELS))
        shown += f'<rect x="{x}" y="{y}" width="{CELL}" height="{CELL}" style="fill:var(--h{level})"/>'
        if cell.flips:
            shown += f'<path class="flip" d="M{x + CELL - 10} {y}h10v10z"/>'
        if cell.moved:
            shown += f'<rect class="now" x="{x + 2}" y="{y + 2}" width="{CELL - 4}" height="{CELL - 4}"/>'
    return shown + f'<text class="d{" x" if wrong and not committed else ""}" {place}>{escape(cell.text)}</text>'


def _side(frame: Frame, answer: Answer, puzzle: str) -> str:
    canvas = frame.canvas
    known = [cell for cell, given in zip(on_board(canvas), puzzle, strict=True) if cell and given == "."]
    empty = puzzle.count(".")
    if canvas.step == 0:
        head, lines = "Noise", [f"{empty} empty cells, all open", ""]
    elif canvas.committed:
        head = "Committed: solved"
        lines = [f"{answer.steps[0]} denoising steps, {frame.seconds:.2f} s", f"{answer.tokens} tokens, final"]
    else:
        sure = sum(cell.entropy < LEVELS[1][0] for cell in known)
        moved = sum(cell.moved for cell in known)
        head = f"Denoising step {canvas.step}"
        lines = [f"{sure} of {empty} cells sure", f"{moved} changed their mind, {frame.seconds:.2f} s"]
    style = "t ok" if canvas.committed else "t"
    rows = [f'<text class="{style}" x="{SIDE}" y="{TOP + 24}">{head}</text>']
    rows += [f'<text class="q" x="{SIDE}" y="{TOP + 54 + 22 * n}">{line}</text>' for n, line in enumerate(lines)]
    return "".join(rows)


def _lines() -> str:
    size = 9 * CELL
    thin = "".join(
        f'<path class="l" d="M{LEFT + n * CELL} {TOP}v{size}M{LEFT} {TOP + n * CELL}h{size}"/>' for n in range(1, 9)
    )
    thick = "".join(
        f'<path class="b" d="M{LEFT + n * CELL} {TOP}v{size}M{LEFT} {TOP + n * CELL}h{size}"/>' for n in (3, 6)
    )
    return f'{thin}{thick}<rect class="b" x="{LEFT}" y="{TOP}" width="{size}" height="{size}" rx="2"/>'


def _legend() -> str:
    y = TOP + 138
    parts = [f'<text class="k" x="{SIDE}" y="{y}">Entropy of a cell, in nats</text>']
    for level, name in enumerate(LEGEND):
        top = y + 12 + 24 * level
        parts.append(
            f'<rect x="{SIDE}" y="{top}" width="18" height="18" style="fill:var(--h{level});stroke:var(--line)"/>'
            f'<text class="k" x="{SIDE + 28}" y="{top + 14}">{name}</text>'
        )
    top = y + 12 + 24 * len(LEGEND) + 8
    parts.append(f'<path class="flip" d="M{SIDE + 6} {top + 3}h12v12z"/>')
    parts.append(f'<text class="k" x="{SIDE + 28}" y="{top + 14}">changed its mind; framed: just now</text>')
    parts.append(f'<text class="x" style="font-size:15px" x="{SIDE + 4}" y="{top + 38}">7</text>')
    parts.append(f'<text class="k" x="{SIDE + 28}" y="{top + 38}">breaks the rules at this step</text>')
    return "".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--puzzle", default=PUZZLE)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--hertz", type=float, default=30.0, help="states a second, at most")
    parser.add_argument("--state-s", type=float, default=0.9, help="how long each state is shown")
    parser.add_argument("--hold-s", type=float, default=3.5, help="how long the solved board is")
    args = parser.parse_args()
    puzzle = read_puzzle(args.puzzle)
    if puzzle is None:
        parser.error("--puzzle needs 81 characters: digits, and . or 0 for empty cells")
    frames, answer = asyncio.run(record(Service(args.url), puzzle, args.seed, args.hertz))
    svg = draw(puzzle, frames, answer, args.state_s, args.hold_s)
    if len(svg.encode()) > MOST_BYTES:
        raise SystemExit(f"{len(svg.encode())} bytes are too many for README; the limit is {MOST_BYTES}")
    sys.stdout.write(svg)
    print(f"{len(frames)} states, {len(svg.encode())} bytes, {answer.statistics()}", file=sys.stderr)


if __name__ == "__main__":
    main()

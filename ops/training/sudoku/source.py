"""Training examples on the device: puzzles under random symmetries, rendered into prompts and canvases by gathers.

Owns the pool of puzzles and what is drawn from it. Knows no model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.sudoku import notation, smalltalk
from training.sudoku.generator import generate, spoil
from training.tokenizer import BYTE_OFFSET

DIGIT_0 = BYTE_OFFSET + ord("0")
GIVEN_WEIGHT, SENTENCE_WEIGHT = 0.1, 0.3
NO_SOLUTION_SHARE, NO_PUZZLE_SHARE = 0.04, 0.04

# Four puzzles a grid; each column's lowest and highest number of givens, and how often it is drawn.
COLUMNS = ((24, 27), (25, 31), (32, 44), (45, 60))
COLUMN_SHARES = (0.33, 0.30, 0.22, 0.15)


@dataclass
class Examples:
    prompt: Tensor  # [n, P] token ids, padded on the left
    pad: Tensor  # [n] pad tokens
    target: Tensor  # [n, C] token ids
    weight: Tensor  # [n, C] weight of each position in the loss


class Source:
    """A pool of `grids` solution grids, four puzzles each, none of them in `banned` up to symmetry."""

    def __init__(
        self,
        seed: int,
        grids: int,
        banned: NDArray[np.uint64],
        device: torch.device,
        *,
        threads: int,
        variants: int = 4096,
    ) -> None:
        self.device, self.banned = device, banned
        self.fill(seed, grids, threads)
        # `generate` sorts a grid's targets to fall, so the columns come out in the opposite order.
        self.shares = torch.tensor(COLUMN_SHARES[::-1], device=device)
        layout, cell = notation.answer_layout()
        self.layout, self.cell = self._long(layout), self._long(cell)
        self.sentences = self._long(
            np.array([notation.canvas_ids(t) for t in (notation.NO_SOLUTION, notation.NO_PUZZLE)])
        )
        lengths = torch.tensor([len(t) + 1 for t in (notation.NO_SOLUTION, notation.NO_PUZZLE)], device=device)
        said = torch.arange(notation.CANVAS, device=device) < lengths[:, None]
        self.sentence_weights = torch.where(said, SENTENCE_WEIGHT, GIVEN_WEIGHT)
        self.prompts: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self.texts: dict[int, tuple[Tensor, Tensor]] = {}
        for length in (notation.SHORT, notation.LONG):
            made = notation.templates(seed, variants, length)
            self.prompts[length] = self._long(made.entries), self._long(made.pad), self._long(made.empty)
            ids, pad = notation.padded(smalltalk.prompts(seed, 4 * variants, length), length)
            self.texts[length] = self._long(ids), self._long(pad)

    def fill(self, seed: int, grids: int, threads: int) -> None:
        """Replace the pool; may run in a thread of its own while `draw` goes on."""
        rng = np.random.default_rng(seed)
        targets = np.stack([rng.integers(low, high + 1, grids) for low, high in COLUMNS], axis=1)
        puzzles, solutions = generate(seed, targets, self.banned, threads=threads)
        hopeless = spoil(seed, puzzles[rng.permutation(len(puzzles))[: max(64, grids // 8)]])
        self.pool = (
            torch.from_numpy(puzzles.reshape(grids, 4, 81)).to(self.device),
            torch.from_numpy(solutions.reshape(grids, 4, 81)[:, 0].copy()).to(self.device),
            torch.from_numpy(hopeless).to(self.device),
        )

    def _long(self, array: NDArray[np.integer]) -> Tensor:
        return torch.from_numpy(array.astype(np.int64)).to(self.device)

    def _symmetry(self, n: int) -> tuple[Tensor, Tensor]:
        """Random digit maps [n, 10] and cell maps [n, 81]."""

        def shuffled(*shape: int) -> Tensor:
            return torch.rand(*shape, device=self.device).argsort(-1)

        digits = torch.cat((torch.zeros(n, 1, dtype=torch.long, device=self.device), shuffled(n, 9) + 1), dim=1)
        lines = 3 * shuffled(n, 2, 3)[..., None] + shuffled(n, 2, 3, 3)
        rows, columns = lines.flatten(2).unbind(1)
        cells = 9 * rows[:, :, None] + columns[:, None, :]
        flip = torch.rand(n, device=self.device) < 0.5
        return digits, torch.where(flip[:, None, None], cells.transpose(1, 2), cells).flatten(1)

    def render(
        self, length: int, puzzles: Tensor, solutions: Tensor, which: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Prompts [n, length] and their padding for puzzles [n, 81], in random notations or the given ones."""
        n = len(puzzles)
        entries, pads, empties = self.prompts[length]
        if which is None:
            which = torch.randint(len(entries), (n,), device=self.device)
        cells = torch.cat((puzzles, puzzles.roll(1, 0), solutions.roll(1, 0)), dim=1)
        template = entries[which]
        value = cells.gather(1, (-1 - template).clamp(min=0))
        token = torch.where(value > 0, DIGIT_0 + value, empties[which][:, None])
        return torch.where(template < 0, token, template), pads[which]

    def answers(self, puzzles: Tensor, solutions: Tensor) -> tuple[Tensor, Tensor]:
        """Canvases [n, 96] of the solved grids and the weights of their positions."""
        at = self.cell.clamp(min=0)
        target = torch.where(self.cell >= 0, DIGIT_0 + solutions[:, at], self.layout)
        unknown = (self.cell >= 0) & (puzzles[:, at] == 0)
        return target, torch.where(unknown, 1.0, GIVEN_WEIGHT)

    def draw(self, n: int, length: int) -> Examples:
        """n fresh examples with prompts of `length` tokens."""
        device = self.device
        pool, answers, hopeless = self.pool  # taken once: `fill` may replace it
        grid = torch.randint(len(pool), (n,), device=device)
        column = torch.multinomial(self.shares, n, replacement=True)
        digits, cells = self._symmetry(n)
        puzzles = digits.gather(1, pool[grid, column].long().gather(1, cells))
        solutions = digits.gather(1, answers[grid].long().gather(1, cells))
        wrong = torch.randint(len(hopeless), (n,), device=device)
        spoiled = digits.gather(1, hopeless[wrong].long().gather(1, cells))
        kind = torch.rand(n, device=device)
        is_hopeless = kind < NO_SOLUTION_SHARE
        is_text = kind > 1 - NO_PUZZLE_SHARE
        puzzles = torch.where(is_hopeless[:, None], spoiled, puzzles)
        prompt, pad = self.render(length, puzzles, solutions)
        target, weight = self.answers(puzzles, solutions)
        for index, rows in enumerate((is_hopeless, is_text)):
            target = torch.where(rows[:, None], self.sentences[index], target)
            weight = torch.where(rows[:, None], self.sentence_weights[index], weight)
        texts, text_pads = self.texts[length]
        text = torch.randint(len(texts), (n,), device=device)
        prompt = torch.where(is_text[:, None], texts[text], prompt)
        return Examples(prompt, torch.where(is_text, text_pads[text], pad), target, weight)

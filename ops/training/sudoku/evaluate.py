"""Solve rates of a model: by band, by notation, by cap of denoising steps, adaptive or fixed.

Works on the training model, on whatever device it is; `easel eval sudoku` measures the served one over HTTP.
An answer counts only if the whole canvas is right: nine lines, the turn's end, the tail.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.sudoku import notation, smalltalk
from training.sudoku.generator import BANDS, Cells, generate, invariants, spoil
from training.sudoku.model import Denoiser
from training.sudoku.packing import Attend, Packing, Prompts
from training.sudoku.sampler import Decoding, decode
from training.tokenizer import BOS, BYTE_OFFSET, TURN_CLOSE, decode_text, encode_text

Puzzles = dict[str, tuple[Cells, Cells]]
CAPS = (1, 2, 4, 8, 12, 16, 48)


def prompt_ids(template: list[int], puzzle: Cells, empty: str = ".") -> list[int]:
    """One prompt from a template's ids (see `notation`) without padding."""
    cell = {0: BYTE_OFFSET + ord(empty)} | {d: BYTE_OFFSET + ord(str(d)) for d in range(1, 10)}
    return [cell[int(puzzle[-1 - i])] if i < 0 else i for i in template]


class Examiner:
    """Decodes prompts in the batches that training uses, so that compiled shapes are met again."""

    def __init__(self, model: Denoiser, packing: Packing, attend: Attend, device: torch.device) -> None:
        self.model, self.packing, self.attend, self.device = model, packing, attend, device
        self.sizes = {notation.SHORT: packing.n_short, notation.LONG: packing.n_long}

    def canvases(
        self, prompts: list[list[int]], how: Decoding, adaptive: bool = True, length: int = notation.SHORT
    ) -> tuple[Tensor, Tensor]:
        """Argmax canvases [n, C] and steps [n], on the CPU; prompts have at most `length` tokens."""
        canvases, steps = [], []
        size = self.sizes[length]
        first = 0 if length == notation.SHORT else self.packing.n_short
        chosen = slice(first, first + size)
        shape, total = self.model.shape, sum(self.sizes.values())
        for at in range(0, len(prompts), size):
            part = prompts[at : at + size]
            ids, pads = {}, {}
            for other, n in self.sizes.items():  # rows of the other length carry something and are not looked at
                texts = part + part[-1:] * (size - len(part)) if other == length else [[BOS]] * n
                tokens, pad = notation.padded(texts, other)
                ids[other] = torch.from_numpy(tokens.astype(np.int64)).to(self.device)
                pads[other] = torch.from_numpy(pad).long().to(self.device)
            packed = Prompts(ids[notation.SHORT], ids[notation.LONG], pads[notation.SHORT], pads[notation.LONG])
            self.packing.look_at(packed)
            x = torch.zeros(total, shape.canvas_length, dtype=torch.long, device=self.device)
            last = torch.zeros(total, shape.canvas_length, shape.vocab_size, dtype=torch.bfloat16, device=self.device)
            use = torch.zeros(total, dtype=torch.bool, device=self.device)

            def logits_of(canvas: Tensor, previous: Tensor, using: Tensor) -> Tensor:
                x[chosen], last[chosen], use[chosen] = canvas, previous, using  # noqa: B023
                with torch.enable_grad():  # the graph that training compiled serves here too
                    hidden, _ = self.model(packed, x, last, use, self.packing, self.attend)  # noqa: B023
                return self.model.logits(self.packing.canvases(hidden.detach())[chosen])

            answer, taken = decode(
                logits_of, size, shape.canvas_length, shape.vocab_size, how, self.device, adaptive=adaptive
            )
            canvases.append(answer[: len(part)].cpu())
            steps.append(taken[: len(part)].cpu())
        return torch.cat(canvases), torch.cat(steps)

    def solve_rate(
        self,
        prompts: list[list[int]],
        answers: list[list[int]],
        how: Decoding,
        adaptive: bool = True,
        length: int = notation.SHORT,
    ) -> dict[str, float]:
        """Share of answers exactly right, and the steps taken."""
        got, steps = self.canvases(prompts, how, adaptive, length)
        right = (got == torch.tensor(answers)).all(-1)
        taken = steps.float()
        return {
            "rate": round(right.float().mean().item(), 4),
            "steps_mean": round(taken.mean().item(), 2),
            "steps_median": taken.median().item(),
            "steps_p95": taken.quantile(0.95).item(),
            "unconverged": round((steps >= how.max_denoising_steps).float().mean().item(), 4),
        }


def chat_prompts(puzzles: Cells) -> list[list[int]]:
    """81 characters with dots in one user turn."""
    template = notation.chat_ids(notation._ids(notation.bare(notation.cells_from(0))))
    return [prompt_ids(template, p) for p in puzzles]


def answers(solutions: Cells) -> list[list[int]]:
    return [notation.canvas_ids(notation.answer_text(s)) for s in solutions]


def by_band(examiner: Examiner, puzzles: Puzzles, how: Decoding, adaptive: bool = True) -> dict[str, dict[str, float]]:
    return {band: examiner.solve_rate(chat_prompts(p), answers(s), how, adaptive) for band, (p, s) in puzzles.items()}


def against_step_cap(examiner: Examiner, puzzles: Puzzles, how: Decoding) -> list[dict[str, Any]]:
    """Solve rate of each band at each cap of steps, with adaptive stopping and with all steps taken."""
    rows = []
    for cap in CAPS:
        for adaptive in (True, False):
            capped = replace(how, max_denoising_steps=cap)
            rows.append({"cap": cap, "adaptive": adaptive, "bands": by_band(examiner, puzzles, capped, adaptive)})
    return rows


def tune(examiner: Examiner, puzzles: Puzzles, start: Decoding) -> tuple[Decoding, list[dict[str, Any]]]:
    """The best decoding parameters on validation puzzles: rate first (mean of the bands), then fewer steps."""
    tried: list[dict[str, Any]] = []

    third = examiner.packing.n_short // len(puzzles)  # one batch holds as much of each band
    prompts = [p for few, _ in puzzles.values() for p in chat_prompts(few[:third])]
    truth = [a for _, few in puzzles.values() for a in answers(few[:third])]

    def score(how: Decoding) -> float:
        result = examiner.solve_rate(prompts, truth, how)
        tried.append({"decoding": asdict(how), **result})
        return result["rate"] - 0.0004 * result["steps_mean"]

    best, best_score = start, score(start)
    choices: dict[str, tuple[Any, ...]] = {
        "entropy_bound": (0.05, 0.2, 0.4, 1.0),
        "t_max": (0.6, 1.0),
        "t_min": (0.2, 0.55),
        "confidence_threshold": (0.002, 0.01, 0.02),
    }
    for name, values in choices.items():
        base = best
        for value in values:
            how = replace(base, **{name: value})
            if how.t_min < how.t_max and (got := score(how)) > best_score:
                best, best_score = how, got
    return best, tried


def by_notation(
    examiner: Examiner, seed: int, banned: NDArray[np.uint64], how: Decoding, length: int, n: int = 256
) -> dict[str, Any]:
    """Right answers among fresh puzzles (32 to 44 givens) in every notation that fits, and among what has no answer."""
    rng = random.Random(seed)
    puzzles, solutions = generate(seed, np.full((n, 1), 36), banned)
    right = answers(solutions)
    fits = [t for t in (notation._template(rng, length) for _ in range(4 * n)) if len(t) <= length]
    cells = np.concatenate((puzzles, np.roll(puzzles, 1, 0), np.roll(solutions, 1, 0)), axis=1)
    mixed = [prompt_ids(t, c, rng.choice(".0_*")) for t, c in zip(fits[:n], cells, strict=True)]
    out: dict[str, Any] = {"puzzles in mixed notations": examiner.solve_rate(mixed, right, how, length=length)}
    clash = spoil(seed, puzzles)
    for name, part in (("no solution, plain clash", clash[1::2]), ("no solution, hidden", clash[0::2])):
        said = [notation.canvas_ids(notation.NO_SOLUTION)] * len(part)
        out[name] = examiner.solve_rate(chat_prompts(part), said, how, length=length)
    texts = smalltalk.prompts(seed, n, length)
    out["no puzzle"] = examiner.solve_rate(texts, [notation.canvas_ids(notation.NO_PUZZLE)] * n, how, length=length)
    return out


def samples(examiner: Examiner, prompts: list[list[int]], how: Decoding) -> list[dict[str, Any]]:
    """Prompt and answer as text, up to the turn's end."""
    canvases, steps = examiner.canvases(prompts, how)
    out = []
    for prompt, canvas, taken in zip(prompts, canvases.tolist(), steps.tolist(), strict=True):
        end = canvas.index(TURN_CLOSE) if TURN_CLOSE in canvas else len(canvas)
        out.append({"prompt": decode_text(prompt), "answer": decode_text(canvas[:end]), "steps": taken})
    return out


def report(
    examiner: Examiner, held_out: Puzzles, validation: Puzzles, how: Decoding, keep: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Everything the model card says: parameters tuned on validation puzzles, then the held-out figures.

    `keep` is given the report after each part, so that a run cut short leaves what it had.
    """
    started = time.monotonic()
    best, tried = tune(examiner, validation, how)
    out: dict[str, Any] = {"decoding": asdict(best), "tuning": tried}
    keep(out)
    out["held_out"] = by_band(examiner, held_out, best)
    keep(out)
    banned = np.concatenate([invariants(s) for _, s in (*held_out.values(), *validation.values())])
    out["notations"] = {
        str(length): by_notation(examiner, 7, banned, best, length, n)
        for length, n in ((notation.SHORT, 256), (notation.LONG, 64))
    }
    texts = ["Hi", "What is the capital of France?", "53..7....", "0" * 81]
    out["samples"] = samples(examiner, [notation.chat_ids(encode_text(t)) for t in texts], best)
    keep(out)
    out["against_step_cap"] = against_step_cap(examiner, held_out, best)
    keep(out)
    out["held_out_default_decoding"] = by_band(examiner, held_out, Decoding())
    out["bands"] = {name: list(span) for name, span in BANDS.items()}
    out["seconds"] = round(time.monotonic() - started, 1)
    keep(out)
    return out

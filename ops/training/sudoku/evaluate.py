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
from training.sudoku.generator import BANDS, Cells, generate, spoil
from training.sudoku.model import Attend, Denoiser
from training.sudoku.sampler import Decoding, decode
from training.tokenizer import BYTE_OFFSET, TURN_CLOSE, decode_text

Puzzles = dict[str, tuple[Cells, Cells]]
CAPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)


def prompt_ids(template: list[int], puzzle: Cells, empty: str = ".") -> list[int]:
    """One prompt from a template's ids (see `notation`) without padding."""
    cell = {0: BYTE_OFFSET + ord(empty)} | {d: BYTE_OFFSET + ord(str(d)) for d in range(1, 10)}
    return [cell[int(puzzle[-1 - i])] if i < 0 else i for i in template]


class Examiner:
    """Decodes prompts in batches of `rows` with prompts padded to `length`, so that compiled shapes are met again."""

    def __init__(
        self, model: Denoiser, attention: Callable[[Tensor], Attend], rows: int, length: int, device: torch.device
    ) -> None:
        self.model, self.rows, self.length, self.device = model, rows, length, device
        self.pad = torch.zeros(rows, dtype=torch.long, device=device)
        self.attend = attention(self.pad)

    def canvases(self, prompts: list[list[int]], how: Decoding, adaptive: bool = True) -> tuple[Tensor, Tensor]:
        """Argmax canvases [n, C] and steps [n], on the CPU."""
        canvases, steps = [], []
        for at in range(0, len(prompts), self.rows):
            part = prompts[at : at + self.rows]
            ids, pad = notation.padded(part + part[-1:] * (self.rows - len(part)), self.length)
            prompt = torch.from_numpy(ids.astype(np.int64)).to(self.device)
            self.pad.copy_(torch.from_numpy(pad).long())

            def logits_of(x: Tensor, previous: Tensor, use: Tensor, prompt: Tensor = prompt) -> Tensor:
                with torch.enable_grad():  # the graph that training compiled serves here too
                    hidden, _ = self.model(prompt, x, previous, use, self.attend)
                return self.model.logits(hidden[:, self.length :].detach())

            shape = self.model.shape
            answer, taken = decode(
                logits_of, self.rows, shape.canvas_length, shape.vocab_size, how, self.device, adaptive=adaptive
            )
            canvases.append(answer[: len(part)].cpu())
            steps.append(taken[: len(part)].cpu())
        return torch.cat(canvases), torch.cat(steps)

    def solve_rate(
        self, prompts: list[list[int]], answers: list[list[int]], how: Decoding, adaptive: bool = True
    ) -> dict[str, float]:
        """Share of answers exactly right, and the steps taken."""
        got, steps = self.canvases(prompts, how, adaptive)
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
    return {
        band: examiner.solve_rate(chat_prompts(p), answers(s), how, adaptive) for band, (p, s) in puzzles.items()
    }


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

    def score(how: Decoding) -> float:
        bands = by_band(examiner, puzzles, how)
        rate = float(np.mean([b["rate"] for b in bands.values()]))
        steps = float(np.mean([b["steps_mean"] for b in bands.values()]))
        tried.append({"decoding": asdict(how), "bands": bands, "rate": rate, "steps": steps})
        return rate - 0.0004 * steps

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


def by_notation(examiner: Examiner, seed: int, banned: NDArray[np.uint64], how: Decoding, n: int = 256) -> dict[str, Any]:
    """Right answers among fresh puzzles (32 to 44 givens) in every notation that fits, and among what has no answer."""
    rng = random.Random(seed)
    puzzles, solutions = generate(seed, np.full((n, 1), 36), banned)
    right = answers(solutions)
    fits = [t for t in (notation._template(rng, examiner.length) for _ in range(4 * n)) if len(t) <= examiner.length]
    cells = np.concatenate((puzzles, np.roll(puzzles, 1, 0), np.roll(solutions, 1, 0)), axis=1)
    mixed = [prompt_ids(t, c, rng.choice(".0_*")) for t, c in zip(fits[:n], cells, strict=True)]
    out: dict[str, Any] = {"puzzles in mixed notations": examiner.solve_rate(mixed, right, how)}
    clash = spoil(seed, puzzles)
    for name, part in (("no solution, plain clash", clash[1::2]), ("no solution, hidden", clash[0::2])):
        said = [notation.canvas_ids(notation.NO_SOLUTION)] * len(part)
        out[name] = examiner.solve_rate(chat_prompts(part), said, how)
    texts = smalltalk.prompts(seed, n, examiner.length)
    out["no puzzle"] = examiner.solve_rate(texts, [notation.canvas_ids(notation.NO_PUZZLE)] * n, how)
    return out


def samples(examiner: Examiner, prompts: list[list[int]], how: Decoding) -> list[dict[str, Any]]:
    """Prompt and answer as text, up to the turn's end."""
    canvases, steps = examiner.canvases(prompts, how)
    out = []
    for prompt, canvas, taken in zip(prompts, canvases.tolist(), steps.tolist(), strict=True):
        end = canvas.index(TURN_CLOSE) if TURN_CLOSE in canvas else len(canvas)
        out.append({"prompt": decode_text(prompt), "answer": decode_text(canvas[:end]), "steps": taken})
    return out


def report(examiners: dict[int, Examiner], held_out: Puzzles, validation: Puzzles, how: Decoding) -> dict[str, Any]:
    """Everything the model card says: parameters tuned on validation puzzles, then the held-out figures."""
    from training.sudoku.generator import invariants

    started = time.monotonic()
    short = examiners[notation.SHORT]
    best, tried = tune(short, validation, how)
    out: dict[str, Any] = {"decoding": asdict(best), "tuning": tried}
    out["held_out"] = by_band(short, held_out, best)
    out["held_out_default_decoding"] = by_band(short, held_out, Decoding())
    out["against_step_cap"] = against_step_cap(short, held_out, best)
    banned = np.concatenate([invariants(s) for _, s in (*held_out.values(), *validation.values())])
    out["notations"] = {str(length): by_notation(e, 7, banned, best) for length, e in examiners.items()}
    texts = ["Hi", "What is the capital of France?", "53..7....", "0" * 81]
    from training.tokenizer import encode_text

    out["samples"] = samples(short, [notation.chat_ids(encode_text(t)) for t in texts], best)
    out["bands"] = {name: list(span) for name, span in BANDS.items()}
    out["seconds"] = round(time.monotonic() - started, 1)
    return out

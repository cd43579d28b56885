"""Train the Sudoku checkpoint on one GPU: `PYTHONPATH=ops python -m training.sudoku.train --seconds 1380 --out DIR`.

The run is planned in seconds: the learning rate falls to zero at the end of them, so it ends in a usable model. A run
stopped by `--stop-after` leaves its state in `--state` and goes on from there. Writes a log (one JSON object a line),
the averaged weights in parts and, at the end, the evaluation.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from training.sudoku import evaluate, heldout, notation
from training.sudoku.generator import invariants
from training.sudoku.model import Attend, Denoiser, Shape, flex_attention_over, masked_attention
from training.sudoku.optimizer import Optimizer, average, rate
from training.sudoku.rollout import Rollout
from training.sudoku.sampler import Decoding
from training.sudoku.source import Source

ENCODER_WEIGHT, BALANCE_WEIGHT = 0.02, 0.01
ENCODER_ROWS = 8
"""One row in so many also carries the encoder's next-token loss: givens are random, so there is little to learn."""


def objective(model: Denoiser, hidden: Tensor, prompt: Tensor, pad: Tensor, target: Tensor, weight: Tensor) -> Any:
    """Loss and detached bf16 logits [B, C, V]: weighted cross-entropy over the canvas, next-token loss on the prompt."""
    length = prompt.shape[1]
    logits = model.logits(hidden[:, length:])
    canvas = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none") * weight.flatten()
    some = max(1, prompt.shape[0] // ENCODER_ROWS)
    ahead = model.logits(hidden[:some, : length - 1])
    seen = (torch.arange(length - 1, device=pad.device) >= pad[:some, None]).flatten().float()
    encoder = F.cross_entropy(ahead.flatten(0, 1), prompt[:some, 1:].flatten(), reduction="none") * seen
    canvas_loss, encoder_loss = canvas.sum() / weight.sum(), encoder.sum() / seen.sum()
    return canvas_loss + ENCODER_WEIGHT * encoder_loss, canvas_loss.detach(), logits.detach().to(torch.bfloat16)


class Trainer:
    """Model, averaged model, optimizer and the two batches; `step` is one update."""

    def __init__(self, args: argparse.Namespace, shape: Shape, source: Source, device: torch.device) -> None:
        torch.manual_seed(args.seed)
        cuda = device.type == "cuda"
        dtype = torch.bfloat16 if cuda else torch.float32
        self.args, self.device = args, device
        self.model = Denoiser(shape, dtype).to(device)
        self.averaged = Denoiser(shape, dtype).to(device)
        self.averaged.load_state_dict(self.model.state_dict())
        self.optimizer = Optimizer(self.model, muon=args.muon)
        self.objective = objective
        self.attention = flex_attention_over if cuda else masked_attention
        self.batches: dict[int, Rollout] = {}
        self.attends: dict[int, Attend] = {}
        for length, rows in ((notation.SHORT, args.rows_short), (notation.LONG, args.rows_long)):
            batch = Rollout(source, rows, length, shape.vocab_size)
            self.batches[length] = batch
            self.attends[length] = self.attention(batch.pad, length, length + shape.canvas_length)
        self.steps, self.elapsed = 0, 0.0
        if args.compile:
            import torch._dynamo as dynamo

            dynamo.config.cache_size_limit = dynamo.config.recompile_limit = 64
            for model in (self.model, self.averaged):
                for layer in model.layers:
                    layer.compile(dynamic=False)
                model.embed = torch.compile(model.embed, dynamic=False)  # type: ignore[method-assign]
            self.objective = torch.compile(objective, dynamic=False)
            from training.sudoku import rollout, sampler

            rollout.propose = torch.compile(sampler.propose, dynamic=False)  # type: ignore[attr-defined]

    def attend_for(self, rows: int, length: int) -> Callable[[Tensor], Attend]:
        total = length + self.model.shape.canvas_length
        return lambda pad: self.attention(pad, length, total)

    def step(self, progress: float) -> dict[str, Tensor]:
        """One update on both batches; the figures stay on the device."""
        max_age = 2 + int(14 * min(1.0, progress / 0.25))
        figures: dict[str, Tensor] = {}
        all_rows = sum(b.rows for b in self.batches.values())
        for length, batch in self.batches.items():
            hidden, balance = self.model(
                batch.prompt, batch.canvas, batch.previous, batch.use_previous, self.attends[length]
            )
            loss, canvas_loss, logits = self.objective(
                self.model, hidden, batch.prompt, batch.pad, batch.target, batch.weight
            )
            ((loss + BALANCE_WEIGHT * balance) * (batch.rows / all_rows)).backward()
            late = batch.decoding & (batch.age >= 3)
            right = batch.advance(logits, max_age)
            figures |= {
                f"loss_{length}": canvas_loss,
                f"balance_{length}": balance.detach(),
                f"right_{length}": (right & late).sum() / late.sum().clamp(min=1),
            }
        self.optimizer.step(rate(self.args.lr, self.steps, progress))
        self.steps += 1
        average(self.averaged, self.model, min(self.args.ema, self.steps / (self.steps + 20)))
        return figures

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.model.state_dict(), "averaged": self.averaged.state_dict(), "elapsed": self.elapsed,
            "optimizer": self.optimizer.state_dict(), "steps": self.steps,
        }  # fmt: skip
        torch.save(state, folder / "state.tmp")
        (folder / "state.tmp").replace(folder / "state.pt")

    def load(self, folder: Path) -> None:
        state = torch.load(folder / "state.pt", map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps, self.elapsed = state["steps"], state["elapsed"]


def write_parts(model: Denoiser, folder: Path, limit: int = 15 << 20) -> None:
    """The weights in fp32, in files of at most `limit` bytes; `export_checkpoint` joins them."""
    parts: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, value in model.transformers_state().items():
        size = value.numel() * 4
        if filled + size > limit:
            parts.append({})
            filled = 0
        parts[-1][name] = value.float().cpu().contiguous()
        filled += size
    for i, part in enumerate(parts):
        save_file(part, folder / f"weights-{i}.safetensors")


def profile(trainer: Trainer) -> None:
    for _ in range(3):
        trainer.step(0.0)
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as seen:
        for _ in range(3):
            trainer.step(0.0)
        torch.cuda.synchronize()
    print(seen.key_averages().table(sort_by="cuda_time_total", row_limit=45, max_name_column_width=90))


def train(trainer: Trainer, args: argparse.Namespace, log: Callable[[dict[str, Any]], None]) -> bool:
    """Run until the planned seconds are used up (True) or `--stop-after` (False)."""
    device, validation = trainer.device, heldout.bands(heldout.VALIDATION_SEED + 1, 1 + args.rows_short // 3)
    examiner = evaluate.Examiner(
        trainer.averaged, trainer.attend_for(args.rows_short, notation.SHORT), args.rows_short, notation.SHORT, device
    )
    sync = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    process_start = args.process_start
    warm = time.monotonic()
    trainer.step(trainer.elapsed / args.seconds)
    sync()
    log({"event": "compiled", "seconds": round(time.monotonic() - warm, 1), "since_start": time.monotonic() - process_start})
    if args.profile:
        profile(trainer)
    mark, mark_steps, last_eval = time.monotonic(), trainer.steps, time.monotonic()
    base = trainer.elapsed
    start = time.monotonic()
    figures: dict[str, Tensor] = {}
    while True:
        now = time.monotonic()
        trainer.elapsed = base + now - start
        progress = trainer.elapsed / args.seconds
        if progress >= 1:
            return True
        if now - process_start >= args.stop_after:
            return False
        figures = trainer.step(progress)
        if trainer.steps % args.log_every == 0:
            sync()
            now = time.monotonic()
            per_step = (now - mark) / (trainer.steps - mark_steps)
            line: dict[str, Any] = {k: round(float(v), 4) for k, v in figures.items()}
            rows = sum(b.rows for b in trainer.batches.values())
            log({
                "step": trainer.steps, "elapsed": round(trainer.elapsed, 1), **line,
                "ms_per_step": round(1000 * per_step, 1), "rows_per_second": round(rows / per_step),
                "lr": round(rate(args.lr, trainer.steps, progress), 6),
            })  # fmt: skip
            mark, mark_steps = now, trainer.steps
        if now - last_eval >= args.eval_every:
            how = Decoding(max_denoising_steps=16)
            bands = {}
            # one batch holds a third of each band
            prompts = [p for puzzles, _ in validation.values() for p in evaluate.chat_prompts(puzzles[: args.rows_short // 3])]
            truth = [a for _, s in validation.values() for a in evaluate.answers(s[: args.rows_short // 3])]
            got, taken = examiner.canvases(prompts, how)
            right = (got == torch.tensor(truth)).all(-1).view(3, -1).float().mean(-1).tolist()
            bands = {b: round(r, 4) for b, r in zip(validation, right, strict=True)}
            log({"event": "eval", "step": trainer.steps, "elapsed": round(trainer.elapsed, 1), "rates": bands,
                 "steps_mean": round(taken.float().mean().item(), 2), "cost": round(time.monotonic() - now, 2)})  # fmt: skip
            last_eval = mark = time.monotonic()
            mark_steps = trainer.steps


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1380, help="planned training time in all calls")
    parser.add_argument("--stop-after", type=float, default=1e9, help="seconds from start after which to save and stop")
    parser.add_argument("--out", type=Path, required=True, help="log, weights and evaluation")
    parser.add_argument("--state", type=Path, help="where to keep what a resumption needs; resumed from if it is there")
    parser.add_argument("--rows-short", type=int, default=1024)
    parser.add_argument("--rows-long", type=int, default=64)
    parser.add_argument("--grids", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=16, help="of the generator")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--muon", type=float, default=2.0, help="update size of matrices against AdamW's; 0: AdamW only")
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--eval-every", type=float, default=60, help="seconds")
    parser.add_argument("--shape", type=json.loads, default={}, help="JSON overrides of model.Shape")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--cache", type=Path, help="compiled kernels of an earlier run, written if it is not there")
    parser.add_argument("--profile", action="store_true", help="print where three steps spend their time")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--no-report", dest="report", action="store_false")
    args = parser.parse_args(argv)
    args.process_start = time.monotonic()
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    device, shape = torch.device(args.device), Shape(**args.shape)
    torch.set_float32_matmul_precision("high")
    if args.cache is not None and args.cache.exists():
        torch.compiler.load_cache_artifacts(args.cache.read_bytes())
    lines = (args.out / "log.jsonl").open("a", encoding="utf-8")

    def log(entry: dict[str, Any]) -> None:
        text = json.dumps(entry)
        print(text, flush=True)
        lines.write(text + "\n")
        lines.flush()

    held, validation = heldout.load(), heldout.validation()
    used = [s for puzzles in (held, validation, heldout.bands(heldout.VALIDATION_SEED + 1, 1 + args.rows_short // 3))
            for _, s in puzzles.values()]  # fmt: skip
    banned = np.concatenate([invariants(s) for s in used])
    resumed = args.state is not None and (args.state / "state.pt").exists()
    made = time.monotonic()
    # A resumed run draws a new pool: there is no end to puzzles.
    seed = args.seed + (int(1e6) + int(time.time()) if resumed else 0)
    source = Source(seed, args.grids, banned, device, threads=args.threads)
    trainer = Trainer(args, shape, source, device)
    if resumed:
        trainer.load(args.state)
    weights = sum(p.numel() for p in trainer.model.parameters())
    log({"event": "start", "parameters": weights, "shape": asdict(shape), "resumed": resumed, "steps": trainer.steps,
         "puzzles": 4 * args.grids, "pool_seconds": round(time.monotonic() - made, 1), "pool_seed": seed,
         "args": {k: str(v) for k, v in vars(args).items()}, "torch": torch.__version__})  # fmt: skip
    finished = train(trainer, args, log)
    if args.cache is not None and not args.cache.exists() and (made_now := torch.compiler.save_cache_artifacts()):
        args.cache.write_bytes(made_now[0])
    if args.state is not None:
        trainer.save(args.state)
    write_parts(trainer.averaged, args.out)
    log({"event": "stopped", "finished": finished, "steps": trainer.steps, "elapsed": round(trainer.elapsed, 1)})
    if finished and args.report:
        with torch.no_grad():  # what will be stored: bf16 but for the experts
            for name, parameter in trainer.averaged.named_parameters():
                if ".experts." not in name:
                    parameter.copy_(parameter.to(torch.bfloat16))
        examiners = {
            length: evaluate.Examiner(trainer.averaged, trainer.attend_for(rows, length), rows, length, device)
            for length, rows in ((notation.SHORT, args.rows_short), (notation.LONG, args.rows_long))
        }
        result = evaluate.report(examiners, held, validation, Decoding())
        (args.out / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(json.dumps({k: result[k] for k in ("decoding", "held_out", "notations", "samples", "seconds")}, indent=1))


if __name__ == "__main__":
    main()

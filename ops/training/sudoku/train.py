"""Train the Sudoku checkpoint on one GPU: `PYTHONPATH=ops python -m training.sudoku.train --seconds 1380 --out DIR`.

The run is planned in seconds: the learning rate falls to zero at the end of them, so it ends in a usable model. A run
stopped by `--stop-after` leaves its state in `--state` and goes on from there. Writes a log (one JSON object a line),
the averaged weights in parts and, at the end, the evaluation.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from training.sudoku import evaluate, heldout
from training.sudoku.generator import invariants
from training.sudoku.model import Denoiser, Shape
from training.sudoku.optimizer import Optimizer, average, rate
from training.sudoku.packing import Packing
from training.sudoku.rollout import Rollout
from training.sudoku.sampler import Decoding
from training.sudoku.source import Source

ENCODER_WEIGHT, BALANCE_WEIGHT = 0.02, 0.01
ENCODER_ROWS = 8
"""One row in so many also carries the encoder's next-token loss: givens are random, so there is little to learn."""


def objective(
    model: Denoiser, hidden: Tensor, packing: Packing, prompt: Tensor, pad: Tensor, target: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, its canvas part, and detached bf16 logits [N, C, V]: weighted cross-entropy over the canvases, next-token
    loss on some of the short prompts."""
    logits = model.logits(packing.canvases(hidden))
    canvas = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none") * weight.flatten()
    some = max(1, prompt.shape[0] // ENCODER_ROWS)
    ahead = model.logits(packing.short_examples(hidden)[:some, : prompt.shape[1] - 1])
    seen = (torch.arange(prompt.shape[1] - 1, device=pad.device) >= pad[:some, None]).flatten().float()
    encoder = F.cross_entropy(ahead.flatten(0, 1), prompt[:some, 1:].flatten(), reduction="none") * seen
    canvas_loss, encoder_loss = canvas.sum() / weight.sum(), encoder.sum() / seen.sum()
    return canvas_loss + ENCODER_WEIGHT * encoder_loss, canvas_loss.detach(), logits.detach().to(torch.bfloat16)


class Trainer:
    """Model, averaged model, optimizer and the batch; `step` is one update."""

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
        self.batch = Rollout(source, args.rows_short, args.rows_long, shape.vocab_size)
        # Training and evaluation share packing and attention: a batch sets the padding before its pass.
        self.packing = Packing(args.rows_short, args.rows_long, device)
        self.attend = self.packing.flex_attention() if cuda else self.packing.masked_attention()
        self.steps, self.elapsed = 0, 0.0
        if args.compile:
            import torch._dynamo as dynamo

            dynamo.config.cache_size_limit = dynamo.config.recompile_limit = 64
            for model in (self.model, self.averaged):
                for layer in model.layers:
                    layer.compile(dynamic=False)
                model.embed = torch.compile(model.embed, dynamic=False)  # type: ignore[method-assign]
            self.objective = torch.compile(objective, dynamic=False)

    def examiner(self) -> evaluate.Examiner:
        return evaluate.Examiner(self.averaged, self.packing, self.attend, self.device)

    def step(self, progress: float, narrate: Callable[[str], None] = lambda _: None) -> dict[str, Tensor]:
        """One update; the figures stay on the device. `narrate` is told of the parts as they end."""
        max_age = 2 + int(14 * min(1.0, progress / 0.25))
        batch = self.batch
        self.packing.look_at(batch.prompts)
        hidden, balance = self.model(
            batch.prompts, batch.canvas, batch.previous, batch.use_previous, self.packing, self.attend
        )
        narrate("forward")
        loss, canvas_loss, logits = self.objective(
            self.model, hidden, self.packing, batch.prompts.short, batch.prompts.short_pad, batch.target, batch.weight
        )
        narrate("objective")
        (loss + BALANCE_WEIGHT * balance).backward()
        narrate("backward")
        late = batch.decoding & (batch.age >= 3)
        right = batch.advance(logits, max_age)
        narrate("advance")
        figures = {
            "loss": canvas_loss,
            "balance": balance.detach(),
            "right_late": (right & late).sum() / late.sum().clamp(min=1),
            "late": late.float().mean(),
        }
        self.optimizer.step(rate(self.args.lr, self.steps, progress))
        self.steps += 1
        average(self.averaged, self.model, min(self.args.ema, self.steps / (self.steps + 20)))
        narrate("optimizer")
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
    examiner = trainer.examiner()
    sync = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    process_start = args.process_start
    warm = time.monotonic()

    def narrate(part: str) -> None:
        sync()
        log({"event": part, "seconds": round(time.monotonic() - warm, 1)})

    trainer.step(trainer.elapsed / args.seconds, narrate)
    args.filling.join()
    log(
        {
            "event": "compiled",
            "seconds": round(time.monotonic() - warm, 1),
            "since_start": time.monotonic() - process_start,
        }
    )
    if args.profile:
        profile(trainer)
    if args.wall is not None:
        args.seconds = trainer.elapsed + args.wall - (time.monotonic() - process_start)
        if args.seconds <= trainer.elapsed:
            raise RuntimeError(f"--wall {args.wall} was over before the first step was done")
        log({"event": "planned", "seconds": round(args.seconds, 1)})
    last_snapshot = time.monotonic()
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
            rows = trainer.batch.rows
            log({
                "step": trainer.steps, "elapsed": round(trainer.elapsed, 1), **line,
                "ms_per_step": round(1000 * per_step, 1), "rows_per_second": round(rows / per_step),
                "lr": round(rate(args.lr, trainer.steps, progress), 6),
            })  # fmt: skip
            mark, mark_steps = now, trainer.steps
            if not np.isfinite(line["loss"]):
                raise RuntimeError(f"the loss is {line['loss']} at step {trainer.steps}")
        if now - last_snapshot >= args.snapshot_every:
            write_parts(trainer.averaged, args.out)
            last_snapshot = time.monotonic()
        if now - last_eval >= args.eval_every:
            how = Decoding(max_denoising_steps=16)
            # one batch holds a third of each band
            prompts = [
                p for puzzles, _ in validation.values() for p in evaluate.chat_prompts(puzzles[: args.rows_short // 3])
            ]
            truth = [a for _, s in validation.values() for a in evaluate.answers(s[: args.rows_short // 3])]
            got, taken = examiner.canvases(prompts, how)
            right = (got == torch.tensor(truth)).all(-1).view(3, -1).float().mean(-1).tolist()
            bands = {b: round(r, 4) for b, r in zip(validation, right, strict=True)}
            log({"event": "eval", "step": trainer.steps, "elapsed": round(trainer.elapsed, 1), "rates": bands,
                 "steps_mean": round(taken.float().mean().item(), 2),
                 "cost": round(time.monotonic() - now, 2)})  # fmt: skip
            last_eval = mark = time.monotonic()
            mark_steps = trainer.steps


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1380, help="planned training time in all calls")
    parser.add_argument("--stop-after", type=float, default=1e9, help="seconds from start after which to save and stop")
    parser.add_argument(
        "--wall", type=float, help="plan instead to end the training this long after the start, compiling included"
    )
    parser.add_argument(
        "--snapshot-every", type=float, default=200, help="seconds between copies of the averaged weights"
    )
    parser.add_argument("--out", type=Path, required=True, help="log, weights and evaluation")
    parser.add_argument("--state", type=Path, help="where to keep what a resumption needs; resumed from if it is there")
    parser.add_argument("--rows-short", type=int, default=512)
    parser.add_argument("--rows-long", type=int, default=32)
    parser.add_argument("--grids", type=int, default=500_000)
    parser.add_argument("--threads", type=int, default=16, help="of the generator")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument(
        "--muon", type=float, default=2.0, help="update size of matrices against AdamW's; 0: AdamW only"
    )
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
    source = Source(seed, min(args.grids, 20_000), banned, device, threads=args.threads)

    def fill() -> None:
        source.fill(seed + 1, args.grids, args.threads)
        log({"event": "pool", "puzzles": 4 * args.grids, "seconds": round(time.monotonic() - made, 1)})

    filling = threading.Thread(target=fill, daemon=True)  # the kernels are compiled meanwhile
    filling.start()
    args.filling = filling
    trainer = Trainer(args, shape, source, device)
    if resumed:
        trainer.load(args.state)
    weights = sum(p.numel() for p in trainer.model.parameters())
    log({"event": "start", "parameters": weights, "shape": asdict(shape), "resumed": resumed, "steps": trainer.steps,
         "setup_seconds": round(time.monotonic() - made, 1), "pool_seed": seed,
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

        def keep(result: dict[str, Any]) -> None:
            (args.out / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

        result = evaluate.report(trainer.examiner(), held, validation, Decoding(), keep)
        print(json.dumps({k: result[k] for k in ("decoding", "held_out", "notations", "samples", "seconds")}, indent=1))


if __name__ == "__main__":
    main()

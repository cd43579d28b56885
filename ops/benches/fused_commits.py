"""What a canvas costs when its commit shares a forward with the next canvas's first step, and when it has its own.

    PYTHONPATH=platform:ops python ops/benches/fused_commits.py --out fused_commits.json

On a GPU: published shapes, random weights, canvases that never converge and take 16 steps each, through scheduler and
runner. For each number of sequences, which all commit in the same step: milliseconds a canvas by the host's clock,
median over canvases, `together` (as it is served) and `apart` (every step that encodes is run as two: what it encodes,
then its canvases); tokens/s of both. The two take turns, canvas by canvas, so that the card's clock is the same.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from benches import published_shapes
from benches.record import Record
from easel.engine.native.config import GenerationDefaults
from easel.engine.native.cuda_assembly import build_runner
from easel.engine.native.cuda_runner import CudaRunner
from easel.engine.native.kv_cache import KvCache
from easel.engine.native.noise import PhiloxNoise
from easel.engine.native.rules import RuleBook
from easel.engine.native.scheduler import Limits, Plan, Scheduler
from easel.protocol import Denoising, GenerationRequest

STEPS_A_CANVAS = 16
UNCOUNTED = 4
"""Canvases at first, half of them each way: the prompt, and graphs that are captured when first needed."""
BLOCK_TOKENS = 64
CONTEXT = 8192


def main() -> None:
    """Measure and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("fused_commits.json"))
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--canvases", type=int, default=20, help="measured of each sequence, half of them each way")
    parser.add_argument("--layers", type=int, default=30)
    arguments = parser.parse_args()
    config = published_shapes.published_config(arguments.layers)
    weights = published_shapes.random_weights(config)
    most = seats_for(arguments.sequences)
    sizes = KvCache(0, 0, BLOCK_TOKENS, config.window)
    kv = KvCache(most * sizes.blocks_for(CONTEXT), most * sizes.sliding_blocks_for(CONTEXT, 512), BLOCK_TOKENS,
                 config.window)  # fmt: skip
    runner = build_runner(config, weights, GenerationDefaults(), kv, PhiloxNoise(), most, CONTEXT, 512)
    rules = RuleBook(config, GenerationDefaults(confidence=0.0, eos_token_ids=()), CONTEXT, 512)
    record = Record(arguments.out, torch.cuda.get_device_name(), layers=arguments.layers, steps_a_canvas=STEPS_A_CANVAS)
    rows = []
    for sequences in arguments.sequences:
        found = measure(runner, rules, kv, sequences, arguments.canvases)
        tokens = sequences * config.canvas_length
        row = {"sequences": sequences}
        for way, times in found.items():
            row[f"{way}_ms"] = round(statistics.median(times) * 1e3, 3)
            row[f"{way}_tokens_per_s"] = round(tokens / statistics.median(times), 1)
        rows.append(row)
        record.put("rows", rows)
        print(row, flush=True)


def seats_for(sequences: list[int]) -> int:
    """A step has as many groups as seats and a round of prefill: these hold all commits beside all canvases."""
    return 2 * max(sequences)


def measure(runner: CudaRunner, rules: RuleBook, kv: KvCache, sequences: int, canvases: int) -> dict[str, list[float]]:
    """Seconds of each canvas but the first ones, the commit before it included, by the way of that."""
    scheduler = Scheduler(kv, Limits(sequences, 512 * sequences), 512)
    generator = torch.Generator().manual_seed(sequences)
    added = []
    for order in range(sequences):
        prompt = tuple(torch.randint(10, 250_000, (512,), generator=generator).tolist())
        request = GenerationRequest(
            str(order), prompt, (canvases + UNCOUNTED + 1) * 256, denoising=Denoising(max_steps=STEPS_A_CANVAS)
        )
        added.append(rules.sequence(request, kv, None, 0.0, order))
        scheduler.add(added[-1])
    found: dict[str, list[float]] = {"together": [], "apart": []}
    for canvas in range(UNCOUNTED + canvases):
        way = ("together", "apart")[canvas % 2]
        began = time.perf_counter()
        for _ in range(STEPS_A_CANVAS):
            plan, _ = scheduler.plan(time.time(), 0.0)
            if way == "apart" and plan.encodes:
                runner.run(Plan(plan.encodes))
                plan.encodes, encodes = [], plan.encodes
                results = runner.run(plan)
                plan.encodes = encodes
            else:
                results = runner.run(plan)
            scheduler.advance(plan, results, 0.0, time.time(), 0.0)
        if canvas >= UNCOUNTED:
            found[way].append(time.perf_counter() - began)
    for sequence in added:
        assert sequence.canvases == UNCOUNTED + canvases, "they were to go in step"
        scheduler.finish(sequence, "cancelled")
        runner.forget(sequence)
    return found


if __name__ == "__main__":
    main()

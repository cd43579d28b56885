"""How long a step of the native engine takes on this GPU, against the floor computed from what this GPU can do.

    PYTHONPATH=platform:ops python ops/benches/step_time.py --out step_time.json

Published shapes, random weights, canvases that never converge. For each number of canvases and each context:
`graph_ms`, the median of replays of a whole step (forward and vocabulary end); `wall_ms`, the median by the host's
clock of a step through scheduler and runner, planning and reading results included, with `served_graph_ms`, replays on
the inputs of its last step, and the rows of the busiest expert then and before; tokens/s at 16 steps a canvas; the
floor, part by part, from copy and product ceilings measured first; how many experts a layer touches; peak memory.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from benches import published_shapes
from benches.floor import ceilings, floor_ms
from benches.record import Record
from easel.engine.native.config import GenerationDefaults, ModelConfig
from easel.engine.native.cuda_assembly import build_runner
from easel.engine.native.cuda_runner import CudaRunner
from easel.engine.native.kv_cache import KvCache
from easel.engine.native.noise import DrawKey, PhiloxNoise
from easel.engine.native.rules import RuleBook
from easel.engine.native.sampler import Choice
from easel.engine.native.scheduler import Limits, Scheduler
from easel.protocol import Denoising, GenerationRequest

STEPS_A_CANVAS = 16
BLOCK_TOKENS = 64


def main() -> None:
    """Measure and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("step_time.json"))
    parser.add_argument("--canvases", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 8192])
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--replays", type=int, default=30)
    parser.add_argument("--breakdown", type=int, nargs="*", default=[1, 4, 8])
    parser.add_argument("--deterministic", action="store_true", help="as engine.deterministic has it")
    arguments = parser.parse_args()

    limits = ceilings()
    record = Record(arguments.out, torch.cuda.get_device_name(), deterministic=arguments.deterministic, ceilings=limits)
    print(f"ceilings: {limits}", flush=True)
    began = time.perf_counter()
    config = published_shapes.published_config(arguments.layers)
    weights = published_shapes.random_weights(config)
    torch.cuda.synchronize()
    print(f"weights: {torch.cuda.memory_allocated() / 1e9:.1f} GB, {time.perf_counter() - began:.1f} s", flush=True)
    most, context = max(arguments.canvases), max(arguments.contexts) + 1024
    sizes = KvCache(0, 0, BLOCK_TOKENS, config.window)
    kv = KvCache(most * sizes.blocks_for(context), most * sizes.sliding_blocks_for(context, 512), BLOCK_TOKENS,
                 config.window)  # fmt: skip
    runner = build_runner(config, weights, GenerationDefaults(), kv, PhiloxNoise(), most, context, 512,
                          arguments.deterministic)  # fmt: skip
    for tensors in (runner.model.kv.keys, runner.model.kv.values):
        for tensor in tensors:
            tensor.normal_()
    rows = []
    for canvases in arguments.canvases:
        for tokens in arguments.contexts:
            torch.cuda.reset_peak_memory_stats()
            row = {"canvases": canvases, "context": tokens}
            row["graph_ms"] = graph_ms(runner, kv, canvases, tokens, arguments.replays)
            row["busiest_expert"] = busiest(runner, canvases)
            row["experts_touched"] = experts_touched(runner, canvases)
            row["floor"] = floor_ms(config, canvases, tokens, row["experts_touched"], limits)
            row["over_floor"] = row["graph_ms"] / row["floor"]["total"]
            row["tokens_per_s"] = canvases * config.canvas_length / (STEPS_A_CANVAS * row["graph_ms"] / 1e3)
            row["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
            if canvases in arguments.breakdown and tokens == arguments.contexts[0]:
                row["kernels_ms"] = breakdown(runner, canvases)
            rows.append(row)
            record.put("rows", rows)
            print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    for canvases in arguments.canvases:
        if arguments.contexts[0] == 512:
            row = next(r for r in rows if r["canvases"] == canvases and r["context"] == 512)
            row |= served(runner, config, kv, canvases)
            record.put("rows", rows)
            print(
                f"{canvases} canvases: wall {row['wall_ms']:.2f} ms a step, graphs then {row['served_graph_ms']:.2f}, "
                f"busiest expert {row['served_busiest_expert']}; before {row['graph_ms']:.2f}, {row['busiest_expert']}",
                flush=True,
            )


def fill(runner: CudaRunner, kv: KvCache, canvases: int, tokens: int) -> None:
    """Inputs of `canvases` canvases that each follow `tokens` cached tokens, and the controls of their sampling."""
    inputs = runner.model.inputs
    inputs.clear()
    inputs.host["read_seat"][:], inputs.host["write_seat"][:] = runner.nothing, runner.waste
    blocks = -(-tokens // BLOCK_TOKENS)
    for row in range(canvases):
        inputs.host["start"][row], inputs.host["length"][row], inputs.host["causal"][row] = tokens, 256, 0
        inputs.host["read_seat"][row] = inputs.host["write_seat"][row] = row
        inputs.host["fresh"][row] = 0
        for pool in kv.pools:
            table = inputs.host[f"table_{pool.name}"]
            kept = min(blocks, pool.blocks // canvases, table.shape[1])
            table[row, :kept] = range(row * kept, (row + 1) * kept)
            inputs.host[f"first_{pool.name}"][row] = (blocks - kept) * BLOCK_TOKENS
    inputs.upload()
    choice = Choice(0.6, 0.1, banned=runner.model.config.placeholder_ids)
    for row in range(runner.end.canvases):
        if row < canvases:
            runner.end.controls.fill(row, choice, DrawKey(1, 0, 0, 1 + row))
        else:
            runner.end.controls.idle(row)
    runner.end.controls.upload()
    torch.cuda.synchronize()


def graph_ms(runner: CudaRunner, kv: KvCache, canvases: int, tokens: int, replays: int) -> float:
    """Median milliseconds of a step's two graphs, by device events."""
    fill(runner, kv, canvases, tokens)
    return replay_ms(runner, canvases, replays)


def replay_ms(runner: CudaRunner, canvases: int, replays: int) -> float:
    """The same with the inputs as they lie."""
    launch = runner.step_graphs(canvases)
    for _ in range(5):
        launch()
    times = []
    for _ in range(replays):
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record()
        launch()
        after.record()
        after.synchronize()
        times.append(before.elapsed_time(after))
    return statistics.median(times)


def experts_touched(runner: CudaRunner, canvases: int) -> float:
    """Mean distinct experts of the last layer that the step's rows went to."""
    return float(runner.model.routing.index[: canvases * 256].unique().numel())


def busiest(runner: CudaRunner, canvases: int) -> int:
    """Most rows of one expert of the last layer."""
    return int(runner.model.routing.index[: canvases * 256].flatten().bincount().max())


def breakdown(runner: CudaRunner, canvases: int, steps: int = 5) -> dict[str, float]:
    """Milliseconds a step by kernel, the largest first."""
    launch = runner.step_graphs(canvases)
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(steps):
            launch()
        torch.cuda.synchronize()
    found = sorted(profile.key_averages(), key=lambda event: -event.self_device_time_total)
    return {event.key[:90]: round(event.self_device_time_total / 1e3 / steps, 4) for event in found[:40]}


def served(
    runner: CudaRunner, config: ModelConfig, kv: KvCache, canvases: int, steps: int = 40
) -> dict[str, float | int]:
    """Requests with 512-token prompts through scheduler and runner: median milliseconds between steps, and what the
    same graphs take on the last step's inputs."""
    scheduler = Scheduler(kv, Limits(canvases, canvases * 512), 512)
    rules = RuleBook(config, GenerationDefaults(confidence=0.0), 4096, 512)
    generator = torch.Generator().manual_seed(canvases)
    sequences = []
    for order in range(canvases):
        prompt = tuple(torch.randint(10, 250_000, (512,), generator=generator).tolist())
        request = GenerationRequest(f"r{order}", prompt, 512, denoising=Denoising(max_steps=steps))
        sequences.append(rules.sequence(request, kv, None, 0.0, order))
        scheduler.add(sequences[-1])
    times = []
    for _ in range(steps):
        began = time.perf_counter()
        plan, _ = scheduler.plan(time.time(), 0.0)
        results = runner.run(plan)
        scheduler.advance(plan, results, 0.0, time.time(), 0.0)
        times.append(time.perf_counter() - began)
    found = {"wall_ms": statistics.median(times[3:]) * 1e3, "served_busiest_expert": busiest(runner, canvases)}
    found["served_graph_ms"] = replay_ms(runner, canvases, 10)
    for sequence in sequences:
        scheduler.finish(sequence, "cancelled")
        runner.forget(sequence)
    return found


if __name__ == "__main__":
    main()

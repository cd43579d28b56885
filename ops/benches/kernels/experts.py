"""Times the routed experts at the published shapes: 30 layers of different weights in one CUDA graph.

    PYTHONPATH=platform:. python ops/benches/kernels/experts.py --out results.json [--sweep] [--canvases 1 2 4]

Owns: the shapes, the floors and the table. Refuses to know: the rest of a step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from easel.engine.native.kernels import experts as kernels
from easel.engine.native.kernels import routing as routes
from easel.engine.native.kernels.hopper_product import HopperShape
from easel.engine.native.kernels.packing import Nvfp4, PackedExperts, pack_experts, unpack_matrix
from ops.benches.record import head

HIDDEN, WIDE, EXPERTS, TOP_K, LAYERS, CANVAS = 2816, 704, 128, 8, 30, 256
BYTES_A_SECOND, OPERATIONS_A_SECOND = 2.97e12, 730e12
"""A large copy and a large bf16 product on one H100, measured: the floor is the larger of the two times."""


def random_layer(seed: int) -> PackedExperts:
    """Random codes and scales of one layer, packed on the GPU."""
    generator = torch.Generator("cuda").manual_seed(seed)

    def part(rows: int, columns: int) -> Nvfp4:
        codes = torch.randint(0, 256, (EXPERTS, rows, columns // 2), generator=generator, device="cuda").byte()
        scales = (torch.rand(EXPERTS, rows, columns // 16, generator=generator, device="cuda") + 0.5) * 100
        factor = (0.5 + torch.rand(EXPERTS, generator=generator, device="cuda")) / (300 * columns**0.5)
        return Nvfp4(codes, scales.to(torch.float8_e4m3fn), factor)

    return pack_experts(part(WIDE, HIDDEN), part(WIDE, HIDDEN), part(HIDDEN, WIDE))


def check(packed: PackedExperts, rows: int, lengths: list[int], skew: float) -> tuple[float, float]:
    """Errors `||out - ref|| / ||ref||` of the kernels and of bf16 matmuls, against fp32. Buffers are poisoned first."""
    x = torch.randn(rows, HIDDEN, device="cuda", dtype=torch.bfloat16)
    logits = torch.randn(rows, EXPERTS, device="cuda")
    logits += skew * torch.randn(EXPERTS, device="cuda")
    live = torch.cat([torch.arange(CANVAS) < length for length in lengths]).cuda()
    x[~live] = float("nan")
    logits[~live] = float("nan")
    scale = torch.rand(EXPERTS, device="cuda") + 0.5
    routing = kernels.Routing.for_rows(rows, EXPERTS, TOP_K, "cuda")
    for buffer in (routing.index, routing.slot, routing.row, routing.tiles, routing.used):
        buffer.fill_(1 << 28)
    space = kernels.Workspace.for_rows(rows, TOP_K, WIDE, HIDDEN, "cuda")
    space.wide.fill_(float("nan"))
    space.narrow.fill_(float("nan"))
    kernels.route(logits, scale, torch.tensor(lengths, dtype=torch.int32, device="cuda"), TOP_K, routing)
    kernels.run_experts(x, routing, packed, space)
    out = weighted_sum(routing, space.narrow, rows)

    chance, index = torch.topk(torch.softmax(logits, -1), TOP_K)
    weight = chance / chance.sum(-1, keepdim=True) * scale[index]
    torch.testing.assert_close(routing.weights[live], weight[live])
    both, narrow = unpack_matrix(packed.gate_up), unpack_matrix(packed.down)
    tiles = both.view(EXPERTS, -1, 2, 64, HIDDEN)
    gate, up = tiles[:, :, 0].flatten(1, 2), tiles[:, :, 1].flatten(1, 2)
    exact, rough = torch.zeros(rows, HIDDEN, device="cuda"), torch.zeros(rows, HIDDEN, device="cuda")
    for expert in range(EXPERTS):
        row, k = torch.nonzero((index == expert) & live[:, None], as_tuple=True)
        for into, dtype in ((exact, torch.float32), (rough, torch.bfloat16)):
            h = x[row].to(dtype)
            wide = torch.nn.functional.gelu(h @ gate[expert].to(dtype).T, approximate="tanh") * (
                h @ up[expert].to(dtype).T
            )
            into.index_add_(0, row, (wide @ narrow[expert].to(dtype).T).float() * weight[row, k, None])
    return float((out - exact).norm() / exact.norm()), float((rough - exact).norm() / exact.norm())


def weighted_sum(routing: kernels.Routing, narrow: torch.Tensor, rows: int) -> torch.Tensor:
    """fp32 [rows, hidden]: what `rows.after_feed_forward` makes of the experts' outputs before it norms them."""
    live = routing.index[:rows] >= 0
    slots = torch.where(live, routing.slot[:rows], 0).long()
    values = torch.where(live[..., None], narrow[slots].float(), 0.0)
    return (values * routing.weights[:rows, :, None]).sum(1)


class Case:
    """Buffers for one number of canvases, all of them full."""

    def __init__(self, canvases: int, layers: list[PackedExperts], tile: int | None = None) -> None:
        """`tile`: slots of the experts' tiles, if not what is fastest."""
        rows = canvases * CANVAS
        self.layers, self.rows = layers, rows
        self.x = torch.randn(rows, HIDDEN, device="cuda", dtype=torch.bfloat16)
        self.logits = [torch.randn(rows, EXPERTS, device="cuda").bfloat16() for _ in layers]
        self.scale = torch.ones(EXPERTS, device="cuda")
        self.length = torch.full((canvases,), CANVAS, dtype=torch.int32, device="cuda")
        self.routing = [kernels.Routing.for_rows(rows, EXPERTS, TOP_K, "cuda", tile) for _ in layers]
        self.space = kernels.Workspace.for_rows(rows, TOP_K, WIDE, HIDDEN, "cuda")

    def route(self) -> None:
        for logits, routing in zip(self.logits, self.routing, strict=True):
            kernels.route(logits, self.scale, self.length, TOP_K, routing)

    def run(self) -> None:
        for routing, packed in zip(self.routing, self.layers, strict=True):
            kernels.run_experts(self.x, routing, packed, self.space)

    def all(self) -> None:
        for logits, routing, packed in zip(self.logits, self.routing, self.layers, strict=True):
            kernels.route(logits, self.scale, self.length, TOP_K, routing)
            kernels.run_experts(self.x, routing, packed, self.space)

    def one(self, which: int) -> Callable[[], None]:
        """Gate and up alone (0), or down alone (1)."""

        def run() -> None:
            for routing, packed in zip(self.routing, self.layers, strict=True):
                steps = kernels.launches(self.x, routing, packed, self.space)
                steps[which]()

        return run

    def floors(self) -> dict[str, float]:
        """ms for all layers: gate and up, down, and both."""
        pairs, result = self.rows * TOP_K, {}
        for name, weights in (("gate_up", 2 * WIDE * HIDDEN), ("down", WIDE * HIDDEN)):
            read = EXPERTS * weights * 0.5625 / BYTES_A_SECOND
            result[name] = LAYERS * 1e3 * max(read, 2 * pairs * weights / OPERATIONS_A_SECOND)
        return result | {"all": sum(result.values())}


def graph_ms(work: Callable[[], None], seconds: float = 0.4) -> float:
    """Median time of a replay."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    times: list[float] = []
    for _ in range(2):
        graph.replay()
    torch.cuda.synchronize()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return statistics.median(times)


def candidates(rows: int) -> list[tuple[int, kernels.Shape | HopperShape]]:
    """Tiles and shapes that may pay at that many rows."""
    plain, hopper = kernels.Shape(4, 3), HopperShape
    if rows <= 256:
        return [(32, plain), (32, hopper(8, 80, 1)), (32, hopper(8, 80, 1, stages=6))]
    if rows <= 512:
        return [(64, plain), (48, hopper(8, 128, 1, 16, 6)), (64, hopper(8, 128, 1, stages=6))]
    if rows <= 1024:
        return [(80, plain), (80, hopper(8, 128, 1, 16)), (80, hopper(8, 128, 1, 16, 6)), (128, hopper(8, 128, 1))]
    wide = [(8, 128), (16, 128)]
    return [(128, hopper(*shape, 2)) for shape in wide] + [
        (256, hopper(8, 240, 2)),
        (256, hopper(8, 240, 2, stages=6)),
        *((256, hopper(*shape, 2, width=128)) for shape in wide),
    ]


def warm(share: int, shares: int) -> None:
    """Compile one share of the candidates, into the cache on disk."""
    jobs = {(tile, shape) for rows in (256, 512, 1024, 2048, 4096) for tile, shape in candidates(rows)}
    for tile, shape in sorted(jobs, key=repr)[share::shares]:
        routes.FORCED_TILE, kernels.FORCED_SHAPE = tile, shape
        case = Case(1, [random_layer(0)])
        case.all()
    torch.cuda.synchronize()


def sweep(case: Case) -> list[dict[str, Any]]:
    """Gate and up, and down, with every candidate."""
    found = []
    for tile, shape in candidates(case.rows):
        routes.FORCED_TILE, kernels.FORCED_SHAPE = tile, shape
        case.routing = [kernels.Routing.for_rows(case.rows, EXPERTS, TOP_K, "cuda") for _ in case.layers]
        case.route()
        times = [graph_ms(case.one(which), 0.05) for which in (0, 1)]
        found.append({"rows": case.rows, "tile": tile, "shape": repr(shape), "ms": times})
        print(f"  sweep {case.rows:5} tile {tile:3} {shape}: gate_up {times[0]:7.3f} down {times[1]:7.3f}", flush=True)
    routes.FORCED_TILE, kernels.FORCED_SHAPE = None, None
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("experts.json"))
    parser.add_argument("--warm", type=int, nargs=2, metavar=("SHARE", "SHARES"))
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--canvases", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    arguments = parser.parse_args()
    if arguments.warm:
        warm(*arguments.warm)
        return
    began = time.perf_counter()
    torch.manual_seed(0)
    layers = [random_layer(0)]
    results: dict[str, Any] = {**head(torch.cuda.get_device_name()), "checks": []}
    for rows, lengths, skew in (
        (256, [256], 0.0), (1024, [256, 0, 100, 256], 0.0), (2048, [256] * 8, 3.0), (8192, [256] * 31 + [1], 0.0),
        (256, [3], 0.0),
    ):  # fmt: skip
        ours, bf16 = check(layers[0], rows, lengths, skew)
        results["checks"].append({"rows": rows, "skew": skew, "error": ours, "bf16_error": bf16})
        print(f"check rows {rows} skew {skew}: error {ours:.2e}, bf16 matmuls {bf16:.2e}", flush=True)
    if arguments.sweep:
        for tile, shape in {(tile, shape) for rows in (256, 1024, 2048) for tile, shape in candidates(rows)}:
            routes.FORCED_TILE, kernels.FORCED_SHAPE = tile, shape
            ours, bf16 = check(layers[0], 2048, [256] * 8, 0.5)
            results["checks"].append(
                {"rows": 2048, "tile": tile, "shape": repr(shape), "error": ours, "bf16_error": bf16}
            )
            print(f"check tile {tile} {shape}: error {ours:.2e}, bf16 matmuls {bf16:.2e}", flush=True)
        routes.FORCED_TILE, kernels.FORCED_SHAPE = None, None
    layers += [random_layer(seed) for seed in range(1, LAYERS)]
    print(f"{sum(layer.nbytes for layer in layers) / 1e9:.2f} GB in {time.perf_counter() - began:.0f} s", flush=True)
    results["cases"] = []
    results["sweep"] = []
    for canvases in arguments.canvases:
        case = Case(canvases, layers)
        case.route()
        if arguments.sweep:
            results["sweep"] += sweep(case)
            case.routing = [kernels.Routing.for_rows(case.rows, EXPERTS, TOP_K, "cuda") for _ in layers]
            case.route()
        times = {"all": graph_ms(case.all), "route": graph_ms(case.route)}
        times |= {name: graph_ms(case.one(which)) for which, name in enumerate(("gate_up", "down"))}
        floors = case.floors()
        teraflops = 6 * case.rows * TOP_K * WIDE * HIDDEN * LAYERS / times["all"] / 1e9
        gigabytes = sum(layer.nbytes for layer in layers) / times["all"] / 1e6
        results["cases"].append({"canvases": canvases, "ms": times, "floor_ms": floors, "tflops": teraflops,
                                 "gb_s": gigabytes})  # fmt: skip
        print(f"{canvases:2} canvases: all {times['all']:6.2f} ms (floor {floors['all']:5.2f}), " + ", ".join(
            f"{name} {times[name]:.2f}" + (f" ({floors[name]:.2f})" if name in floors else "")
            for name in ("route", "gate_up", "down")) + f"; {gigabytes:.0f} GB/s, {teraflops:.0f} TFLOP/s"
            f" [{time.perf_counter() - began:.0f} s]", flush=True)  # fmt: skip
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

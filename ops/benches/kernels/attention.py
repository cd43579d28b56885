"""Times the attention kernel on one GPU: tiles, numbers of canvases and contexts, beside torch's own attention.

    PYTHONPATH=platform:. python ops/benches/kernels/attention.py OUT.json [--sweep] [--brief]

`--sweep`: other tiles too. `--brief`: without torch and long contexts.
Each figure is the median of 7 replays of a CUDA graph of at least 24 launches, which rotate over inputs larger than
the L2 cache. Errors are relative to fp32.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from torch.nn.functional import scaled_dot_product_attention

from easel.engine.native.kernels.attention import AttentionWorkspace, Tiles, attend
from ops.benches.record import head
from tests.gpu import attention_cases as cases

KINDS = {"sliding": cases.SLIDING, "full": cases.FULL}
LAYERS = {"sliding": 25, "full": 5}
SWEEP = {
    "sliding": [Tiles(128, 64, 8, 2)],
    "full": [Tiles(64, 32, 8, 2), Tiles(128, 32, 8, 2, cuts=2), Tiles(128, 16, 8, 4, cuts=2)],
}


def replays(launches: list, rounds: int = 7) -> float:
    """Microseconds a launch, median over replays of a graph of all launches."""
    for launch in launches[:2]:
        launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for launch in launches:
            launch()
    graph.replay()
    times = []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in "ab")
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1000 / len(launches))
    return median(times)


def flops(parts: cases.Parts, kind: tuple) -> float:
    """Of both products for canvases."""
    _, dim, window = kind
    seen = sum(length * (length + (start if window is None else min(start, window - 1))) for start, length, _ in parts)
    return 4.0 * cases.HEADS * dim * seen


class Workload:
    """Inputs that rotate."""

    def __init__(self, parts: cases.Parts, kind: tuple) -> None:
        self.parts, self.kind = parts, kind
        one = self._set()
        size = sum(t.nbytes for t in (*one[0], one[2].keys, one[2].values))
        self.sets = [one, *(self._set() for _ in range(min(15, int(150e6 / size))))]
        rows = len(parts) * cases.ROWS
        self.out = torch.empty(rows, cases.HEADS * kind[1], dtype=torch.bfloat16, device="cuda")
        numbers = 8 * rows * cases.HEADS if len(parts) <= 8 else 0
        self.space = AttentionWorkspace(
            torch.empty(numbers * kind[1], dtype=torch.bfloat16, device="cuda"), torch.empty(numbers * 2, device="cuda")
        )

    def _set(self) -> tuple:
        return cases.inputs(self.parts, self.kind), *cases.make(self.parts, self.kind)

    def run(self, number: int, tiles: Tiles | None) -> None:
        (q, k, v), groups, kv = self.sets[number % len(self.sets)]
        attend(q, k, v, groups, kv, self.kind[2], self.out, self.space, tiles)

    def time(self, tiles: Tiles | None) -> float:
        count = max(24 if self.parts[0][0] < 9000 else 3, len(self.sets))
        return replays([lambda n=n: self.run(n, tiles) for n in range(count)])

    def torch_time(self) -> float:
        """torch's attention on dense keys of the same shapes: no gather, no ragged lengths."""
        kv_heads, dim, window = self.kind
        start = self.parts[0][0]
        seen = cases.ROWS + (start if window is None else min(start, window - 1))
        sets = []
        for _ in range(len(self.sets)):
            q = torch.randn(len(self.parts), cases.HEADS, cases.ROWS, dim, device="cuda").bfloat16()
            k, v = (torch.randn(len(self.parts), kv_heads, seen, dim, device="cuda").bfloat16() for _ in "kv")
            sets.append((q, k, v))
        call = scaled_dot_product_attention
        return replays([lambda s=s: call(*s, scale=1.0, enable_gqa=True) for s in sets])


def main() -> None:
    """Check, then sweep or time what the kernel chooses by itself."""
    target, sweep, brief = Path(sys.argv[1]), "--sweep" in sys.argv, "--brief" in sys.argv
    torch.manual_seed(0)
    table: list[dict[str, object]] = []
    rows_at = {1: ((512, 256, 0),), 4: ((512, 256, 0),) * 4, 8: ((512, 256, 0),) * 8}
    for name, kind in KINDS.items():
        candidates = SWEEP[name] if sweep else []
        with ThreadPoolExecutor(16) as pool:  # compiles at once; twice, because splitting is compiled in
            some = [replace(tiles, splits=splits) for tiles in candidates for splits in ((1,) if brief else (1, 2))]
            list(pool.map(lambda tiles, kind=kind: _try(cases.attention_error, cases.ONE, kind, tiles), some))
        for tiles in [None, *candidates]:
            errors = [_try(cases.attention_error, parts, kind, tiles) for parts in (cases.ONE, cases.MIXED)]
            print(name, tiles, "errors", errors, flush=True)
        for count, parts in rows_at.items():
            work = Workload(parts, kind)
            floor = flops(parts, kind) / 730e6
            choices: list[Tiles | None] = [None]
            for tiles in candidates:
                programs = (
                    count * (cases.HEADS // tiles.pack) * tiles.cuts * (cases.ROWS // (tiles.queries // tiles.pack))
                )
                splits = {1, *(n for n in (2, 4, 8) if programs * n <= 300)} if programs < 200 else {1}
                splits = {1} if brief else splits - ({1} if count == 1 else set())
                choices += [replace(tiles, splits=n) for n in sorted(splits)]
            for tiles in choices:
                micros = _try(work.time, tiles)
                table.append({"kind": name, "canvases": count, "context": 512, "tiles": str(tiles), "us": micros})
                print(f"{name} {count} {tiles}: {micros} us, floor {floor:.1f}", flush=True)
            if brief:
                continue
            print(f"{name} {count} torch: {_try(work.torch_time)} us", flush=True)
        long = ((32000, 256, 0),) if kind[2] is None else ((8000, 256, 0),)
        for count in () if brief else (1, 8):
            work = Workload(long * count, kind)
            floor = flops(long * count, kind) / 730e6
            for tiles in [None, *(candidates if count == 8 else [])]:
                micros = _try(work.time, tiles)
                table.append(
                    {"kind": name, "canvases": count, "context": long[0][0], "tiles": str(tiles), "us": micros}
                )
                print(f"{name} {count} context {long[0][0]} {tiles}: {micros} us, floor {floor:.1f}", flush=True)
            del work
    best = {}
    for row in table:
        if row["context"] == 512 and isinstance(row["us"], float):
            key = (row["kind"], row["canvases"])
            best[key] = min(best.get(key, (1e9, "")), (row["us"], row["tiles"]))
    for count in rows_at:
        total = sum(LAYERS[kind] * best[kind, count][0] for kind in KINDS) / 1000
        print(f"{count} canvases, 30 layers, best: {total:.2f} ms", {k: best[k, count] for k in KINDS})
    target.write_text(json.dumps({**head(torch.cuda.get_device_name()), "rows": table}))


def _try(call, *arguments):  # a tile that does not fit is a result too
    try:
        found = call(*arguments)
    except Exception as error:
        return repr(error)[:100]
    return round(found, 5)


if __name__ == "__main__":
    main()

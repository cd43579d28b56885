"""Times the row kernels and the head kernel on one GPU beside the time their bytes need.

    PYTHONPATH=platform:. python ops/benches/kernels/rows.py OUT.json

Each figure is the median of 7 replays of a CUDA graph whose launches rotate over tensors larger than the L2 cache.
The floor counts each input read once and each output written once at 2.97 TB/s.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from easel.engine.native.kernels.embed import embed
from easel.engine.native.kernels.heads import shape_heads
from easel.engine.native.kernels.rows import after_attention, after_feed_forward, gelu_gate, norm
from ops.benches.kernels.attention import _try, replays
from ops.benches.record import head
from tests.gpu import attention_cases, row_cases
from tests.gpu.row_cases import EPS, HIDDEN, ROWS, WIDE, some

COPY = 2.97e6  # bytes a microsecond
SHAPES = [(8, 2, 4), (4, 4, 4), (4, 2, 4), (4, 2, 2), (8, 1, 2)]


def main() -> None:
    """Check, then time."""
    torch.manual_seed(0)
    print({name: round(error, 5) for name, error in row_cases.errors(3).items()}, flush=True)
    for name, kind in {"sliding": attention_cases.SLIDING, "full": attention_cases.FULL}.items():
        found = [_try(attention_cases.heads_error, attention_cases.MIXED, kind, far) for far in (0, 32000, 256000)]
        print(name, "heads errors", found, flush=True)
    table: list[dict[str, object]] = []
    for count in (1, 4, 8):
        for name, micros, floor in [*row_times(count), *head_times(count)]:
            table.append({"kernel": name, "groups": count, "us": micros, "floor_us": floor})
            print(f"{count} {name}: {micros} us, floor {floor:.1f}", flush=True)
    Path(sys.argv[1]).write_text(json.dumps({**head(torch.cuda.get_device_name()), "rows": table}))


def row_times(count: int):
    """Name, microseconds, floor."""
    groups, rows = row_cases.groups_of(count), count * ROWS
    sets = max(3, int(250e6 / (rows * HIDDEN * 12)))
    tensors = [[some(rows, HIDDEN) for _ in range(6)] for _ in range(sets)]
    weights = [some(HIDDEN, at=1.0) for _ in range(4)]
    scalar = some(1)
    gates = [(some(rows, 2 * WIDE), some(rows, WIDE)) for _ in range(sets)]
    table = some(8192, HIDDEN)
    tokens = torch.randint(8192, (rows,), dtype=torch.int32, device="cuda")

    routed = [row_cases.routed_by(rows) for _ in range(max(3, int(250e6 / (rows * HIDDEN * 16))))]

    def feed_forward(t: list[torch.Tensor], which: int) -> None:
        after_feed_forward(
            *t[:2], *routed[which % len(routed)], *weights[:3], scalar, scalar, groups, weights[3], EPS, t[3], t[4]
        )

    def embedding(t: list[torch.Tensor]) -> None:
        embed(tokens, table, t[0], groups, weights[0], EPS, t[1], t[2])

    launches = {
        "norm": ([lambda t=t: norm(t[0], weights[0], EPS, t[1]) for t in tensors], 2 * HIDDEN),
        "gelu_gate": ([lambda p=p: gelu_gate(*p) for p in gates], 3 * WIDE),
        "after_attention": ([lambda t=t: after_attention(*t[:2], *weights, EPS, *t[2:]) for t in tensors], 6 * HIDDEN),
        "after_feed_forward": (
            [lambda t=t, i=i: feed_forward(t, i) for i, t in enumerate(tensors)],
            (4 + row_cases.TOP_K) * HIDDEN,
        ),
        "embed": ([lambda t=t: embedding(t) for t in tensors], 4 * HIDDEN),
    }
    for name, (calls, elements) in launches.items():
        yield name, _try(replays, calls * (1 + 24 // len(calls))), rows * elements * 2 / COPY


def head_times(count: int):
    """Name, microseconds, floor, for some shapes of the programs."""
    for name, kind in {"sliding": attention_cases.SLIDING, "full": attention_cases.FULL}.items():
        kv_heads, dim, window = kind
        rows = count * ROWS
        columns = attention_cases.HEADS + kv_heads * (1 if window is None else 2)
        groups, kv = attention_cases.make(((512, 256, 0),) * count, kind)
        size = rows * dim * (columns + attention_cases.HEADS + 2 * kv_heads) * 2
        sets = [
            (some(rows, columns * dim), *attention_cases.inputs(((512, 256, 0),) * count, kind))
            for _ in range(max(3, min(20, int(200e6 / size))))
        ]
        weight, frequencies = some(attention_cases.HEADS + kv_heads, dim), torch.rand(dim // 2, device="cuda")
        fixed = (weight, frequencies, EPS, groups, kv)
        for shape in SHAPES:
            calls = [lambda s=s, f=fixed, shape=shape: shape_heads(s[0], *f, *s[1:], shape) for s in sets]
            micros = _try(replays, calls * (1 + 24 // len(sets)))
            yield f"shape_heads {name} {shape}", micros, size / COPY


if __name__ == "__main__":
    main()

"""Times the vocabulary end at the published shapes, as replays of a CUDA graph, against cuBLAS for its two products.

    PYTHONPATH=platform:. python ops/benches/kernels/vocabulary.py --out results.json [--sweep] [--canvases 1 4 8]

Owns: the shapes, the floors, the tilings to try and the table. Refuses to know: the rest of a step.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from easel.engine.native.kernels.vocabulary import Tiling, VocabularyEnd
from easel.engine.native.noise import DrawKey
from easel.engine.native.sampler import Choice
from ops.benches.record import head

VOCAB, HIDDEN, SOFTCAP, CANVAS = 262144, 2816, 30.0, 256
PLACEHOLDERS = (258880, 258881, 262143)
WIDE, TALL, SMALL = (128, 256, 64), (256, 128, 64), (128, 128, 64)
TILINGS = (
    Tiling(),
    Tiling(flatten=True),
    Tiling(head_stages=3, soft_stages=3, soft_alone_stages=3),
    Tiling(head=TALL, soft=TALL),
    Tiling(
        head=SMALL,
        head_warps=4,
        head_stages=3,
        soft=SMALL,
        soft_warps=4,
        soft_stages=3,
        soft_alone=SMALL,
        soft_alone_stages=3,
        programs=2,
    ),
)


def inputs(canvases: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A random embedding, and hidden states of which half lean to one token."""
    torch.manual_seed(0)
    embedding = (torch.randn(VOCAB, HIDDEN, device="cuda") * 0.08).bfloat16()
    hidden = torch.randn(canvases * CANVAS, HIDDEN, device="cuda")
    lean = torch.linspace(0.0, 14.0, CANVAS, device="cuda").repeat(canvases).unsqueeze(1)
    hidden += lean * embedding[torch.randint(0, VOCAB, (canvases * CANVAS,), device="cuda")].float()
    return embedding, hidden.bfloat16()


def end_of(embedding: torch.Tensor, canvases: int, tiling: Tiling, **choice: Any) -> VocabularyEnd:
    """An engine's vocabulary end whose canvases are all sampled by `choice`."""
    end = VocabularyEnd(embedding, SOFTCAP, canvases, PLACEHOLDERS, tiling=tiling)
    given = {"schedule_temperature": 0.6, "entropy_bound": 0.1, "banned": PLACEHOLDERS} | choice
    for row in range(canvases):
        end.controls.fill(row, Choice(**given), DrawKey(row, 0, 0, 1))
    end.controls.upload()
    return end


def timed(work: Callable[[], object], repeats: int = 12) -> float:
    """Median milliseconds of a graph's replay."""
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    for _ in range(2):
        graph.replay()
    found = []
    for _ in range(repeats):
        begin, finish = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        finish.record()
        finish.synchronize()
        found.append(begin.elapsed_time(finish))
    return round(statistics.median(found), 3)


def parts(end: VocabularyEnd, hidden: torch.Tensor, canvases: int) -> dict[str, float]:
    """Each part by itself, for as many canvases as are together."""
    end.run(hidden)
    return {
        "head": timed(lambda: end._head(hidden, canvases, 0, end.together)),
        "sample": timed(lambda: end._sample(canvases, 0, end.together)),
        "soft": timed(lambda: end._mean_embedding(0, end.together)),
        "prepare": timed(lambda: end._prepare(canvases)),
    }


def cublas(embedding: torch.Tensor, hidden: torch.Tensor) -> dict[str, float]:
    """The two products alone, logits and chances in bf16, without anything in between."""
    scratch = torch.empty(hidden.shape[0], VOCAB, device="cuda", dtype=torch.bfloat16)
    head = timed(lambda: torch.mm(hidden, embedding.T, out=scratch))
    scratch.copy_(torch.rand_like(scratch))
    soft = torch.empty_like(hidden)
    return {"cublas_head": head, "cublas_soft": timed(lambda: torch.mm(scratch, embedding, out=soft))}


def compile_all(tilings: tuple[Tiling, ...]) -> None:
    """Fill Triton's cache from several processes at once."""
    each = [[sys.executable, __file__, "--compile", str(TILINGS.index(tiling))] for tiling in tilings]
    running = [subprocess.Popen(command) for command in each]
    for process in running:
        process.wait()


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--canvases", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--compile", type=int)
    options = parser.parse_args()
    if options.compile is not None:
        embedding, hidden = inputs(1)
        end_of(embedding, 1, TILINGS[options.compile]).run(hidden)
        torch.cuda.synchronize()
        return
    begin = time.time()
    tilings = TILINGS if options.sweep else TILINGS[:1]
    compile_all(tilings)
    print(f"compiled in {time.time() - begin:.0f} s", flush=True)
    embedding, hidden = inputs(max(options.canvases))
    rows: list[dict[str, Any]] = []

    def note(**row: Any) -> None:
        rows.append(row)
        print(json.dumps(row), flush=True)
        if options.out is not None:
            options.out.write_text(json.dumps({**head(torch.cuda.get_device_name()), "rows": rows}, indent=1))

    for tiling in tilings:
        for canvases in (1, 4) if options.sweep else options.canvases:
            try:
                end = end_of(embedding, canvases, tiling)
                found = parts(end, hidden[: canvases * CANVAS], canvases)
            except Exception as error:  # a tiling that does not fit is a result too
                note(tiling=dataclasses.asdict(tiling), canvases=canvases, error=str(error)[:200])
                continue
            note(tiling=dataclasses.asdict(tiling), canvases=canvases, **found)
            del end
    for canvases in options.canvases:
        given = hidden[: canvases * CANVAS]
        note(canvases=canvases, **cublas(embedding, given))
        for name, choice in (
            ("plain", {}),
            ("all accepted", {"entropy_bound": 1e9}),
            ("all accepted, temperature 0.7, top_p 0.95", {"entropy_bound": 1e9, "temperature": 0.7, "top_p": 0.95}),
            ("temperature 0.7, top_p 0.95", {"entropy_bound": 5.0, "temperature": 0.7, "top_p": 0.95}),
            ("logprobs", {"logprobs": 20}),
        ):
            end = end_of(embedding, canvases, TILINGS[0], **choice)
            note(canvases=canvases, choice=name, whole=timed(partial(end.run, given)))
            del end
    print(f"{time.time() - begin:.0f} s in all")


if __name__ == "__main__":
    main()

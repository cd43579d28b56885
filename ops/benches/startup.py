"""What a start of the native engine spends its seconds on, phase by phase, each time in a process of its own.

    PYTHONPATH=platform:ops python ops/benches/startup.py FOLDER --machine 'one line about it' --out startup.json

Three starts: with the page cache dropped and nothing compiled, with the page cache dropped and kernels compiled, and
with both warm. `import` is torch and the engine's modules, `device` the CUDA context, `read` waiting for bytes while
what came before is laid out, `repack` laying out, `compile` first runs, in which kernels are compiled, `capture` CUDA
graphs. `ready_s` is from the process's start to an engine that takes requests, `first_canvas_s` what the first canvas
takes after that. Before them, as a ceiling: the disk by itself, 16 reads of 16 MB in flight around the page cache.

The page cache is dropped through /proc/sys/vm/drop_caches, for which one must be root; else file by file, by advice.
`cached` is the part of the weights' bytes found in memory just before a start, by samples: what advice and container
left there is then seen.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import mmap
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benches.record import Record

THREADS, BLOCK = 16, 16 << 20
SAMPLES = 256
STARTS = {"cold, nothing compiled": (True, True), "cold": (True, False), "warm": (False, False)}
"""Whether the page cache and the compile cache are emptied before each."""


def main() -> None:
    """Measure, print a line for each start, and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--machine", default="unnamed")
    parser.add_argument("--out", type=Path, default=Path("startup.json"))
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--limit", type=float, default=300.0, help="seconds that one start may take")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        print(json.dumps(asyncio.run(start(arguments))))
        return
    weights = sorted(arguments.folder.glob("*.safetensors"))
    size = sum(path.stat().st_size for path in weights)
    record = Record(arguments.out, arguments.machine, weights_gb=round(size / 1e9, 2), slots=arguments.slots)
    record.section("disk", arguments.limit, lambda: {"gb_per_s": round(size / 1e9 / direct_s(weights), 2)})
    print(f"disk: {record.found['disk']}", flush=True)
    with tempfile.TemporaryDirectory() as compiled:
        for name, (drop, recompile) in STARTS.items():
            if recompile:
                compiled_now = tempfile.mkdtemp(dir=compiled)
            found = record.section(
                name, arguments.limit, lambda drop=drop, folder=compiled_now: measured(arguments, weights, drop, folder)
            )
            print(f"{name}: {found}", flush=True)


def measured(arguments: argparse.Namespace, weights: list[Path], drop: bool, compiled: str) -> dict[str, Any]:
    """One start in a process of its own."""
    how = drop_caches(weights) if drop else "kept"
    cached = round(cached_part(weights), 3)
    command = [sys.executable, __file__, str(arguments.folder), "--slots", str(arguments.slots),
               "--context", str(arguments.context), "--child", compiled]  # fmt: skip
    began = time.time()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=arguments.limit)
    found = json.loads(done.stdout.splitlines()[-1])
    found["ready_s"] = round(found.pop("ready_at") - began, 2)
    return {"page_cache": how, "cached": cached, **found}


async def start(arguments: argparse.Namespace) -> dict[str, Any]:
    """In the process that is measured: start the engine, decode one canvas, and say what took how long."""
    import logging

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s %(message)s")
    from easel.engine.native.phases import Phases
    from easel.settings import EngineSettings

    phases = Phases()
    with phases.of("import"):
        import torch

        from easel.engine.native.engine import NativeEngine
    from easel.protocol import CanvasCommitted, GenerationRequest

    settings = EngineSettings(slots=arguments.slots, context_tokens=arguments.context, compile_cache=arguments.child)
    engine = NativeEngine(arguments.folder, settings, phases=phases)
    await engine.start()
    ready_at, began = time.time(), time.perf_counter()
    request = GenerationRequest(id="first", prompt=tuple(range(200, 264)), max_tokens=256, ignore_eos=True)
    steps = 0
    async for event in engine.generate(request):
        if isinstance(event, CanvasCommitted):
            steps += event.steps
    took = time.perf_counter() - began
    await engine.stop()
    peak = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0
    return {
        "phases_s": {name: round(seconds, 2) for name, seconds in phases.seconds.items()},
        "ready_at": ready_at,
        "first_canvas_s": round(took, 2),
        "first_canvas_steps": steps,
        "peak_gpu_gb": round(peak, 2),
    }


def direct_s(paths: list[Path]) -> float:
    """Seconds to read all of them once around the page cache, or through an emptied one where that cannot be had."""
    drop_caches(paths)
    flags = os.O_RDONLY | os.O_DIRECT
    try:
        os.close(os.open(paths[0], flags))
    except OSError:
        flags = os.O_RDONLY
    files = {path: os.open(path, flags) for path in paths}
    blocks = [(path, start) for path in paths for start in range(0, path.stat().st_size, BLOCK)]

    def share(index: int) -> None:
        with mmap.mmap(-1, BLOCK) as buffer:  # of whole pages, as such reads need
            for path, start in blocks[index::THREADS]:
                os.preadv(files[path], [buffer], start)

    began = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(share, range(THREADS)))
    took = time.perf_counter() - began
    for file in files.values():
        os.close(file)
    return took


def drop_caches(paths: list[Path]) -> str:
    """Empty the page cache, or at least of these files; says how."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
        return "dropped"
    except OSError:
        for path in paths:
            file = os.open(path, os.O_RDONLY)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)
        return "advised"


def cached_part(paths: list[Path]) -> float:
    """Which part of the bytes is in memory, by samples that a read would have to wait for otherwise."""
    found = asked = 0
    for path in paths:
        size, file = path.stat().st_size, os.open(path, os.O_RDONLY)
        try:
            for index in range(SAMPLES):
                asked += 1
                try:
                    found += os.preadv(file, [bytearray(1)], size * index // SAMPLES, os.RWF_NOWAIT)
                except BlockingIOError:
                    continue
        finally:
            os.close(file)
    return found / max(asked, 1)


if __name__ == "__main__":
    main()

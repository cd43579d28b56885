"""The whole service on one GPU, as its clients meet it: `easel serve` with both tiers, and openai-SDK streams.

    PYTHONPATH=platform:ops python ops/benches/service_h100.py --checkpoint DIR --out results.json
    PYTHONPATH=platform:ops python ops/benches/service_h100.py --peer http://127.0.0.1:8001/v1 --model peer \\
        --sections streams --out peer.json

Sections, each written to `--out` as soon as it is done, each with a time limit of its own:

    streams  1, 8 and 32 streams: 512 random prompt tokens, 1,024 tokens of answer, 16 steps a canvas; CPU by tier
    kill     kill -9 of the engine's process under 8 streams: what they see, when they are as fast again
    long     a prompt of 30,000 tokens arrives among 8 streams; what is between their canvases with it and without
    sudoku   the embedded checkpoint: held-out puzzles, 32 at once

`--peer` asks a server that runs elsewhere (`peers/vllm_serve.py`), of which only `streams` can be measured, and ends at
once where it refuses the first request. Steps a canvas are then that server's own business: give it the same cap, and
see `steps_a_canvas` and `chunks`; of one that streams token by token, `--chunk-tokens 1`. `--engine fake` tries the
script where there is no GPU.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from record import Record
from serving import MACHINE, Local, serving
from session_watch import cores_used, cpu_seconds, idle_cores, members, running, wait_for
from streams import Answer, Clients, Load, forced, gaps_between, percentile, run, summary, tokens_between

SECTIONS = ("streams", "kill", "long", "sudoku")
LIMITS_S = {"streams": 420.0, "kill": 420.0, "long": 300.0, "sudoku": 300.0}
STARTING_LIMIT_S = 420.0
PRICES = (2.0, 3.0)
"""Dollars an hour of one GPU."""
FAKE = {"fake_step_ms": 10.8, "fake_step_ms_per_canvas": 4.6}
"""The measured step of docs/gpu.md at 1 and at 8 canvases."""


class GpuMemory:
    """nvidia-smi beside, five times a second. MiB; empty where there is none."""

    def __init__(self) -> None:
        query = ["nvidia-smi", "--query-gpu=index,memory.used", "--format=csv,noheader,nounits", "-lms", "200"]
        self._said = TemporaryFile("w+")  # noqa: SIM115  # a pipe that nobody reads is full after minutes
        try:
            self._process: subprocess.Popen[str] | None = subprocess.Popen(query, stdout=self._said, text=True)
        except OSError:
            self._process = None

    def peak_mib(self) -> dict[str, int]:
        """By GPU, since this was made. Ends it."""
        if self._process is None or self._process.poll() is not None:
            return {}
        self._process.terminate()
        self._process.wait()
        self._said.seek(0)
        peaks: dict[str, int] = {}
        for line in self._said:
            index, _, used = line.partition(",")
            if used.strip().isdigit():
                peaks[index.strip()] = max(peaks.get(index.strip(), 0), int(used))
        return peaks


@contextmanager
def service(args: argparse.Namespace, checkpoint: str | None, context_tokens: int) -> Iterator[tuple[Local, float]]:
    """A session on the GPU, and the seconds until it answered."""
    engine: dict[str, Any] = {"slots": args.slots, "context_tokens": context_tokens, **FAKE}
    deployment: dict[str, Any] = {"cpus": args.engine_cpus}
    if args.engine == "native":
        engine = {"kind": "native", "device": args.device, "slots": args.slots, "context_tokens": context_tokens}
        if args.kv_tokens:
            engine["kv_tokens"] = max(args.kv_tokens, context_tokens)
        deployment["gpus"] = 1 if args.device == "cuda" else 0
    app = {"router": {"queue_timeout_s": 120.0}}
    began = time.monotonic()
    with serving(engine, deployment, app, checkpoint=checkpoint, ingress={"cpus": 1.0}) as local:
        yield local, round(time.monotonic() - began, 1)


def load_of(args: argparse.Namespace, url: str, streams: int, seconds: float) -> Load:
    """What every section asks."""
    return Load(
        url=url,
        streams=streams,
        seconds=seconds,
        model=args.model,
        max_tokens=args.max_tokens,
        prompt_tokens=args.prompt_tokens,
        token_ids=tuple(args.token_ids),
        extra=dict(args.extra) if args.peer else forced(args.steps),
        seeded=not args.peer,
    )


def dollars(tokens_per_s: float) -> dict[str, float]:
    """For 1,000 tokens, by dollars an hour."""
    return {f"at_{price:g}_an_hour": round(price / 3.6 / tokens_per_s, 6) for price in PRICES if tokens_per_s}


def measure_streams(args: argparse.Namespace, url: str, local: Local | None) -> dict[str, Any]:
    """Each number of streams in turn, warmed up by itself."""
    found: dict[str, Any] = {"idle_cores": idle_cores(local)} if local is not None else {}
    for streams in args.streams:
        load = load_of(args, url, streams, args.warm + args.seconds)
        with Clients(load) as clients:
            began = clients.begin() + args.warm
            time.sleep(max(0.0, began - time.monotonic()))
            before = cpu_seconds(local) if local else {}
            time.sleep(max(0.0, began + args.seconds - time.monotonic()))
            after = cpu_seconds(local) if local else {}
            answers = clients.answers()
        one = summary(answers, began, began + args.seconds, args.chunk_tokens)
        one["dollars_per_1000_tokens"] = dollars(one["tokens_per_s"])
        if local is not None:
            one["cores"] = cores_used(before, after, args.seconds)
            one["cpu_ms"] = cpu_ms(one["cores"], one["requests_ended"], one["chunks"], args.seconds)
        found[str(streams)] = one
        print(f"{streams} streams: {one['tokens_per_s']} tokens/s, failed {one['failed']}", file=sys.stderr, flush=True)
    return found


def cpu_ms(cores: dict[str, Any], requests: int, chunks: int, seconds: float) -> dict[str, dict[str, float]]:
    """All of a tier's CPU time over the requests that ended, and over the chunks that came: neither is net of the
    other. `scaling.py` takes them apart."""
    return {
        tier: {
            "over_requests": round(1000 * used["cores"] * seconds / max(1, requests), 2),
            "over_chunks": round(1000 * used["cores"] * seconds / max(1, chunks), 2),
        }
        for tier, used in cores.items()
    }


def measure_kill(args: argparse.Namespace, local: Local) -> dict[str, Any]:
    """The engine's process is killed once all streams are at full pace."""
    at_s = args.warm + 10.0
    load = load_of(args, f"{local.session.url}/v1", 8, at_s + args.kill_seconds)
    with Clients(load) as clients:
        began = clients.begin()
        time.sleep(max(0.0, began + at_s - time.monotonic()))
        victims = members(local, "engine")
        killed = time.monotonic()
        for process in victims:
            process.kill()
        noticed = wait_for(lambda: running(local) == 0, killed + args.kill_seconds)
        ready = wait_for(lambda: running(local) > 0, killed + args.kill_seconds)
        answers = clients.answers()
    before = tokens_between(answers, began + args.warm, killed) / (killed - began - args.warm)
    until = began + load.seconds
    later = [at for answer in answers if answer.began > killed for at in answer.chunks]
    under_it = [a for a in answers if a.began < killed < a.ended]
    return {
        "killed_processes": len(victims),
        "noticed_after_s": noticed and round(noticed - killed, 2),
        "running_again_after_s": ready and round(ready - killed, 2),
        "first_canvas_of_a_new_request_after_s": round(min(later) - killed, 2) if later else None,
        "as_fast_again_after_s": as_fast_again(answers, killed, until, before),
        "tokens_per_s_before": round(before, 1),
        "under_it": {
            "requests": len(under_it),
            "failed": sum(bool(answer.error) for answer in under_it),
            "failed_before_any_text": sum(bool(a.error) and not a.chunks for a in under_it),
            "told_after_s": percentile([a.ended - killed for a in under_it if a.error], 1.0),
            "run_again_unseen": sum(not answer.error for answer in under_it),
        },
        "all": summary(answers, killed, until),
    }


def as_fast_again(answers: list[Answer], since: float, until: float, before: float, window_s: float = 4.0) -> Any:
    """Seconds until a window begins in which clients get at least 0.9 of what they got before."""
    start = since
    while start + window_s <= until:
        if tokens_between(answers, start, start + window_s) >= 0.9 * before * window_s:
            return round(start - since, 1)
        start += 0.5
    return None


def measure_long(args: argparse.Namespace, local: Local) -> dict[str, Any]:
    """Eight streams; after a while one more client, with long prompts and a canvas of answer each, three in a row."""
    at_s, seconds = args.warm + 20.0, args.warm + 60.0
    load = load_of(args, f"{local.session.url}/v1", 8, seconds)
    long = replace(
        load,
        streams=1,
        prompt_tokens=args.long_prompt,
        max_tokens=256,
        delay_s=at_s,
        most_requests=3,
        seconds=40.0,
        seed=9,
    )
    with Clients(load) as eight, Clients(long) as one:
        began = eight.begin()
        one.begin()
        longs = one.answers()
        answers = eight.answers()
    # From when a long prompt is sent until its first canvas is out; a gap belongs to the time in which it ends.
    spans = [(a.began, a.chunks[0] if a.chunks else a.ended) for a in longs]
    calm = (began + args.warm, spans[0][0])
    during = [gap for span in spans for gap in gaps_between(answers, *span)]
    return {
        "long_prompts": [
            {"tokens": a.prompt_tokens, "first_canvas_s": round(end - start, 3), "error": a.error}
            for a, (start, end) in zip(longs, spans, strict=True)
        ],
        "without": spread(gaps_between(answers, *calm)),
        "with": spread(during),
        "tokens_per_s_without": round(tokens_between(answers, *calm) / (calm[1] - calm[0]), 1),
        "tokens_per_s_with": round(
            sum(tokens_between(answers, *span) for span in spans) / sum(end - start for start, end in spans), 1
        ),
        "failed": [answer.error for answer in answers if answer.error],
    }


def spread(gaps: list[float]) -> dict[str, Any]:
    """Seconds between canvases, as a distribution."""
    return {"gaps": len(gaps)} | {f"p{part * 100:g}_s": percentile(gaps, part) for part in (0.5, 0.99, 1.0)}


def measure_sudoku(args: argparse.Namespace, local: Local) -> dict[str, Any]:
    """As `easel eval sudoku --concurrency 32` asks, after 32 puzzles that are not counted."""
    from dataclasses import asdict

    from easel.evals import sudoku

    asyncio.run(sudoku.run(local.session.url, None, 11, 32))
    began = time.monotonic()
    answers = asyncio.run(sudoku.run(local.session.url, None, args.puzzles, 32))
    seconds = time.monotonic() - began
    return {
        "at_once": 32,
        "puzzles": len(answers),
        "seconds": round(seconds, 2),
        "puzzles_per_s": round(len(answers) / seconds, 2),
        "solved": sum(answer.solved for answer in answers),
        "bands": [asdict(line) for line in sudoku.report(answers)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="a folder of the published shapes; not for --peer or --engine fake")
    parser.add_argument("--engine", choices=("native", "fake"), default="native")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--peer", help="URL up to /v1 of a server that runs")
    parser.add_argument("--model", default="easel")
    parser.add_argument("--extra", type=json.loads, default={"ignore_eos": True})
    parser.add_argument("--chunk-tokens", type=int, default=256)
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--streams", type=lambda text: [int(one) for one in text.split(",")], default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=30.0, help="of each measured window")
    parser.add_argument("--warm", type=float, default=8.0)
    parser.add_argument("--kill-seconds", type=float, default=120.0, help="of load after the kill")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=1024)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--token-ids", type=int, nargs=2, default=(1000, 60_000))
    parser.add_argument("--long-prompt", type=int, default=30_000)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--kv-tokens", type=int, help="unless given, what is free")
    parser.add_argument("--engine-cpus", type=float, default=4.0)
    parser.add_argument("--puzzles", type=int, default=100, help="of each band")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    wanted = args.sections.split(",")
    if unknown := set(wanted) - set(SECTIONS):
        parser.error(f"--sections: no {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    if args.engine == "native" and not args.peer and not args.checkpoint and set(wanted) - {"sudoku"}:
        parser.error("--checkpoint: which folder?")
    if args.engine == "fake":  # its checkpoint has 384 tokens and 8,192 of context
        args.token_ids, args.long_prompt = (130, 220), min(args.long_prompt, 7_000)
    setup = {key: value for key, value in vars(args).items() if key not in ("out", "sections")}
    record = Record(args.out, MACHINE, setup=setup)

    if args.peer:
        (first,), _ = run(replace(load_of(args, args.peer, 1, 1.0), most_requests=1))
        if first.error:
            raise SystemExit(f"--peer: {args.peer} answers {first.error}: {first.said}")
        record.section("streams", LIMITS_S["streams"], lambda: measure_streams(args, args.peer, None))
        return

    def started(name: str, checkpoint: str | None, context_tokens: int, *measured: tuple[str, Any]) -> None:
        """A session for these parts, unless none of them is wanted."""
        parts = [part for part in measured if part[0] in wanted]
        if not parts:
            return

        def with_memory(measure: Any, local: Local) -> dict[str, Any]:
            memory = GpuMemory()
            try:
                return {**measure(local), "peak_memory_mib": memory.peak_mib()}
            finally:
                memory.peak_mib()

        def all_of_it() -> dict[str, Any]:
            memory = GpuMemory()
            with service(args, checkpoint, context_tokens) as (local, ready_s):
                loading = memory.peak_mib()
                for part, measure in parts:
                    record.section(part, LIMITS_S[part], lambda measure=measure: with_memory(measure, local))
            return {"ready_s": ready_s, "peak_memory_mib": loading}

        record.section(f"{name}_session", STARTING_LIMIT_S + sum(LIMITS_S[part] for part, _ in parts), all_of_it)

    started(
        "main",
        args.checkpoint,
        4096,
        ("streams", lambda local: measure_streams(args, f"{local.session.url}/v1", local)),
        ("kill", lambda local: measure_kill(args, local)),
    )
    started("long", args.checkpoint, args.long_prompt + 1024, ("long", lambda local: measure_long(args, local)))
    sudoku = "embedded:sudoku" if args.engine == "native" else None
    started("sudoku", sudoku, 2048, ("sudoku", lambda local: measure_sudoku(args, local)))


if __name__ == "__main__":
    main()

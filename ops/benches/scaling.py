"""One service on several GPUs of a host: does it serve as many times as much, evenly, and what does that cost?

    PYTHONPATH=platform:ops python ops/benches/scaling.py --checkpoint DIR --replicas 1,1,2,4 --out results.json
    PYTHONPATH=platform:ops python ops/benches/scaling.py --engine fake --replicas 1,4,8,16,32 --ingress 1 --out r.json

openai-SDK streams in a closed loop, eight for each replica: 512 random prompt tokens, 1,024 tokens of answer, 16 steps
a canvas. Sections, each written as soon as it is done:

    rates        for each number of replicas: tokens/s at the clients, efficiency against the last run with one replica,
                 balance (largest over mean of the replicas' finished work), cores by tier, seconds until all are ready
    cost         CPU ms of each tier for a request and for each canvas, from answers of one canvas and of eight
    autoscaling  1 -> N -> 1 under a load that rises and falls, sampled five times a second
    kill         one replica is killed at full load: what its clients see, when all is even again

`--engine fake` needs no GPU: its steps take what an H100's were measured to (docs/gpu.md), so that what saturates is
what stands before the engines. `--speed-up 8` makes each fake replica send as much as eight such GPUs. The first run of
`1,1,2,4` reads the checkpoint from disk, the others find it in the page cache. `scaling_plot.py` draws the last two.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from record import Record
from router_scaling import Watch, until
from serving import MACHINE, Local, serving
from session_watch import Metrics, cores_used, cpu_seconds, idle_cores, largest_over_mean, members, running, wait_for
from streams import Clients, Load, forced, percentile, summary

SECTIONS = ("rates", "cost", "autoscaling", "kill")
STREAMS_EACH = 8
STEP_MS, STEP_MS_PER_CANVAS = 10.8, 4.6
"""One H100: 10.8 ms at 1 canvas, 43.0 at 8 (2026-11-24-step-time-h100.json)."""
METRICS_S = 5.0
"""After this what replicas have counted can be read: they export each second, Ray's agent gets it every two."""
EVEN = 1.1


@contextmanager
def service(args: argparse.Namespace, replicas: int, **deployment: Any) -> Iterator[tuple[Local, float]]:
    """So many replicas, each on a GPU of its own (one that Ray only believes in, for the fake engine), and the seconds
    until they all ran."""
    engine: dict[str, Any] = {"slots": args.slots, "context_tokens": 4096}
    if args.engine == "fake":
        engine["fake_step_ms"] = STEP_MS / args.speed_up
        engine["fake_step_ms_per_canvas"] = STEP_MS_PER_CANVAS / args.speed_up
    else:
        engine |= {"kind": "native", "device": "cuda"}
    deployment = {"gpus": 1, "cpus": args.engine_cpus, **deployment}
    ingress = {"cpus": args.ingress_cpus}
    app = {"router": {"queue_timeout_s": 120.0}}
    local = {"every_gpu": args.ingress is None, "gpus": replicas}
    if args.ingress is not None:
        ingress["replicas"], deployment["replicas"] = args.ingress, replicas
        if "autoscaling" in deployment:
            deployment["autoscaling"] = {**deployment["autoscaling"], "max_replicas": replicas}
    began = time.monotonic()
    with serving(engine, deployment, app, checkpoint=args.checkpoint, ingress=ingress, local=local) as found:
        wanted = 1 if "autoscaling" in deployment else replicas
        if wait_for(lambda: running(found) >= wanted, began + args.limit) is None:
            raise TimeoutError(f"{wanted} replicas did not run within {args.limit:g} s")
        yield found, round(time.monotonic() - began, 1)


def load_of(args: argparse.Namespace, local: Local, streams: int, seconds: float, **changes: Any) -> Load:
    """What every section asks."""
    ids = (130, 220) if args.engine == "fake" else (1000, 60_000)  # the fake's checkpoint has 384 tokens
    given = {"max_tokens": args.max_tokens, "prompt_tokens": args.prompt_tokens, "token_ids": ids, **changes}
    return Load(f"{local.session.url}/v1", streams, seconds, extra=forced(args.steps), **given)


def work_done(metrics: Metrics) -> dict[str, float]:
    """Units of work of finished requests, by replica."""
    return metrics.by("replica", "easel_work_total")["easel_work_total"]


def measured(args: argparse.Namespace, local: Local, load: Load) -> dict[str, Any]:
    """What clients saw in the window, and the cores that each tier kept busy meanwhile."""
    with Clients(load) as clients:
        began = clients.begin() + args.warm
        time.sleep(max(0.0, began - time.monotonic()))
        before = cpu_seconds(local)
        time.sleep(max(0.0, began + args.seconds - time.monotonic()))
        after = cpu_seconds(local)
        answers = clients.answers()
    cores = cores_used(before, after, args.seconds)
    return summary(answers, began, began + args.seconds) | {"cores": cores, "busiest_client": clients.busiest}


def measure_rate(args: argparse.Namespace, replicas: int) -> dict[str, Any]:
    """A session with so many replicas under full load."""
    with service(args, replicas) as (local, ready_s):
        metrics = Metrics(local)
        idle = idle_cores(local)
        before = work_done(metrics)
        load = load_of(args, local, args.streams_each * replicas, args.warm + args.seconds)
        found = measured(args, local, load)
        time.sleep(METRICS_S)
        after = work_done(metrics)
    work = [value - before.get(name, 0.0) for name, value in after.items()]
    used = found["cores"]["ingress"]["cores"]
    return {
        "replicas": replicas,
        "ingresses": found["cores"]["ingress"]["processes"],
        "streams": args.streams_each * replicas,
        "all_ready_s": ready_s,
        **found,
        "idle_cores": idle,
        "balance": largest_over_mean(work, replicas),
        "gpus_an_ingress_core": round(replicas * args.speed_up / used, 1) if used else None,
    }


def measure_rates(args: argparse.Namespace, record: Record) -> None:
    """Each number of replicas; a run that fails leaves the others."""
    runs: list[dict[str, Any]] = []
    for number, replicas in enumerate(args.replicas):
        name = f"rates_{number}_{replicas}"
        found = record.section(name, args.limit, lambda replicas=replicas: measure_rate(args, replicas))
        if found is not None:
            runs.append(found)
            print(f"{replicas}: {found['tokens_per_s']} tokens/s, balance {found['balance']}", file=sys.stderr)
    ones = [run["tokens_per_s"] for run in runs if run["replicas"] == 1]
    starts = [run["all_ready_s"] for run in runs if run["replicas"] == 1]
    rows = []
    for run in runs:
        row = {name: run[name] for name in ("replicas", "tokens_per_s", "balance", "all_ready_s", "failed")}
        row["ingress_cores"] = run["cores"]["ingress"]["cores"]
        row["gpus_an_ingress_core"] = run["gpus_an_ingress_core"]
        if ones:
            row["efficiency"] = round(run["tokens_per_s"] / (run["replicas"] * ones[-1]), 3)
            row["ready_to_that_of_one"] = round(run["all_ready_s"] / starts[-1], 2)
        rows.append(row)
    record.put("rates", rows)


def measure_cost(args: argparse.Namespace) -> dict[str, Any]:
    """CPU time of each tier as so much for a request and so much for a canvas, without what it takes when idle."""
    replicas = max(args.replicas)
    with service(args, replicas) as (local, _):
        idle = idle_cores(local)
        runs = []
        for canvases in (1, 8):
            streams = args.streams_each * replicas
            load = load_of(args, local, streams, args.warm + args.seconds, max_tokens=256 * canvases)
            runs.append(measured(args, local, load))
    found: dict[str, Any] = {"replicas": replicas, "idle_cores": idle, "runs": runs}
    for tier in idle:
        rows = [
            (
                run["requests_ended"] / run["window_s"],
                run["chunks"] / run["window_s"],
                1000 * (run["cores"].get(tier, {"cores": 0.0})["cores"] - idle[tier]["cores"]),
            )
            for run in runs
        ]
        (r1, c1, ms1), (r2, c2, ms2) = rows
        scale = r1 * c2 - r2 * c1
        if scale:
            found[tier] = {
                "ms_a_request": round((ms1 * c2 - ms2 * c1) / scale, 3),
                "ms_a_canvas": round((r1 * ms2 - r2 * ms1) / scale, 3),
            }
    return found


async def follow(watch: Watch, clients: Clients, timeout_s: float) -> tuple[list[Any], float]:
    """Samples until the load is over and one replica is left. Answers, and when it was so."""
    watching = asyncio.create_task(watch.run())
    answers = await asyncio.to_thread(clients.answers)
    over = watch.now()
    one_at = await until(watch, 1, timeout_s)
    watching.cancel()
    return answers, round(one_at - over, 1)


def measure_autoscaling(args: argparse.Namespace) -> dict[str, Any]:
    """One stream all the time; for a while eight more for each of all replicas. Two already keep a second replica: a
    closed loop asks the more the sooner it is answered, and apart they are answered sooner than together."""
    replicas = max(args.replicas)
    scaling = {"min_replicas": 1, "target_s": 2.0, "down_delay_s": args.down_delay}
    lead, tail = 15.0, 3 * args.down_delay + 10.0  # down in halves, each after the delay
    with service(args, replicas, autoscaling=scaling) as (local, _):
        watch = Watch(local)
        base = load_of(args, local, 1, lead + args.wave + tail)
        wave = load_of(args, local, args.streams_each * replicas, args.wave, delay_s=lead, seed=7)
        with Clients(base, wave) as clients:
            began = clients.begin()
            rises_at = watch.now() + (began + lead - time.monotonic())
            answers, after_s = asyncio.run(follow(watch, clients, 60 + 2 * args.down_delay))
        import ray

        ray.shutdown()
    all_ready = [one["at_s"] for one in watch.samples if one["ready"] >= replicas]
    targets = [one["target"] for one in watch.samples]
    return {
        "max_replicas": replicas,
        "autoscaling": scaling,
        "load_rises_at_s": round(rises_at, 1),
        "load_falls_at_s": round(rises_at + args.wave, 1),
        "all_ready_after_s": round(all_ready[0] - rises_at, 1) if all_ready else None,
        "one_again_after_last_answer_s": after_s,
        "most_ready": max(one["ready"] for one in watch.samples),
        "changes_of_target": sum(a != b for a, b in pairwise(targets)),
        "all": summary(answers, began, began + base.seconds),
        "samples": watch.samples,
    }


class Busy(threading.Thread):
    """Slots taken in each running replica, twice a second, until `stop`."""

    def __init__(self, local: Local) -> None:
        super().__init__(daemon=True)
        self._local, self._metrics = local, Metrics(local)
        self._over = threading.Event()
        self.samples: list[dict[str, Any]] = []

    def run(self) -> None:
        while not self._over.wait(0.5):
            try:
                engine = self._local.dashboard.applications()["applications"]["easel"]["deployments"]["engine"]
                names = [one["replica_id"] for one in engine["replicas"] if one["state"] == "RUNNING"]
                busy = self._metrics.by("replica", "easel_slots_busy")["easel_slots_busy"]
            except Exception as error:  # the dashboard is busy: asked again
                print(f"not known: {error}", file=sys.stderr)
                continue
            self.samples.append({"at": time.monotonic(), "ready": len(names), "busy": [busy.get(n, 0) for n in names]})

    def stop(self) -> None:
        self._over.set()
        self.join()

    def even_at(self, replicas: int, since: float) -> float | None:
        """When the mean of each replica's busy slots over the next five seconds was even over all of them."""
        later = [one for one in self.samples if one["at"] >= since]
        for index, first in enumerate(later):
            window = [one for one in later[index:] if one["at"] < first["at"] + 5.0]
            if len(window) < 5 or any(len(one["busy"]) != replicas for one in window):
                continue
            means = [sum(each) for each in zip(*(one["busy"] for one in window), strict=True)]
            balance = largest_over_mean(means, replicas)
            if balance is not None and balance <= EVEN:
                return float(first["at"])
        return None


def measure_kill(args: argparse.Namespace) -> dict[str, Any]:
    """SIGKILL to one of all engines at full load."""
    replicas, at_s = max(args.replicas), args.warm + 15.0
    with service(args, replicas) as (local, _):
        busy = Busy(local)
        load = load_of(args, local, args.streams_each * replicas, at_s + args.kill_seconds)
        with Clients(load) as clients:
            began = clients.begin()
            busy.start()
            time.sleep(max(0.0, began + at_s - time.monotonic()))
            victim = members(local, "engine")[0]
            victim.kill()
            killed = time.monotonic()
            until_s = killed + args.kill_seconds
            noticed = wait_for(lambda: running(local) < replicas, until_s)
            back = noticed and wait_for(lambda: running(local) == replicas, until_s)
            answers = clients.answers()
        busy.stop()
    failed = [answer for answer in answers if answer.error]
    even = busy.even_at(replicas, killed)
    under_it = [answer for answer in answers if answer.began < killed < answer.ended]
    told = [answer.ended - killed for answer in failed if answer.ended > killed]
    return {
        "replicas": replicas,
        "noticed_after_s": noticed and round(noticed - killed, 2),
        "all_ready_after_s": back and round(back - killed, 2),
        "even_again_after_s": even and round(even - killed, 2),
        "even_before": busy.even_at(replicas, began) is not None,
        "under_it": len(under_it),
        "failed": len(failed),
        "failed_before_any_text": sum(not answer.chunks for answer in failed),
        "told_at_most_after_s": percentile(told, 1.0),
        "before": summary(answers, began + args.warm, killed),
        "after": summary(answers, killed, began + load.seconds),
        "samples": [{**one, "at": round(one["at"] - killed, 2)} for one in busy.samples],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("native", "fake"), default="native")
    parser.add_argument("--checkpoint", help="a folder of the published shapes; the fake engine makes its own")
    parser.add_argument("--replicas", type=lambda text: [int(one) for one in text.split(",")], default=[1, 1, 2, 4, 8])
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--ingress", type=int, help="so many ingress replicas; otherwise as `local.every_gpu` has it")
    parser.add_argument("--streams-each", type=int, default=STREAMS_EACH)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=1024)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--speed-up", type=float, default=1.0, help="of the fake engine")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each window")
    parser.add_argument("--warm", type=float, default=8.0)
    parser.add_argument("--wave", type=float, default=90.0, help="seconds of full load in `autoscaling`")
    parser.add_argument("--down-delay", type=float, default=15.0)
    parser.add_argument("--kill-seconds", type=float, default=90.0, help="of load after the kill")
    parser.add_argument("--engine-cpus", type=float, default=0.5)
    parser.add_argument("--ingress-cpus", type=float, default=0.5)
    parser.add_argument("--limit", type=float, default=400.0, help="seconds after which a section is given up")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    wanted = args.sections.split(",")
    if unknown := set(wanted) - set(SECTIONS):
        parser.error(f"--sections: no {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    if args.engine == "native" and args.checkpoint is None:
        parser.error("--checkpoint: which folder?")
    if args.engine == "fake" and args.checkpoint is not None:
        parser.error("--checkpoint: the fake engine makes its own")
    setup = {key: value for key, value in vars(args).items() if key not in ("out", "sections")}
    record = Record(args.out, MACHINE, setup=setup)
    if args.engine == "native" and max(args.replicas) > (cards := len(record.found["gpus"])):
        parser.error(f"--replicas: {max(args.replicas)}, and nvidia-smi tells of {cards} GPUs")
    if "rates" in wanted:
        measure_rates(args, record)
    for name, measure in (("cost", measure_cost), ("autoscaling", measure_autoscaling), ("kill", measure_kill)):
        if name in wanted:
            record.section(name, args.limit, lambda measure=measure: measure(args))


if __name__ == "__main__":
    main()

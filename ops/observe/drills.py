"""Drills: for each alert the fault that it is for, caused on a local Easel.

Owns: what is broken, how, and how it is mended. Refuses to know: how the alert is watched and what is printed
(`ops/observe/drill.py`).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from easel.rayserve import processes
from easel.rayserve.config import IMPORT_PATH
from easel.rayserve.local import Local
from easel.settings import ServeSettings, parse
from ops.observe.load import Mixed
from ops.observe.watched import native
from tests.integration.checkpoint import write_checkpoint

FAULTY = "ops.observe.faults:build"


@dataclass(frozen=True)
class Scene:
    """What a cause has in hand."""

    local: Local

    def tell(self, fault: str) -> None:
        """Every engine replica hears it, or nearly: as many requests as find them all."""
        body = {"model": "easel", "prompt": f"fault {fault}", "max_tokens": 1}
        for _ in range(4):
            with suppress(httpx.HTTPError):
                httpx.post(f"{self.local.session.url}/v1/completions", json=body, timeout=10, trust_env=False)

    def named(self, title: str) -> list[psutil.Process]:
        """Processes of the session that Ray calls so."""
        found = []
        for process in processes.members(self.local.session.mark, self.local.keeper):
            with suppress(psutil.Error):
                if process.cmdline()[:1] and process.cmdline()[0].startswith(title):
                    found.append(process)
        return found


@dataclass(frozen=True)
class Drill:
    """One fault and the alerts that must come of it."""

    alerts: tuple[str, ...]
    what: str
    """The fault, for the reader."""
    cause: Callable[[Scene], AbstractContextManager[None]]
    """Breaks it for as long as the block lasts."""
    settings: Callable[[Path], ServeSettings]
    import_path: str = FAULTY
    clients: int = 2
    """Of the load that runs all the time."""


def fake(**deployment: Any) -> Callable[[Path], ServeSettings]:
    """Settings with the faulty engine: 4 slots, steps of 20 ms, so some six canvases a second."""

    def made(folder: Path) -> ServeSettings:
        engine = {"kind": "fake", "slots": 4, "fake_step_ms": 20.0, "fake_step_ms_per_canvas": 2.0}
        model = {"checkpoint": str(write_checkpoint(folder / "fake")), "engine": engine}
        return parse(
            {
                "app": {"models": {"default": model}, "router": {"queue_timeout_s": 15}},
                "deployments": {
                    "engine": {
                        "cpus": 0.1,
                        "max_ongoing_requests": 6,
                        "health_check_period_s": 1.0,
                        "autoscaling": {"min_replicas": 1, "max_replicas": 1},
                        **deployment,
                    },
                    "ingress": {"cpus": 0.1},
                },
                "local": {"port": 0, "dashboard_port": 0},
            }
        )

    return made


def telling(fault: str) -> Callable[[Scene], AbstractContextManager[None]]:
    """The engine is told to break, and to mend."""

    @contextmanager
    def cause(scene: Scene) -> Iterator[None]:
        scene.tell(fault)
        yield
        scene.tell("none")

    return cause


@contextmanager
def again_and_again(scene: Scene, fault: str, every_s: float) -> Iterator[None]:
    stop = threading.Event()

    def keep_telling() -> None:
        while not stop.is_set():
            scene.tell(fault)
            stop.wait(every_s)

    thread = threading.Thread(target=keep_telling)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def dying(scene: Scene) -> Iterator[None]:
    with again_and_again(scene, "die", 10.0):
        yield


@contextmanager
def flood(scene: Scene) -> Iterator[None]:
    """Four times as many clients as there are slots, none of whom goes away."""
    with Mixed(scene.local.session.url, clients=16, max_tokens=600, seed=100).running():
        yield


@contextmanager
def leaving(scene: Scene) -> Iterator[None]:
    """Three clients leave in the middle of their streams; the engine keeps their seats."""
    scene.tell("leak")
    body = {"model": "easel", "prompt": "I leave", "max_tokens": 2000, "stream": True}
    for _ in range(3):
        with httpx.stream(
            "POST", f"{scene.local.session.url}/v1/completions", json=body, timeout=60, trust_env=False
        ) as answer:
            for _ in answer.iter_bytes():
                break
    yield
    scene.tell("none")


@contextmanager
def no_room(scene: Scene) -> Iterator[None]:
    """Two replicas are wanted, each of more cores than the machine has left."""
    config = scene.local.config(FAULTY)
    engine = config["applications"][0]["deployments"][1]
    engine["autoscaling_config"] |= {"min_replicas": 2, "max_replicas": 2, "initial_replicas": 2}
    engine["ray_actor_options"] = {"num_cpus": 64}
    scene.local.dashboard.deploy(config)
    yield
    scene.local.dashboard.deploy(scene.local.config(FAULTY))


def stopped(title: str) -> Callable[[Scene], AbstractContextManager[None]]:
    """Processes of that name are held by SIGSTOP: there, and answering nobody."""

    @contextmanager
    def cause(scene: Scene) -> Iterator[None]:
        found = scene.named(title)
        if not found:
            raise RuntimeError(f"no process is called {title}")
        for process in found:
            process.send_signal(signal.SIGSTOP)
        yield
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)

    return cause


@contextmanager
def starved(scene: Scene) -> Iterator[None]:
    """The ingress has its core for half of the time only, in turns of 0.4 s."""
    stop = threading.Event()
    processes_of_it = scene.named("ray::ServeReplica:easel:ingress")

    def take_turns() -> None:
        while not stop.is_set():
            for process in processes_of_it:
                process.send_signal(signal.SIGSTOP)
            stop.wait(0.4)
            for process in processes_of_it:
                process.send_signal(signal.SIGCONT)
            stop.wait(0.4)

    thread = threading.Thread(target=take_turns)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        for process in processes_of_it:
            process.send_signal(signal.SIGCONT)


@contextmanager
def long_answers(scene: Scene) -> Iterator[None]:
    """Answers that need more KV blocks together than there are."""
    with Mixed(scene.local.session.url, clients=6, max_tokens=700, seed=300, only="long").running():
        yield


def kv(folder: Path) -> ServeSettings:
    return native(folder, keys=False)


FAKE = fake()
DRILLS: tuple[Drill, ...] = (
    Drill(("EaselAvailabilityBurn",), "every request fails in the engine", telling("fail"), FAKE),
    Drill(
        ("EaselQueueNotDraining", "EaselFirstCanvasBurn", "EaselAutoscalerPinned"),
        "four times as many clients as slots, and one replica is all there may be",
        flood,
        FAKE,
    ),
    Drill(("EaselStepTimeRegression",), "something holds up the engine's loop", telling("drag"), FAKE),
    Drill(("EaselCanvasesNotConverging",), "no canvas converges", telling("capped"), FAKE),
    Drill(("EaselSlotsLeaking",), "seats of clients that left are not given back", leaving, FAKE),
    Drill(("EaselEnginesDying",), "the engine's process dies again and again", dying, FAKE),
    Drill(("EaselEngineStuck",), "the engine's loop stops turning", telling("freeze"), FAKE),
    Drill(("EaselReplicasUnready",), "two replicas are wanted that fit on no machine", no_room, FAKE),
    Drill(("EaselIngressSaturated",), "others take the ingress's core for half of the time", starved, FAKE),
    Drill(("EaselScalingBlind",), "the work-reporting actor hangs", stopped("ray::WorkLedger"), FAKE),
    Drill(("EaselTelemetryGone",), "Ray's metrics exporter hangs", stopped("ray::DashboardAgent"), FAKE),
    Drill(("EaselKvExhausted",), "answers need more KV blocks than there are", long_answers, kv, IMPORT_PATH),
)
BY_ALERT = {alert: drill for drill in DRILLS for alert in drill.alerts}

"""The keeper over a stand-in for Ray: whatever ends it, no process of the session is left, and no other is touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from easel.rayserve import processes

# Starts what Ray starts: a child, a grandchild that is orphaned, one in a Unix session of its own.
STAND_IN = """
import os, subprocess, sys, time
quiet = [sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"]
subprocess.Popen(quiet)
subprocess.Popen([sys.executable, "-c", f"import subprocess; subprocess.Popen({quiet!r}, start_new_session=True)"])
time.sleep(float(sys.argv[1]))
"""


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Kept:
    """A keeper with its pipe."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.mark = str(folder)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "easel.rayserve.keeper", str(folder), sys.executable, "-c", STAND_IN, str(seconds)],
            stdin=subprocess.PIPE,
            env={**os.environ, processes.SESSION_ENV: self.mark},
            start_new_session=True,
        )

    def members(self) -> list[psutil.Process]:
        return processes.members(self.mark, self.process.pid)

    def close(self) -> None:
        if self.process.stdin:
            self.process.stdin.close()


@pytest.fixture
def keep(tmp_path: Path) -> Iterator[Callable[[float], Kept]]:
    begun: list[Kept] = []

    def start(seconds: float = 600) -> Kept:
        kept = Kept(tmp_path, seconds)
        begun.append(kept)
        wait_until(lambda: len(kept.members()) == 3 or kept.process.poll() is not None)
        return kept

    yield start
    for kept in begun:
        kept.close()
        kept.process.kill()
        kept.process.wait()
        processes.kill_all(kept.mark, None)


def test_ends_everything_when_its_pipe_closes(keep: Callable[..., Kept]) -> None:
    kept = keep()
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        kept.close()
        assert kept.process.wait(60) == 0
        assert not processes.members(kept.mark, None)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_ends_everything_when_told_by_a_signal(keep: Callable[..., Kept]) -> None:
    kept = keep()
    kept.process.send_signal(signal.SIGTERM)
    assert kept.process.wait(60) == 0
    assert not processes.members(kept.mark, None)


def test_says_when_ray_ended_by_itself(keep: Callable[..., Kept]) -> None:
    kept = keep(1.0)
    assert kept.process.wait(60) == 1
    assert not processes.members(kept.mark, None)


def test_what_a_killed_keeper_left_is_found_by_its_mark(keep: Callable[..., Kept]) -> None:
    kept = keep()
    kept.process.kill()
    kept.process.wait()
    assert len(processes.members(kept.mark, None)) >= 2
    assert not processes.kill_all(kept.mark, None)


def test_a_mark_is_the_whole_path(keep: Callable[..., Kept]) -> None:
    kept = keep()
    assert not processes.members(kept.mark[:-1], None)
    assert not processes.members(kept.mark + "1", None)

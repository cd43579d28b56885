"""Finds and ends the processes of a local session.

Owns: which processes belong to a session, and ending them by pid. Refuses to know: what they do. Nothing is ever
picked by its name: a machine may run other Rays and other HAProxys.

A process belongs to a session if it descends from the session's keeper, or is in the Unix session that the keeper
leads; and without a keeper, if it carries the session's mark in its environment. Ray's own daemons write a title over
their environment: of those, it is what they hold open in the session's folder that counts.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable

import psutil

SESSION_ENV = "EASEL_SESSION"
"""The session's folder, in the environment of each of its processes: the mark."""

_TITLES = ("ray::", "ray-dashboard")


def members(mark: str, keeper: int | None = None) -> list[psutil.Process]:
    """Every living process of the session but this one and the keeper."""
    own = {os.getpid(), keeper}
    found: dict[int, psutil.Process] = {}
    if keeper is not None:
        with contextlib.suppress(psutil.Error):
            found = {child.pid: child for child in psutil.Process(keeper).children(recursive=True)}
    for process in psutil.process_iter():
        if process.pid not in found and _belongs(process, mark, keeper):
            found[process.pid] = process
    return [process for pid, process in found.items() if pid not in own and _alive(process)]


def kill(processes: Iterable[psutil.Process]) -> None:
    """SIGKILL. psutil compares start times, so a pid that was given out anew is left alone."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()


def kill_all(mark: str, keeper: int | None, timeout_s: float = 10.0) -> list[psutil.Process]:
    """SIGKILL until the session has no member: one that dies may just have started another. What is left, if any."""
    deadline = time.monotonic() + timeout_s
    while True:
        left = members(mark, keeper)
        if not left or time.monotonic() > deadline:
            return left
        kill(left)
        time.sleep(0.05)


def _belongs(process: psutil.Process, mark: str, keeper: int | None) -> bool:
    try:
        if keeper is not None and os.getsid(process.pid) == keeper:
            return True
        if process.environ().get(SESSION_ENV) == mark:
            return True
        # Titles may be cut at 15 characters; who merely reads a log of the session has another.
        if not process.name().startswith(_TITLES):
            return False
        return any(file.path.startswith(mark + "/") for file in process.open_files())
    except (psutil.Error, OSError):
        return False  # gone meanwhile, or another user's


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False

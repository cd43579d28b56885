"""The process that keeps a local session: it starts Ray, and ends everything when whoever started it is gone.

Owns: the life of every process of the session. Refuses to know: Serve, and why the session ends.

    python -m easel.rayserve.keeper FOLDER COMMAND...

Its standard input is a pipe from `easel serve` on which nothing is ever sent: when it closes, because that process
ended in whatever way, `kill -9` included, the session ends. It leads a Unix session of its own, so that Ctrl-C in a
terminal reaches `easel serve` alone, which then drains first; and on Linux it adopts what its descendants orphan.

If the keeper itself is killed, `easel serve` ends what is left. If that is gone too, the kernel tells `ray start`
(PR_SET_PDEATHSIG), which stops within half a minute, and the next `easel serve` looks after the rest
(`easel.rayserve.session.sweep`).
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

from easel.rayserve import processes

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _end_with_parent() -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _reap() -> dict[int, int]:
    """Pids and exit codes of children that ended, adopted ones too."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended[pid] = os.waitstatus_to_exitcode(status)


def keep(command: list[str], log: Path) -> int:
    """Run `command` until the pipe closes or a signal comes (0), or it ends by itself (1)."""
    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: told.set())
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    with log.open("wb") as out:
        ray = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, preexec_fn=_end_with_parent
        )
    result = 0
    while not told.is_set():
        ready, _, _ = select.select([sys.stdin], [], [], 0.25)
        if ready and not os.read(sys.stdin.fileno(), 1):
            break
        if ray.pid in _reap():
            result = 1
            break
    # No SIGTERM first: what was to be finished is finished by now, and Ray takes up to 30 s to drain a node that has
    # nowhere to go.
    left = processes.kill_all(os.environ[processes.SESSION_ENV], os.getpid())
    _reap()
    return 2 if left else result


def main() -> None:
    """See the module."""
    folder, command = Path(sys.argv[1]), sys.argv[2:]
    sys.exit(keep(command, folder / "ray.log"))


if __name__ == "__main__":
    main()

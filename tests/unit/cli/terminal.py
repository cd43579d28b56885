"""A program in a pseudo-terminal: what it printed, keys, Ctrl-C."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).parents[3]
CHAT = (sys.executable, "-c", "from easel.cli import main; main()", "chat")
MOST_S = 60.0
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def environment(**more: str) -> dict[str, str]:
    """A plain one, where `easel` is found."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "TMPDIR")}
    return kept | {"PYTHONPATH": str(ROOT / "platform"), "PYTHONIOENCODING": "utf-8", "TERM": "xterm-256color"} | more


class Terminal:
    """80 columns, 40 lines."""

    def __init__(self, *command: str, **more: str) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment(**more), preexec_fn=_own_terminal
        )
        os.close(theirs)
        self.raw = b""
        self._seen = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._ours)

    @property
    def text(self) -> str:
        """All that was printed, without colours and cursor movements."""
        return ESCAPES.sub("", self.raw.decode("utf-8", "replace")).replace("\r", "")

    def type(self, line: str) -> None:
        """A line and Enter; what is waited for next comes after it."""
        self._seen = len(self.text)
        os.write(self._ours, line.encode() + b"\r")

    def press_ctrl_c(self, until: str) -> None:
        """Until it has an effect, as a person would: Python may miss one that comes just before it waits for a key."""
        self._seen = len(self.text)
        deadline = time.monotonic() + MOST_S
        while until not in self.text[self._seen :]:
            os.write(self._ours, b"\x03")
            pause = time.monotonic() + 1.0
            while until not in self.text[self._seen :] and time.monotonic() < pause:
                self._read(0.1)
            assert time.monotonic() < deadline, f"Ctrl-C did nothing\n{self.text}"

    def until(self, what: str) -> str:
        """What was printed since the last key, once `what` is in it, on one line or on two."""
        deadline = time.monotonic() + MOST_S
        while not self._shows(what):
            if time.monotonic() > deadline or not self._read():
                raise AssertionError(f"never printed: {what}\n{self.text}")
        return self.text[self._seen :]

    def _shows(self, what: str) -> bool:
        """As it was printed, or with lines joined that were broken for the terminal's width."""
        new = self.text[self._seen :]
        return what in new or what in " ".join(new.split())

    def wait(self) -> int:
        """Reads to its end; the exit code."""
        while self._read():
            pass
        return self.process.wait(MOST_S)

    def _read(self, wait_s: float = 1.0) -> bool:
        """Whether it may print more."""
        if not select.select([self._ours], [], [], wait_s)[0]:
            return self.process.poll() is None
        try:
            part = os.read(self._ours, 1 << 16)
        except OSError:  # its end was closed
            return False
        self.raw += part
        return bool(part)


def _own_terminal() -> None:
    """Makes it the process's own, so that Ctrl-C reaches it and nobody else."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)

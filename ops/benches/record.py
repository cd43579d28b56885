"""A results file that grows by sections: what ran, on what, with which versions, and each part as soon as it is known.

A part that fails or takes too long is written as its error, and the next one runs: hours on a machine that is lent are
not lost to the last line.
"""

from __future__ import annotations

import json
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any

PACKAGES = ("torch", "triton", "ray", "openai", "transformers", "uvicorn", "vllm")


def said(*command: str) -> str | None:
    """What a program prints; None where there is none, or it fails."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None if done.returncode == 0 else None


def versions() -> dict[str, str]:
    """Of Python and the packages that matter here."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def head(machine: str) -> dict[str, Any]:
    """What every results file begins with: when, by which command, on what."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "command": shlex.join(["python", *sys.argv]),
        "commit": said("git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"),
        "machine": machine,
        "gpus": (said("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader") or "").splitlines(),
        "versions": versions(),
    }


class Record:
    """See the module. `path` is rewritten with each part."""

    def __init__(self, path: Path, machine: str, **setup: Any) -> None:
        self._path = path
        self.found: dict[str, Any] = {**head(machine), **setup}

    def put(self, name: str, value: Any) -> None:
        """Write a part down, in the place of one of that name."""
        self.found[name] = value
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(self.found, indent=1) + "\n")

    def section(self, name: str, limit_s: float, measure: Callable[[], Any]) -> Any:
        """What `measure` returns, written down; its error where it has one or is not done in time. None then."""

        def late(number: int, frame: FrameType | None) -> None:
            raise TimeoutError(f"not done within {limit_s:g} s")

        before = signal.signal(signal.SIGALRM, late)
        around, _ = signal.setitimer(signal.ITIMER_REAL, limit_s)
        began, value = time.monotonic(), None
        print(f"[{name}]", file=sys.stderr, flush=True)
        try:
            value = measure()
            self.put(name, value)
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            self.put(name, {"error": f"{type(error).__name__}: {error}", "after_s": round(time.monotonic() - began, 1)})
        finally:
            signal.signal(signal.SIGALRM, before)
            left = max(0.1, around - (time.monotonic() - began)) if around else 0.0  # of the section around this one
            signal.setitimer(signal.ITIMER_REAL, left)
        print(f"[{name}] {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
        return value

"""Runbooks as programs read them: sections, and the commands of a section.

Owns: the shape of a page in ops/runbooks. Refuses to know: what the pages say.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "runbooks"
SECTIONS = ("Meaning", "Impact", "Diagnosis", "Mitigation", "Verify")
_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND_S = 60.0


@dataclass(frozen=True, slots=True)
class Runbook:
    """One page."""

    alert: str
    sections: dict[str, str]
    """Text by title, in the order of the page."""

    def commands(self, section: str) -> list[str]:
        """Of the blocks marked `sh`: those that need nothing but the variables of ops/runbooks/README.md. A command may
        go over several lines with a backslash."""
        lines = "".join(_BLOCK.findall(self.sections[section])).replace("\\\n", " ").splitlines()
        return [re.sub(r"\s{2,}", " ", line) for line in lines if line.strip() and not line.startswith("#")]


def read(alert: str) -> Runbook:
    """The page of an alert. Raises `FileNotFoundError`."""
    text = (FOLDER / f"{alert}.md").read_text(encoding="utf-8")
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return Runbook(alert, dict(zip(parts[1::2], parts[2::2], strict=True)))


def all_alerts() -> list[str]:
    """Those that have a page."""
    return sorted(path.stem for path in FOLDER.glob("Easel*.md"))


def run(command: str, variables: dict[str, str]) -> str:
    """What a command prints, errors too, and its exit code where that is not 0."""
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        check=False,
        timeout=COMMAND_S,
        env={**os.environ, **variables},
    )
    code = f"[exit code {done.returncode}]\n" if done.returncode else ""
    return (done.stdout + done.stderr).rstrip() + "\n" + code

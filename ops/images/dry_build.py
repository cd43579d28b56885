"""What an image installs, installed here: the first stage of a Dockerfile, run without a container engine.

    python ops/images/dry_build.py engine FOLDER --arg TORCH_INDEX_URL=... --result FILE

Interprets ARG, ENV, SHELL, WORKDIR, COPY and RUN as they stand in the Dockerfile, with /src and /opt/easel inside
FOLDER (made anew), then looks at what came out: versions against the constraints, size, imports as pods make
would make them, and a bill of materials where `syft` is on the path.

Owns: that. Refuses to know: the second stage, which installs Debian's packages and sets a user; only a real build shows
that one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).parents[2]
STAYS = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
SMOKE = {
    "engine": "import easel.rayserve.app, easel.engine.native, huggingface_hub, ray, torch, triton",
    "head": "import easel.rayserve.app, easel.rayserve.autoscaling, ray; import importlib.util as u; "
    "assert u.find_spec('torch') is None",
}
"""What pods of each image import."""


def instructions(text: str) -> list[tuple[str, str]]:
    """(INSTRUCTION, rest) of the first stage: comments gone, continued lines joined."""
    lines = "\n".join(line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    joined = lines.replace("\\\n", " ").splitlines()
    begin, *others = (number for number, line in enumerate(joined) if line.startswith("FROM "))
    found = [line.partition(" ") for line in joined[begin + 1 : others[0]]]
    return [(word, rest.strip()) for word, _, rest in found]


class Stage:
    """The build stage, below a folder."""

    def __init__(self, folder: Path, given: dict[str, str]) -> None:
        self.folder, self.given = folder, given
        self.environment: dict[str, str] = {}
        self.place = folder
        self.places = {"/src": str(folder / "src"), "/opt/easel": str(folder / "opt/easel")}

    def here(self, text: str) -> str:
        for there, own in self.places.items():
            text = text.replace(there, own)
        return text

    def value(self, text: str) -> str:
        """With variables put in."""
        return re.sub(r"\$\{(\w+)\}", lambda found: self.environment.get(found[1], ""), text)

    def take(self, word: str, rest: str) -> None:
        match word:
            case "ARG":
                name, _, default = rest.partition("=")
                self.environment[name] = self.given.get(name, default)
            case "ENV":
                for pair in rest.split():
                    name, _, value = pair.partition("=")
                    self.environment[name] = self.here(self.value(value))
            case "WORKDIR":
                self.place = Path(self.here(rest))
                self.place.mkdir(parents=True, exist_ok=True)
            case "COPY":
                *sources, target = rest.split()
                for source in sources:
                    self._copy(ROOT / source, self.place / target)
            case "RUN":
                self._run(rest)
            case "SHELL":
                assert json.loads(rest)[:1] == ["/bin/bash"], rest
            case _:
                raise SystemExit(f"this script does not know {word}")

    def _copy(self, source: Path, target: Path) -> None:
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
        else:
            shutil.copy(source, target)

    def _run(self, command: str) -> None:
        kept = {name: os.environ[name] for name in STAYS if name in os.environ}
        kept |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        # An ARG without a value is no variable of the command.
        own = {name: value for name, value in self.environment.items() if value}
        environment = {"HOME": str(self.folder), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", **kept, **own}
        subprocess.run(
            ["/bin/bash", "-o", "pipefail", "-c", self.here(command)], env=environment, cwd=self.place, check=True
        )


def versions(site: Path) -> dict[str, str]:
    return {item.metadata["Name"]: item.version for item in distributions(path=[str(site)])}


def pinned(file: Path) -> dict[str, str]:
    lines = (line.split("#")[0].split(";")[0].strip() for line in file.read_text().splitlines())
    return {normal(name): version for name, _, version in (line.partition("==") for line in lines) if version}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", choices=sorted(SMOKE))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--arg", action="append", default=[], help="a build argument, as NAME=VALUE")
    parser.add_argument("--result", type=Path, help="where to write what came out")
    asked = parser.parse_args()
    folder = asked.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    stage = Stage(folder, dict(text.split("=", 1) for text in asked.arg))
    began = time.monotonic()
    for word, rest in instructions((ROOT / f"ops/images/{asked.image}.Dockerfile").read_text()):
        print(f"{word} {rest[:100]}", flush=True)
        stage.take(word, rest)
    took = time.monotonic() - began
    home = folder / "opt/easel"
    python = home / "bin/python"
    subprocess.run([python, "-I", "-W", "ignore", "-c", SMOKE[asked.image]], check=True)
    subprocess.run([home / "bin/easel", "--help"], check=True, stdout=subprocess.DEVNULL)
    found = versions(next(home.glob("lib/python*/site-packages")))
    pins = pinned(ROOT / stage.environment.get("CONSTRAINTS", "constraints.txt"))
    stray = {name: version for name, version in found.items() if version.split("+")[0] != pins.get(normal(name))}
    stray.pop("easel-serve", None)
    size = sum(path.stat().st_size for path in home.rglob("*") if path.is_file() and not path.is_symlink())
    result = {
        "at": datetime.now(UTC).strftime("%Y-%m-%d"),
        "image": asked.image,
        "arguments": {name: value for name, value in stage.given.items() if not name.endswith("_URL")},
        "python": platform.python_version(),
        "seconds": round(took),
        "bytes": size,
        "packages": len(found),
        "not as pinned": stray,
        "torch": found.get("torch"),
        "bill of materials": bill(home, folder / "sbom.cdx.json", found),
    }
    print(json.dumps(result, indent=1))
    if asked.result:
        asked.result.write_text(json.dumps(result, indent=1) + "\n")
    if stray:
        raise SystemExit(f"not as pinned: {stray}")


def bill(home: Path, file: Path, found: dict[str, str]) -> str:
    """Made with syft where that is there: how many of the packages are in it."""
    syft = shutil.which("syft")
    if syft is None:
        return "no syft on the path"
    subprocess.run([syft, "scan", f"dir:{home}", "--quiet", "--output", f"cyclonedx-json={file}"], check=True)
    listed = {normal(item["name"]) for item in json.loads(file.read_text())["components"] if item.get("version")}
    missing = sorted(name for name in found if normal(name) not in listed)
    if missing:
        raise SystemExit(f"the bill of materials lacks {missing}")
    return f"CycloneDX, {len(listed)} components, every package among them"


if __name__ == "__main__":
    main()

"""Fills a folder with a checkpoint from a model hub, or waits until somebody has: what the chart's Job, and init
containers, run.

The folder is complete when it holds the mark `.easel-complete` with the wanted repository, revision, patterns and
checksums. Until then files lie beside it in `.FOLDER.part`, where the next attempt at the same goes on with what is
there; what was begun of another revision is removed. Several pods on one volume: the first takes a lock, the others
wait for the mark.

Owns: downloading, checking, marking. Refuses to know: what is in the files.
"""

import errno
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

MARK, BEGUN = ".easel-complete", ".easel-begun"
LOOK_S = 2.0


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def complete(folder: Path, wanted: dict) -> bool:
    return read(folder / MARK) == wanted


def read(mark: Path) -> object:
    try:
        return json.loads(mark.read_text())
    except (OSError, ValueError):
        return None


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def expected(wanted: dict) -> dict[str, tuple[int | None, str | None]]:
    """Every file to have, with its size, and the checksum that the hub keeps for it, if it keeps one."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(wanted["repository"], revision=wanted["revision"], files_metadata=True)
    found = {
        file.rfilename: (file.size, file.lfs.sha256 if file.lfs else None)
        for file in info.siblings or []
        if any(fnmatch(file.rfilename, pattern) for pattern in wanted["files"])
    }
    if not found:
        raise SystemExit(f"{wanted['repository']} has no file that fits {wanted['files']}")
    return found


def ensure_taken(part: Path, files: dict[str, tuple[int | None, str | None]], wanted: dict) -> None:
    """The client's transfer begins none of 50 GB. Its command has another, whose result counts here."""
    from huggingface_hub.constants import MAX_HTTP_DOWNLOAD_SIZE

    for name, (size, _) in sorted(files.items()):
        partial = part / f"{name}.partial"
        begun = (part / name).is_file() or (partial.exists() and partial.stat().st_size > 0)
        if not begun and (size or 0) > MAX_HTTP_DOWNLOAD_SIZE:
            command = ["hf", "download", wanted["repository"], name, "--revision", wanted["revision"]]
            raise SystemExit(
                f"{name}: {size} bytes, and the client takes no file above {MAX_HTTP_DOWNLOAD_SIZE} in one piece. "
                "Where the volume is mounted, and hf_xet is installed: "
                f"{shlex.join([*command, '--local-dir', str(part)])}; what is there is gone on with"
            )


def fetch(part: Path, name: str, size: int | None, wanted: dict) -> None:
    """One file. The client's own way to take a folder begins a file that broke off anew; a shard has gigabytes."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    target, partial = part / name, part / f"{name}.partial"
    if target.is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    have = partial.stat().st_size if partial.exists() else 0
    say(f"{name}: {size} bytes" + (f", from {have} on" if have else ""))
    with partial.open("ab") as file:
        url = hf_hub_url(wanted["repository"], name, revision=wanted["revision"])
        http_get(url, file, resume_size=have, headers=build_hf_headers(), expected_size=size)
    partial.rename(target)


def check(part: Path, files: dict[str, tuple[int | None, str | None]], own: dict[str, str]) -> list[str]:
    """What is wrong. A file whose checksum is wrong is removed, so that the next attempt takes it again."""
    wrong = [f"{name}: the repository has no such file" for name in sorted(set(own) - set(files))]
    for name, (_, hub) in sorted(files.items()):
        path = part / name
        if not path.is_file():
            wrong.append(f"{name}: missing")
            continue
        sums = {value for value in (hub, own.get(name)) if value}
        if sums and {sha256(path)} != sums:
            path.unlink()
            wrong.append(f"{name}: its sha256 is not {' and '.join(sorted(sums))}")
    return wrong


def download(folder: Path, wanted: dict) -> None:
    part = folder.with_name(f".{folder.name}.part")
    source = {name: wanted[name] for name in ("repository", "revision", "files")}
    if part.exists() and read(part / BEGUN) != source:
        say(f"{part} is of another download: it begins anew")
        shutil.rmtree(part)
    part.mkdir(parents=True, exist_ok=True)
    (part / BEGUN).write_text(json.dumps(source))
    files = expected(wanted)
    say(f"downloading {len(files)} files of {wanted['repository']} at {wanted['revision']}")
    ensure_taken(part, files, wanted)
    for name, (size, _) in sorted(files.items()):
        fetch(part, name, size, wanted)
    wrong = check(part, files, wanted["sha256"])
    if wrong:
        raise SystemExit("not as it should be:\n  " + "\n  ".join(wrong))
    (part / MARK).write_text(json.dumps(wanted))
    if folder.exists():
        # Another revision lies there, which running replicas may have open: they keep what they have open.
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        part.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    else:
        part.rename(folder)
    (folder / BEGUN).unlink()
    say(f"{folder} is complete")


def main(argv: list[str]) -> None:
    wanted = json.loads(os.environ["EASEL_DOWNLOAD"])
    folder = Path(wanted.pop("folder"))
    if "--wait" in argv:
        said = False
        while not complete(folder, wanted):
            if not said:
                say(f"waiting until {folder} is complete: see the release's download Job")
            said = True
            time.sleep(LOOK_S)
    else:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_name(f".{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not complete(folder, wanted):
                download(folder, wanted)
    say(f"{folder}: {wanted['repository']} at {wanted['revision']}")


def guarded(argv: list[str]) -> None:
    """`main`, with a sentence for a volume that cannot be used."""
    try:
        main(argv)
    except OSError as error:
        folder = Path(json.loads(os.environ["EASEL_DOWNLOAD"])["folder"]).parent
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise SystemExit(
                f"{error}: user {os.getuid()} may not write to {folder}. With kind: hostPath, make the folder on each "
                f"node: install -d -o {os.getuid()} -g {os.getgid()} FOLDER"
            ) from None
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SystemExit(f"{error}: {folder} is full; what is there is gone on with when it is larger") from None
        raise


if __name__ == "__main__":
    guarded(sys.argv[1:])

"""Fetches a checkpoint from a hub: what there is, whether there is room, large files first, and everything checked.

In the library's own cache by default, so that what other tools fetched counts and they find what Easel did; or in a
folder of one's own. Owns: the order of things, and a message for each way in which it can end. Refuses to know: what
the files mean.
"""

from __future__ import annotations

import errno
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from easel.errors import ConfigurationError
from easel.hub.reference import DEFAULT_REVISION, FILES, HubReference, cached_folder, library
from easel.hub.resumed import Interrupted, Progress, fetch_file, git_sha1_of, part_of, sha256_of, silent_bar, size_of

AT_ONCE = 4
"""Large files fetched side by side."""
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a repository, as the hub describes it."""

    name: str
    size: int
    sha256: str | None
    """Of large files. None: git's own checksum is all there is."""
    git_sha1: str | None


@dataclass(frozen=True, slots=True)
class Fetched:
    """What was fetched, and where it lies."""

    folder: Path
    reference: HubReference
    """With the commit, where it is known: what it names stays the same."""


def fetch(reference: HubReference, to: Path | None, say: Callable[[str], None], recheck: bool = False) -> Fetched:
    """Have the checkpoint on this machine, in `to` or in the cache. Fetches what is missing and no more.

    `recheck`: the checksums of files that were there before too. Raises `ConfigurationError` that says what is wrong
    and what to do about it.
    """
    hub = library()
    if hub.constants.is_offline_mode():
        return _offline(reference, to)
    if to is None and not recheck and _COMMIT.fullmatch(reference.revision or ""):
        try:  # a commit does not change: what is here is right, and nobody has to be asked
            return Fetched(cached_folder(reference), reference)
        except ConfigurationError:
            pass
    try:
        with explained(reference):
            commit, files = _listed(reference)
    except _Unreachable as error:
        if to is None:
            try:
                folder = cached_folder(reference)
            except ConfigurationError:
                raise error from None
            say(f"{error.message}. Going on with what was fetched earlier: {folder.name}")
            return Fetched(folder, HubReference(reference.repository, folder.name))
        raise
    with explained(reference):
        fetched = _fetch_large(reference, commit, files, to, say)
        folder = Path(
            hub.snapshot_download(
                reference.repository,
                # The cache learns what a branch is by its name; a folder of one's own only has to be of one commit.
                revision=commit if to is not None else reference.revision or DEFAULT_REVISION,
                allow_patterns=list(FILES),
                local_dir=to,
                tqdm_class=silent_bar(),
            )
        )
    if to is None and folder.name != commit:
        raise ConfigurationError(f"{reference} changed while it was fetched: run the command again", "checkpoint")
    _check(folder, [file for file in files if file.name not in fetched], recheck)
    return Fetched(folder, HubReference(reference.repository, commit))


def _offline(reference: HubReference, to: Path | None) -> Fetched:
    if to is not None:
        raise ConfigurationError("HF_HUB_OFFLINE is set: nothing is fetched", "checkpoint")
    try:
        folder = cached_folder(reference)
    except ConfigurationError as error:
        raise ConfigurationError(f"HF_HUB_OFFLINE is set, and {error.message}", "checkpoint") from None
    return Fetched(folder, HubReference(reference.repository, folder.name))


def _listed(reference: HubReference) -> tuple[str, list[HubFile]]:
    """The commit, and what of it a checkpoint is."""
    hub = library()
    info = hub.HfApi().model_info(
        reference.repository, revision=reference.revision or DEFAULT_REVISION, files_metadata=True
    )
    files = [
        HubFile(file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else None, file.blob_id)
        for file in info.siblings or []
        if any(fnmatch(file.rfilename, pattern) for pattern in FILES)
    ]
    names = {file.name for file in files}
    if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
        raise ConfigurationError(
            f"{reference} is no checkpoint that Easel can read: it has no config.json or no safetensors", "checkpoint"
        )
    return str(info.sha), files


def _fetch_large(
    reference: HubReference, commit: str, files: list[HubFile], to: Path | None, say: Callable[[str], None]
) -> set[str]:
    """Fetch the files that have a sha256 and are not here; returns their names."""
    hub = library()
    root = to
    if root is None:
        name = hub.file_download.repo_folder_name(repo_id=reference.repository, repo_type="model")
        root = Path(hub.constants.HF_HUB_CACHE).expanduser() / name / "blobs"

    def place(file: HubFile) -> Path:
        return root / (file.name if to is not None else str(file.sha256))

    large = [file for file in files if file.sha256 is not None]
    missing = [file for file in large if not _is_there(place(file), file, trusted=to is None)]
    total = sum(file.size for file in missing)
    say(
        f"{reference} at {commit[:12]}: {size_of(sum(file.size for file in files))} in {len(files)} files, "
        f"{size_of(total)} of large ones to fetch to {root if to is not None else hub.constants.HF_HUB_CACHE}"
    )
    begun = {file.name: part_of(place(file)).stat().st_size for file in missing if part_of(place(file)).exists()}
    _ensure_room(root, total - sum(begun.values()))
    _ensure_taken(reference, commit, [file for file in missing if not begun.get(file.name)], to)
    progress = Progress(total, say)
    headers = hub.utils.build_hf_headers()

    def one(file: HubFile) -> None:
        url = hub.hf_hub_url(reference.repository, file.name, revision=commit)
        fetch_file(url, headers, place(file), file.size, str(file.sha256), progress)

    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="easel-fetch") as pool:
        futures = [pool.submit(one, file) for file in missing]
        try:
            wait(futures, return_when="FIRST_EXCEPTION")
        finally:
            progress.stopped = True  # after Ctrl-C or an error the others are not waited for
            pool.shutdown(cancel_futures=True)
    errors = [error for future in futures if not future.cancelled() and (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, Interrupted)):
        raise error
    return {file.name for file in missing}


def _is_there(path: Path, file: HubFile, trusted: bool) -> bool:
    """`trusted`: the name is the checksum, and only what was checked bears it."""
    if not path.is_file() or path.stat().st_size != file.size:
        path.unlink(missing_ok=True)
        return False
    if trusted or sha256_of(path) == file.sha256:
        return True
    path.unlink()
    return False


def _ensure_room(folder: Path, needed: int) -> None:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise ConfigurationError(
            f"{folder}: {size_of(needed)} are to come and {size_of(free)} are free; make room, or set HF_HOME "
            "or --to to another disk",
            "checkpoint",
        )


def _ensure_taken(reference: HubReference, commit: str, files: list[HubFile], to: Path | None) -> None:
    """The library's transfer begins none of 50 GB. Its command has another, whose result counts here."""
    most = library().constants.MAX_HTTP_DOWNLOAD_SIZE
    for file in files:
        if file.size > most:
            command = ["hf", "download", reference.repository, file.name, "--revision", commit]
            command += [] if to is None else ["--local-dir", str(to)]
            raise ConfigurationError(
                f"{file.name}: {size_of(file.size)}, and the library takes no file above {size_of(most)} in one piece; "
                f"fetch it with `{shlex.join(command)}`, which needs the package hf_xet, and run this again",
                "checkpoint",
            )


def _check(folder: Path, files: list[HubFile], large: bool) -> None:
    """Compare checksums. What is wrong is removed, so that the next attempt fetches it again."""

    def right(file: HubFile) -> bool:
        path = folder / file.name
        if file.sha256 is not None:
            return not large or sha256_of(path) == file.sha256
        return file.git_sha1 is None or git_sha1_of(path) == file.git_sha1

    with ThreadPoolExecutor(AT_ONCE) as pool:
        wrong = [file.name for file, is_right in zip(files, pool.map(right, files), strict=True) if not is_right]
    for name in wrong:
        (folder / name).resolve().unlink()
        (folder / name).unlink(missing_ok=True)
    if wrong:
        raise ConfigurationError(
            f"{', '.join(wrong)}: not what the hub keeps, by checksum. Removed; run the command again", "checkpoint"
        )


class _Unreachable(ConfigurationError):
    """The hub does not answer: what is in the cache may do."""


@contextmanager
def explained(reference: HubReference) -> Iterator[None]:
    """Turns what the library raises into one message that says what to do."""
    hub = library()
    from httpx2 import HTTPError

    where = hub.constants.ENDPOINT
    known = hub.get_token() is not None
    token = "the token in HF_TOKEN may not see it" if known else "set HF_TOKEN to a token of an account that may see it"
    try:
        yield
    except hub.errors.GatedRepoError:
        raise ConfigurationError(
            f"{reference} is gated: ask for access on its page, {where}/{reference.repository}; then "
            + ("the account of the token in HF_TOKEN has to be the one that got it" if known else token),
            "checkpoint",
        ) from None
    except hub.errors.RevisionNotFoundError:
        raise ConfigurationError(
            f"{reference.repository} has no revision {reference.revision or DEFAULT_REVISION}", "checkpoint"
        ) from None
    except hub.errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 404):  # hubs tell those who may not see a model that there is none
            raise ConfigurationError(
                f"{reference} is neither a folder here nor a model on {where}; if it is a private one, {token}",
                "checkpoint",
            ) from None
        why = f"{where} answered {status} when asked for {reference}"
        if status >= 500:
            raise _Unreachable(why, "checkpoint") from None
        raise ConfigurationError(f"{why}: {token if status == 403 else error}", "checkpoint") from None
    except (HTTPError, hub.errors.LocalEntryNotFoundError) as error:
        raise _Unreachable(f"{where} cannot be reached ({type(error).__name__}: {error})", "checkpoint") from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise ConfigurationError(f"{reference}: the disk is full; what has come is kept", "checkpoint") from None
        raise ConfigurationError(f"{reference}: {error}", "checkpoint") from None

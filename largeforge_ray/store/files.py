"""What the store asks of a place that holds files, and what every such place shares.

``local.py`` and ``remote.py`` are the two kinds of place. Work in progress lies in ``.staging/`` under
names that say which process of which host owns it, so what a killed process leaves behind can be told
from what a living one still writes.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from largeforge_ray.errors import StoreError
from largeforge_ray.store.artifact import Artifact, is_safe

STAGING = ".staging"

_log = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FIXES = {
    **dict.fromkeys(
        _FULL, ("the disk, quota or file size limit is reached", "free space or raise the limit")
    ),
    errno.EROFS: ("the file system is read-only", "mount it writable or choose another store"),
    errno.EACCES: ("this user may not do that", "grant the permission or choose another store"),
    errno.EPERM: ("this user may not do that", "grant the permission or choose another store"),
    errno.ENOTDIR: ("a file lies where a folder must be", "move that file or choose another store"),
    errno.ENOENT: ("there is nothing at this path", "check the path"),
    errno.EXDEV: ("the store spans two file systems", "keep the whole store on one"),
}


class Files(Protocol):
    """A place that holds a store. Paths are relative with '/'; all methods raise StoreError."""

    url: str

    def at(self, rel: str) -> str:
        """The full path or URL, for messages."""

    def read(self, rel: str) -> bytes | None:
        """A file's bytes, None if there is no such file."""

    def write(self, rel: str, data: bytes) -> None:
        """Create or replace a file; a reader sees the old bytes or the new ones."""

    def exists(self, rel: str) -> bool: ...

    def list(self, rel: str) -> list[str]:
        """Sorted names of what lies directly in a folder, none if there is no such folder."""

    def sizes(self, artifact: Artifact) -> dict[str, int]:
        """Path -> bytes, for those files of the artifact that are there."""

    def remove(self, rel: str) -> None:
        """Remove a file or a whole folder, if it is there."""

    def scratch(self) -> Path:
        """The local folder for work in progress; publishing from it costs as little as it can."""

    def prepare(self, folder: Path) -> Path:
        """The folder whose files ``place`` will take: itself, or a copy of it in ``scratch``."""

    def place(self, folder: Path, artifact: Artifact) -> bool:
        """Publish a prepared folder, its record last. False if another publisher was first."""

    def fetch(self, artifact: Artifact) -> Path:
        """A local folder with the artifact's files, every SHA-256 compared with the record."""

    def sweep(self) -> None:
        """Check that the place can be written, and remove what dead processes of this host left."""


def explain(action: str, path: str | Path, error: BaseException) -> StoreError:
    """The StoreError for an operating system's or object store's error: path, rule and fix."""
    number = getattr(error, "errno", None)
    if number is None and isinstance(error, PermissionError):
        number = errno.EACCES  # object stores raise the class without a number
    if number is None and isinstance(error, FileNotFoundError):
        number = errno.ENOENT
    rule, fix = _FIXES.get(
        number or 0, ("the store did not allow it", "check the store's address and access")
    )
    return StoreError(f"cannot {action} {path}: {rule} ({error}); {fix}")


@contextmanager
def explained(action: str, path: str | Path) -> Iterator[None]:
    """Turn any error of a file system inside the block into a StoreError that names the path."""
    try:
        yield
    except StoreError:
        raise
    except filesystem_errors() as error:
        raise explain(action, path, error) from error


def filesystem_errors() -> tuple[type[Exception], ...]:
    """OSError, and botocore's own tree where it is in use: it reports missing credentials through it."""
    botocore = sys.modules.get("botocore.exceptions")
    return (OSError, botocore.BotoCoreError) if botocore else (OSError,)


def is_full(error: OSError) -> bool:
    """Whether the error says that nothing more can be written."""
    return error.errno in _FULL


def checked(rel: str) -> str:
    """A path inside the store.

    Raises:
        StoreError: it is absolute, empty, or has '..' in it.
    """
    if not is_safe(rel):
        raise StoreError(
            f"store path {rel!r} must be relative, without '..' and empty parts; "
            "pass one such as 'runs/a/plan.json'"
        )
    return rel


def files_in(folder: Path) -> list[str]:
    """Sorted relative paths of every file in a folder, links followed.

    Raises:
        StoreError: it is no folder, or holds a loop of links, a dangling link or a special file.
    """
    if not folder.is_dir():
        raise StoreError(f"cannot publish {folder}: it is not a folder; pass the folder that holds the files")
    found: list[str] = []
    _collect(folder, "", (os.path.realpath(folder),), found)
    return sorted(found)


def _collect(folder: Path, prefix: str, above: tuple[str, ...], found: list[str]) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                real = os.path.realpath(entry.path)
                if real in above:
                    raise StoreError(
                        f"cannot publish {entry.path}: the link leads to a folder above it; remove it"
                    )
                _collect(Path(entry.path), f"{prefix}{entry.name}/", (*above, real), found)
            elif entry.is_file():
                found.append(prefix + entry.name)
            else:
                raise StoreError(
                    f"cannot publish {entry.path}: only files can be kept, this is a dangling link "
                    "or a special file; remove it"
                )


# Who owns what lies in .staging ------------------------------------------------------------------


def owned_name() -> str:
    """A fresh name for work in progress, naming this process and host."""
    return f"{secrets.token_hex(6)}.{os.getpid()}.{_host()}"


def is_abandoned(name: str) -> bool:
    """Whether the owner was a process of this host that is gone. When in doubt it is not."""
    _, _, owner = name.partition(".")
    pid, _, host = owner.partition(".")
    if host != _host() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


def _host() -> str:
    # Containers on one machine may share a host name and still number their processes apart, so
    # without the namespace one container would take another's living process for a dead one.
    try:
        namespace = str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        namespace = "0"
    return f"{socket.gethostname().replace('/', '_')}-{namespace}"


def discard(path: Path) -> None:
    """Remove a folder or file of ours; what cannot be removed is logged and left for the next sweep."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except FileNotFoundError:
        return  # another sweep is removing it
    except OSError as error:
        _log.warning("cannot remove temporary %s (%s); a later open_store tries again", path, error)


def sweep_folder(staging: Path) -> None:
    """Remove from a local staging folder what dead processes of this host left."""
    for entry in staging.iterdir():
        if is_abandoned(entry.name):
            _log.info("removing %s, left by a process that is gone", entry)
            discard(entry)

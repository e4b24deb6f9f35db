"""A store behind any URL that fsspec opens. Publishing is one conditional write of the record.

Object stores cannot rename, so each publisher uploads into a folder of its own inside the artifact's
prefix and then writes ``artifact.json``, which names that folder, on the condition that there is none
yet. A lease in ``.staging/`` names the folder until then, so that it can be swept if its owner dies.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from largeforge_ray.errors import CorruptArtifactError, StoreError
from largeforge_ray.store.artifact import RECORD, Artifact, corrupt, is_safe, parse_record
from largeforge_ray.store.files import (
    STAGING,
    discard,
    explain,
    explained,
    filesystem_errors,
    is_abandoned,
    owned_name,
    sweep_folder,
)
from largeforge_ray.store.keys import SHORT
from largeforge_ray.store.local import verify


class RemoteFiles:
    """Files below a URL such as ``s3://bucket/forge``; fetched artifacts lie in a private cache folder."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def at(self, rel: str) -> str:
        return f"{self.url}/{rel}"

    def read(self, rel: str) -> bytes | None:
        fs, path = self._open(rel)
        with explained("read", self.at(rel)):
            try:
                return bytes(fs.cat_file(path))
            except FileNotFoundError:
                return None

    def write(self, rel: str, data: bytes) -> None:
        fs, path = self._open(rel)
        with explained("write", self.at(rel)):
            fs.pipe_file(path, data)

    def exists(self, rel: str) -> bool:
        fs, path = self._open(rel)
        with explained("look at", self.at(rel)):
            return bool(fs.exists(path))

    def list(self, rel: str) -> list[str]:
        fs, path = self._open(rel)
        with explained("list", self.at(rel)):
            try:
                found = [str(name).rstrip("/") for name in fs.ls(path, detail=False)]
            except (FileNotFoundError, NotADirectoryError):
                return []
        return sorted({name.rpartition("/")[2] for name in found if name != path})

    def sizes(self, artifact: Artifact) -> dict[str, int]:
        fs, path = self._open(artifact.data)
        with explained("list", self.at(artifact.data)):
            found = fs.find(path, detail=True)
        return {str(name)[len(path) + 1 :]: int(info["size"]) for name, info in found.items()}

    def remove(self, rel: str) -> None:
        fs, path = self._open(rel)
        with explained("remove", self.at(rel)):
            found = fs.find(path, withdirs=True, detail=True)
            files = {name for name, info in found.items() if info["type"] != "directory"}
            # The record goes first: an artifact that is half removed must not be found.
            for name in sorted(files, key=lambda name: not name.endswith(f"/{RECORD}")):
                # One by one and never by pattern: fsspec's rm reads '*' and '[' in a name as wildcards.
                with suppress(FileNotFoundError):
                    fs.rm_file(name)
            for name in sorted({path, *found} - files, reverse=True):
                with suppress(OSError):  # most object stores have no folders, so there is none to remove
                    fs.rmdir(name)

    def scratch(self) -> Path:
        return _private(cache_root() / STAGING)

    def prepare(self, folder: Path) -> Path:
        return folder

    def place(self, folder: Path, artifact: Artifact) -> bool:
        name = owned_name()
        artifact = dataclasses.replace(artifact, folder=f"data-{name}")
        lease = f"{STAGING}/{name}"
        self.write(lease, artifact.data.encode())
        try:
            self._upload(folder, artifact)
        except BaseException:
            self.remove(artifact.data)
            self.remove(lease)
            raise
        # If this raises, nobody knows whether the record was written: the lease stays, and a sweep asks.
        placed = self._commit(artifact)
        if not placed:
            self.remove(artifact.data)
        self.remove(lease)
        return placed

    def _upload(self, folder: Path, artifact: Artifact) -> None:
        fs, target = self._open(artifact.data)
        paths = [file.path for file in artifact.files]
        if paths:
            with explained("upload to", self.at(artifact.data)):
                fs.put([str(folder / path) for path in paths], [f"{target}/{path}" for path in paths])

    def _commit(self, artifact: Artifact) -> bool:
        rel = f"{artifact.location}/{RECORD}"
        fs, path = self._open(rel)
        refused: BaseException | None = None
        try:
            fs.pipe_file(path, artifact.to_json(), mode="create")
        except filesystem_errors() as error:
            refused = error
        # Read back in every case: a write whose answer was lost and that is then repeated is refused
        # although it was the first, and some servers ignore the condition.
        record = self.read(rel)
        if record is None:
            raise explain("write", self.at(rel), refused or FileNotFoundError(path)) from refused
        return parse_record(record, self.at(rel)).folder == artifact.folder

    def fetch(self, artifact: Artifact) -> Path:
        where = self.at(artifact.data)
        digest = hashlib.sha256(where.encode()).hexdigest()[:SHORT]
        target = _private(cache_root()) / f"{artifact.kind}-{artifact.key[:SHORT]}-{digest}"
        if target.exists():
            try:
                verify(target, artifact, str(target))
                return target
            except CorruptArtifactError:
                discard(target)  # only a copy; the store's own bytes are compared below
        folder = self.scratch() / owned_name()
        try:
            self._download(artifact, folder)
            verify(folder, artifact, where)
            with explained("keep", target):
                try:
                    folder.rename(target)
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another process was first
                        raise
        finally:
            discard(folder)
        return target

    def _download(self, artifact: Artifact, folder: Path) -> None:
        fs, source = self._open(artifact.data)
        where = self.at(artifact.data)
        with explained(f"download {where} to", folder):
            folder.mkdir(mode=0o700)
            for file in artifact.files:
                (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
            paths = [file.path for file in artifact.files]
            try:
                if paths:
                    fs.get([f"{source}/{path}" for path in paths], [str(folder / path) for path in paths])
            except FileNotFoundError as error:
                raise corrupt(where, "every file that the record names", f"one missing ({error})") from error

    def sweep(self) -> None:
        probe = f"{STAGING}/{owned_name()}"
        self.write(probe, b"")
        self.remove(probe)
        sweep_folder(self.scratch())
        for name in self.list(STAGING):
            if is_abandoned(name):
                self._sweep_lease(f"{STAGING}/{name}")

    def _sweep_lease(self, lease: str) -> None:
        data = (self.read(lease) or b"").decode()
        if is_safe(data) and data.startswith("artifacts/"):
            location, _, folder = data.rpartition("/")
            if folder.encode() not in (self.read(f"{location}/{RECORD}") or b""):
                self.remove(data)
        self.remove(lease)

    def _open(self, rel: str) -> tuple[Any, str]:
        """The file system and the path on it; asked for each time because a fork must not share one."""
        import fsspec

        try:
            # Listings are not cached: another process's artifact must be found at once.
            fs, root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except ValueError as error:
            raise StoreError(
                f"store {self.url!r} cannot be opened: {error}; use a folder or a URL such as s3://bucket/forge"
            ) from error
        except ImportError as error:
            raise StoreError(f"store {self.url!r} needs a package: {error}; install it with pip") from error
        return fs, f"{root.rstrip('/')}/{rel}"


def cache_root() -> Path:
    """Where fetched artifacts lie: $LARGEFORGE_CACHE, or ``largeforge`` in the user's cache folder."""
    if chosen := os.environ.get("LARGEFORGE_CACHE"):
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "largeforge"


def _private(folder: Path) -> Path:
    with explained("create cache folder", folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            raise StoreError(
                f"cache folder {folder} belongs to another user, who could change what is fetched; "
                "set LARGEFORGE_CACHE to a folder of your own"
            )
        folder.chmod(0o700)
    return folder

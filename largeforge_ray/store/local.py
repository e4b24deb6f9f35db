"""A store in a local (or mounted) folder. Publishing is one rename."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path

from largeforge_ray.store.artifact import RECORD, Artifact, corrupt
from largeforge_ray.store.files import (
    STAGING,
    discard,
    explained,
    files_in,
    owned_name,
    sweep_folder,
)
from largeforge_ray.store.keys import sha256_of

_log = logging.getLogger(__name__)


class LocalFiles:
    """Files below ``root``. Everything is written in ``root/.staging`` and renamed into place."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root)

    def at(self, rel: str) -> str:
        return str(self.root / rel)

    def read(self, rel: str) -> bytes | None:
        path = self.root / rel
        with explained("read", path):
            try:
                return path.read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def write(self, rel: str, data: bytes) -> None:
        path = self.root / rel
        temporary = self._staging() / owned_name()
        with explained("write", path):
            try:
                write_synced(temporary, data)
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary.replace(path)
                sync_folder(path.parent)
            finally:
                discard(temporary)

    def exists(self, rel: str) -> bool:
        with explained("look at", self.root / rel):
            return (self.root / rel).exists()

    def list(self, rel: str) -> list[str]:
        with explained("list", self.root / rel):
            try:
                return sorted(os.listdir(self.root / rel))
            except (FileNotFoundError, NotADirectoryError):
                return []

    def sizes(self, artifact: Artifact) -> dict[str, int]:
        folder = self.root / artifact.data
        found = {}
        with explained("look at", folder):
            for file in artifact.files:
                with suppress(FileNotFoundError, NotADirectoryError):
                    found[file.path] = (folder / file.path).stat().st_size
        return found

    def remove(self, rel: str) -> None:
        # Renamed away first: a reader, or a kill in the middle, never sees half of a folder.
        temporary = self._staging() / owned_name()
        with explained("remove", self.root / rel):
            try:
                (self.root / rel).rename(temporary)
            except FileNotFoundError:
                return
        discard(temporary)

    def scratch(self) -> Path:
        return self._staging()

    def prepare(self, folder: Path) -> Path:
        if folder.parent == self.root / STAGING and not _has_links(folder):
            return folder
        copy = self._staging() / owned_name()
        with explained("copy to", copy):
            try:
                copy.mkdir()
                for path in files_in(folder):
                    target = copy / path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(folder / path, target)
            except BaseException:
                discard(copy)
                raise
        return copy

    def place(self, folder: Path, artifact: Artifact) -> bool:
        target = self.root / artifact.location
        with explained("publish", target):
            for path in files_in(folder):
                sync_file(folder / path)
            write_synced(folder / RECORD, artifact.to_json())
            for inner, _, _ in os.walk(folder):
                sync_folder(Path(inner))
            target.parent.mkdir(parents=True, exist_ok=True)
            if not self._rename(folder, target):
                return False
            sync_folder(target.parent)
            return True

    def _rename(self, folder: Path, target: Path) -> bool:
        while True:
            try:
                folder.rename(target)
                return True
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            if (target / RECORD).exists():
                return False
            _log.warning("%s has no %s, so it is no artifact; replacing it", target, RECORD)
            self.remove(str(target.relative_to(self.root)))

    def fetch(self, artifact: Artifact) -> Path:
        folder = self.root / artifact.data
        verify(folder, artifact, str(folder))
        return folder

    def sweep(self) -> None:
        with explained("open store", self.root):
            staging = self._staging()
            probe = staging / owned_name()
            probe.touch()
            probe.unlink()
            sweep_folder(staging)

    def _staging(self) -> Path:
        staging = self.root / STAGING
        with explained("create", staging):
            staging.mkdir(parents=True, exist_ok=True)
        return staging


def verify(folder: Path, artifact: Artifact, where: str) -> None:
    """Compare every file's SHA-256 with the record; ``where`` names the artifact in messages.

    Raises:
        CorruptArtifactError: a file is missing or has other bytes.
    """
    for file in artifact.files:
        path = folder / file.path
        with explained("read", path):
            try:
                found = sha256_of(path)
            except FileNotFoundError as error:
                raise corrupt(f"{where}/{file.path}", f"{file.bytes} bytes", "no file") from error
        if found != file.sha256:
            raise corrupt(f"{where}/{file.path}", f"sha256 {file.sha256}", f"sha256 {found}")


def write_synced(path: Path, data: bytes) -> None:
    """Write a new file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_file(path: Path) -> None:
    """Wait until a file's bytes are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(path: Path) -> None:
    """Wait until a folder's names are on the disk; otherwise a power cut could undo the rename."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems cannot sync a folder and keep its names safe by themselves.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _has_links(folder: Path) -> bool:
    return folder.is_symlink() or any(
        (Path(inner) / name).is_symlink()
        for inner, folders, names in os.walk(folder)
        for name in (*folders, *names)
    )

"""The store: artifacts by key, and small files beside them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from largeforge_ray.errors import StoreError
from largeforge_ray.store.artifact import (
    RECORD,
    Artifact,
    ArtifactFile,
    corrupt,
    parse_record,
    plain,
    producer,
)
from largeforge_ray.store.files import (
    Files,
    checked,
    discard,
    explain,
    explained,
    files_in,
    is_full,
    owned_name,
)
from largeforge_ray.store.keys import SHORT, artifact_folder, canonical_json, check_kind_and_key, sha256_of
from largeforge_ray.store.local import LocalFiles
from largeforge_ray.store.remote import RemoteFiles

_PREFIX = re.compile(r"[0-9a-f]{4,64}")

_verified: dict[tuple[str, str, str], Path] = {}
"""What this process has already compared with its record: (URL, data folder, created) -> local folder."""


def open_store(url: str | Path) -> Store:
    """Open a local folder or any fsspec URL, creating the folder if need be.

    Checks that it can be written and removes what killed processes of this host left in it.

    Raises:
        StoreError: it cannot be read or written.
    """
    store = Store(url)
    store.sweep()
    return store


class Store:
    """Artifacts, runs, journals and the registry below one folder or URL.

    It holds an address and no connection, so it can be pickled and used in any process. Paths that its
    methods take are relative to it, with '/'. Every method raises StoreError when the place refuses.
    """

    def __init__(self, url: str | Path) -> None:
        text = str(url)
        if "://" in text and not text.startswith("file://"):
            self._files: Files = RemoteFiles(text)
            self.local_root: Path | None = None
        else:
            self.local_root = Path(text.removeprefix("file://")).expanduser().absolute()
            self._files = LocalFiles(self.local_root)

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    @property
    def url(self) -> str:
        """The absolute folder or the URL."""
        return self._files.url

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine."""
        return self.local_root is not None

    # Artifacts ---------------------------------------------------------------------------------------

    def find(self, kind: str, key: str) -> Artifact | None:
        """The artifact, or None if there is none.

        Raises:
            CorruptArtifactError: its record is unreadable, or a file is missing or of the wrong size.
        """
        check_kind_and_key(kind, key)
        artifact = self._load(artifact_folder(kind, key))
        if artifact is None:
            return None
        where = self._files.at(artifact_folder(kind, key))
        if (artifact.kind, artifact.key) != (kind, key):
            raise corrupt(where, f"{kind} {key}", f"{artifact.kind} {artifact.key}")
        sizes = self._files.sizes(artifact)
        for file in artifact.files:
            size = sizes.get(file.path)
            if size != file.bytes:
                found = "no file" if size is None else f"{size} bytes"
                raise corrupt(self._files.at(f"{artifact.data}/{file.path}"), f"{file.bytes} bytes", found)
        return artifact

    def get(self, key_prefix: str) -> Artifact:
        """The artifact of any kind whose key starts so (4 hex digits or more), else the newest so named.

        Raises:
            StoreError: nothing fits, or several keys start so; the message lists the candidates.
            CorruptArtifactError: as for ``find``.
        """
        fitting = self._with_prefix(key_prefix) if _PREFIX.fullmatch(key_prefix) else []
        if len(fitting) > 1:
            raise StoreError(f"{key_prefix!r} fits several artifacts; add digits: {_candidates(fitting)}")
        if not fitting:
            artifacts = sorted(self.artifacts(), key=lambda artifact: artifact.created)
            fitting = [artifact for artifact in artifacts if artifact.name == key_prefix][-1:]
            if not fitting:
                raise StoreError(
                    f"no artifact of {self.url} has the name or a key that starts with {key_prefix!r}; "
                    f"choose one of: {_candidates(artifacts[-10:]) or 'none yet, run a manifest first'}"
                )
        artifact = self.find(fitting[0].kind, fitting[0].key)
        if artifact is None:
            raise StoreError(f"artifact {fitting[0].key} was removed while it was looked up; run again")
        return artifact

    def artifacts(self) -> Iterator[Artifact]:
        """Every artifact, by kind and key; records only, files are not looked at.

        Raises:
            CorruptArtifactError: a record is unreadable.
        """
        for kind in self._files.list("artifacts"):
            for short in self._files.list(f"artifacts/{kind}"):
                artifact = self._load(f"artifacts/{kind}/{short}")
                if artifact is not None:
                    yield artifact

    @contextmanager
    def staging(self, kind: str, key: str) -> Iterator[Path]:
        """A local folder to prepare an artifact in; removed on any exit, unless it was published.

        In a local store ``publish`` renames it, so nothing is copied.

        Raises:
            StoreError: there is no room left while it is filled.
        """
        check_kind_and_key(kind, key)
        folder = self._files.scratch() / owned_name()
        with explained("create", folder):
            folder.mkdir()
        try:
            yield folder
        except StoreError:
            raise
        except OSError as error:
            if is_full(error):
                raise explain(f"prepare {kind} {key[:SHORT]} in", folder, error) from error
            raise
        finally:
            discard(folder)

    def publish(
        self,
        kind: str,
        key: str,
        name: str,
        parents: Sequence[str],
        config: Mapping[str, Any],
        folder: Path,
        metrics: Mapping[str, Any] | None = None,
        cost: Mapping[str, Any] | None = None,
    ) -> Artifact:
        """Make a folder's files an artifact, completely or not at all.

        A folder from ``staging`` is used up; any other is copied, links followed. If the key is already
        published, by anyone, that artifact is returned and this folder is not used.

        Raises:
            StoreError: the folder or the record cannot be kept, or the place is full or refuses.
            CorruptArtifactError: the key is already published and damaged.
        """
        for parent in parents:
            check_kind_and_key(kind, parent)  # otherwise the lineage would end there
        there = self.find(kind, key)
        if there is not None:
            return there
        record = Artifact(
            kind=kind,
            key=key,
            name=name,
            parents=tuple(parents),
            config=_as_json(config),
            metrics=plain(metrics or {}, "metrics"),
            cost=plain(cost or {}, "cost"),
            created=datetime.now(UTC).isoformat(timespec="microseconds"),
            producer=producer(),
        )
        source = self._files.prepare(Path(folder))
        try:
            self._files.place(source, replace(record, files=_describe(source)))
        finally:
            if source != Path(folder):
                discard(source)
        placed = self.find(kind, key)
        if placed is None:
            raise StoreError(
                f"{self._files.at(record.location)} was removed while it was published; run again"
            )
        return placed

    def fetch(self, artifact: Artifact) -> Path:
        """A local folder with the artifact's files; do not write into it.

        Every SHA-256 is compared with the record, once in a process. A remote artifact is downloaded
        into a cache folder that only this user can read ($LARGEFORGE_CACHE, or the user's cache).

        Raises:
            CorruptArtifactError: a file is missing or has other bytes than its record says.
        """
        mark = (self.url, artifact.data, artifact.created)
        folder = _verified.get(mark)
        if folder is None or not folder.is_dir():
            folder = _verified[mark] = self._files.fetch(artifact)
        return folder

    def address(self, artifact: Artifact) -> str:
        """Where its files are, for ``local_folder`` on any machine: the verified folder of a local store, or
        the URL of its data."""
        return str(self.fetch(artifact)) if self.is_local else self._files.at(artifact.data)

    def at(self, kind: str, short: str) -> Artifact:
        """The artifact in the folder that is named by the first digits of its key."""
        artifact = self._load(f"artifacts/{kind}/{short}")
        if artifact is None:
            raise StoreError(f"{self.url} holds no artifact {kind}/{short}; run the manifest again")
        return artifact

    def _load(self, location: str) -> Artifact | None:
        record = self._files.read(f"{location}/{RECORD}")
        return None if record is None else parse_record(record, self._files.at(f"{location}/{RECORD}"))

    def _with_prefix(self, prefix: str) -> list[Artifact]:
        found = []
        for kind in self._files.list("artifacts"):
            for short in self._files.list(f"artifacts/{kind}"):
                if short.startswith(prefix[:SHORT]):
                    artifact = self._load(f"artifacts/{kind}/{short}")
                    if artifact is not None and artifact.key.startswith(prefix):
                        found.append(artifact)
        return found

    # Small files -------------------------------------------------------------------------------------

    def write_bytes(self, rel: str, data: bytes) -> None:
        """Create or replace a small file; a reader sees the old bytes or the new, never a part."""
        self._files.write(checked(rel), data)

    def read_bytes(self, rel: str) -> bytes:
        """A small file's bytes.

        Raises:
            StoreError: there is no such file.
        """
        data = self._files.read(checked(rel))
        if data is None:
            raise StoreError(f"no file {self._files.at(rel)}; check the path, or run what writes it")
        return data

    def exists(self, rel: str) -> bool:
        """Whether there is such a file or folder."""
        return self._files.exists(checked(rel))

    def list(self, rel: str) -> list[str]:
        """Sorted paths, as the other methods take them, of what lies directly in a folder; none if absent."""
        return [f"{rel}/{name}" for name in self._files.list(checked(rel))]

    def remove(self, rel: str) -> None:
        """Remove a file or a whole folder; nothing happens if it is absent."""
        self._files.remove(checked(rel))

    def sweep(self) -> None:
        """Check that the store can be written and remove what killed processes of this host left."""
        self._files.sweep()


def _describe(folder: Path) -> tuple[ArtifactFile, ...]:
    with explained("read", folder):
        paths = files_in(folder)
        if RECORD in paths:
            raise StoreError(
                f"cannot publish {folder / RECORD}: that name is the artifact's own record; rename the file"
            )
        return tuple(
            ArtifactFile(path, (folder / path).stat().st_size, sha256_of(folder / path)) for path in paths
        )


def _as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(canonical_json(config))
    return value


def _candidates(artifacts: Sequence[Artifact]) -> str:
    return ", ".join(f"{artifact.kind} {artifact.key[:SHORT]} ({artifact.name})" for artifact in artifacts)

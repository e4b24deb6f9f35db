"""The lineage of a run's artifacts, with the ancestors that earlier runs made."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from largeforge_ray.errors import StoreError
from largeforge_ray.observe.data import Lineage, Node, StageView

if TYPE_CHECKING:
    from largeforge_ray.store import Artifact, Store

MOST_NODES = 60


def trace_lineage(
    store: Store,
    planned: Sequence[Mapping[str, Any]],
    stages: Sequence[StageView],
    artifacts: Mapping[str, Artifact],
) -> Lineage:
    """The run's artifacts and everything they came from, nearest ancestors first, MOST_NODES at most."""
    nodes: dict[str, Node] = {}
    parents: dict[str, Sequence[str]] = {}
    for stage, view in zip(planned, stages, strict=True):
        state = "cached" if view.state == "cached" else "present" if view.name in artifacts else "absent"
        nodes.setdefault(view.key, Node(view.key, view.name, view.artifact_kind, state, in_run=True))
        parents[view.key] = [str(key) for key in stage.get("parents") or ()]
    waiting = deque(parent for key in list(parents) for parent in parents[key])
    omitted: set[str] = set()
    while waiting:
        key = waiting.popleft()
        if key in nodes:
            continue
        if len(nodes) >= MOST_NODES:
            omitted.add(key)
            continue
        nodes[key], parents[key] = _ancestor(store, key)
        waiting.extend(parents[key])
    edges = [
        (parent, child) for child in nodes for parent in dict.fromkeys(parents[child]) if parent in nodes
    ]
    return Lineage(tuple(nodes.values()), tuple(edges), len(omitted))


def _ancestor(store: Store, key: str) -> tuple[Node, Sequence[str]]:
    try:
        artifact = store.get(key)
    except StoreError:  # gone or damaged: the lineage still shows that there was one
        return Node(key, "not in the store", "unknown", "absent", in_run=False), ()
    return Node(key, artifact.name, artifact.kind, "present", in_run=False), artifact.parents

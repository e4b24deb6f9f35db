"""A cluster through its dashboard's HTTP API: what its nodes have and use, and which actors live there.

Nobody joins the cluster for it. Actors come from Ray's State API. What a node uses is in no public API: it
comes from the request that the dashboard's own page makes, ``/nodes?view=summary``, read in ray 2.60.0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TIMEOUT_S = 5
MOST_ACTORS = 10_000
"""Ray's own limit of one answer."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node that is alive. ``cpu`` and ``gpu`` are the shares of ``cpus`` and ``gpus`` in use, 0..1."""

    name: str
    cpus: int
    cpu: float
    gpus: int
    gpu: float
    memory_used_bytes: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Cluster:
    """Nodes by name, and how many actors of each class live, most first."""

    nodes: tuple[Node, ...] = ()
    actors: tuple[tuple[str, int], ...] = ()


def read_cluster(address: str) -> Cluster:
    """Ask the dashboard at ``address``, a URL that RAY_API_SERVER_ADDRESS, if it is set, has to name too.

    Raises what Ray's clients do: ``OSError``, ``RuntimeError``, ``AuthenticationError``.
    """
    from ray.util.state import StateApiClient, list_actors
    from ray.util.state.exception import RayStateApiException

    reply = StateApiClient(address)._do_request(
        "GET", "/nodes", params={"view": "summary"}, timeout=TIMEOUT_S
    )
    reply.raise_for_status()
    try:
        actors = list_actors(
            address=address,
            filters=[("state", "=", "ALIVE")],
            limit=MOST_ACTORS,
            timeout=TIMEOUT_S,
            raise_on_missing_output=False,
        )
    except RayStateApiException as error:
        raise RuntimeError(str(error)) from error
    return parse_cluster(reply.json()["data"]["summary"], [actor.class_name for actor in actors])


def parse_cluster(summary: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> Cluster:
    """The dashboard's summary of each node, and the class of each actor, as a ``Cluster``."""
    # A node that is dead, or has only just come, has told nothing of itself.
    alive = [each for each in summary if each["raylet"].get("state") == "ALIVE" and "mem" in each]
    nodes = sorted((_node(each) for each in alive), key=lambda node: node.name)
    return Cluster(tuple(nodes), tuple(Counter(classes).most_common()))


def _node(facts: Mapping[str, Any]) -> Node:
    memory, _, _, used = facts["mem"]
    gpus = facts.get("gpus") or []
    busy = [each.get("utilizationGpu") or 0 for each in gpus]
    return Node(
        name=str(facts["hostname"]),
        cpus=int(facts["cpus"][0]),
        cpu=float(facts["cpu"]) / 100,
        gpus=len(gpus),
        gpu=sum(busy) / len(busy) / 100 if busy else 0.0,
        memory_used_bytes=int(used),
        memory_bytes=int(memory),
    )

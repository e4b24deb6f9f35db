"""The run board: where a run's workers write their progress and its driver reads it, and the other way."""

from __future__ import annotations

from typing import Any

from largeforge_ray.models.room import Place


class RunBoard:
    """Progress notes in the order they came; reading takes them off the board. What is pinned stays."""

    def __init__(self) -> None:
        self._notes: list[dict[str, Any]] = []
        self._pinned: dict[str, Any] = {}

    def post(self, note: dict[str, Any]) -> None:
        self._notes.append(note)

    def take(self) -> list[dict[str, Any]]:
        notes, self._notes = self._notes, []
        return notes

    def pin(self, name: str, value: Any) -> None:
        self._pinned[name] = value

    def pinned(self, name: str) -> Any:
        """None if nothing is."""
        return self._pinned.get(name)


def start_board(place: Place | None = None) -> Any:
    """Start the board, which needs no CPU of its own, nor what ``place`` asks for."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # With the driver: a lost node of workers must not take it along.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    name = place.name() if place else None
    return ray.remote(RunBoard).options(name=name, num_cpus=0, scheduling_strategy=here).remote()

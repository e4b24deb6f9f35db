"""The run board: where a run's workers write their progress and its driver reads it."""

from __future__ import annotations

from typing import Any


class RunBoard:
    """Progress notes in the order they came; reading takes them off the board."""

    def __init__(self) -> None:
        self._notes: list[dict[str, Any]] = []

    def post(self, note: dict[str, Any]) -> None:
        self._notes.append(note)

    def take(self) -> list[dict[str, Any]]:
        notes, self._notes = self._notes, []
        return notes


def start_board() -> Any:
    """Start the board, which needs no CPU of its own."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # With the driver: a lost node of workers must not take it along.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(RunBoard).options(num_cpus=0, scheduling_strategy=here).remote()

"""An endpoint's engine as an actor, so that all who ask it share its limits and its cap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from largeforge_ray.config.teaching import Endpoint
from largeforge_ray.models.endpoint import EndpointEngine
from largeforge_ray.types import GenerateRequest, Generation

RESTARTS = 4


class EndpointActor:
    """One endpoint's engine in its own process. Errors of its config are raised by the first call."""

    def __init__(self, config: Endpoint, spent_usd: float) -> None:
        self._engine = EndpointEngine(config, spent_usd)

    async def slots(self) -> int:
        return self._engine.slots

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation]:
        return await self._engine.generate(requests)

    async def stop(self) -> None:
        await self._engine.close()


def start_endpoint(config: Endpoint, spent_usd: float) -> Any:
    """Start the actor and return its handle at once. ``spent_usd`` is what finished rows have cost."""
    import ray

    # A restarted actor knows of nothing it has spent: under a cap the run ends, and the next one
    # counts the finished rows.
    restarts = RESTARTS if config.max_usd is None else 0
    actor = ray.remote(EndpointActor).options(
        num_cpus=0, max_restarts=restarts, max_task_retries=restarts, max_concurrency=1024
    )
    return actor.remote(config, spent_usd)

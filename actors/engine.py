"""The engine as an actor that Ray restarts, so its callers never write retry code."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

from largeforge_ray.models.engine import Engine, EngineDied
from largeforge_ray.types import GenerateRequest, Generation, ScoreRequest, TokenScores

RESTARTS = 4
"""An engine that died five times has a cause that a sixth start will not cure."""


class EngineActor:
    """One engine in its own process. Calls in flight are repeated after a restart."""

    def __init__(self, model_dir: str, max_model_len: int, max_lora_rank: int | None) -> None:
        start = partial(Engine, model_dir, max_model_len=max_model_len, max_lora_rank=max_lora_rank)
        try:
            self._engine = start()
        except RuntimeError:
            # A core that was killed while it started looks like one that cannot start: a second failure
            # tells. Ray restarts no actor whose constructor raises.
            self._engine = start()

    async def start_seconds(self) -> float:
        return self._engine.start_seconds

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation]:
        try:
            return await self._engine.generate(requests)
        except EngineDied:
            # Ray restarts an actor whose process ends, not one that raises.
            os._exit(1)

    async def score(self, requests: Sequence[ScoreRequest]) -> list[TokenScores]:
        try:
            return await self._engine.score(requests)
        except EngineDied:
            os._exit(1)

    async def put_adapter(self, files: dict[str, bytes]) -> str:
        return await self._engine.put_adapter(files)

    async def stop(self) -> None:
        self._engine.shutdown()


def start_engine(model_dir: str, *, max_model_len: int, max_lora_rank: int | None = None) -> Any:
    """Start an engine actor and return its handle at once; the first call waits for the model."""
    import ray

    from largeforge_ray.models.hardware import detect

    actor = ray.remote(EngineActor).options(
        name=None,
        num_cpus=1,
        num_gpus=1 if detect().gpus else 0,
        max_restarts=RESTARTS,
        max_task_retries=RESTARTS,
        max_concurrency=256,
    )
    return actor.remote(model_dir, max_model_len, max_lora_rank)

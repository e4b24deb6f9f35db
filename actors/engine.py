"""The engine as an actor. A core that dies is started again inside it, a lost process by Ray."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from largeforge_ray.models.engine import Engine
from largeforge_ray.models.hardware import engine_slots, give_way, gpus_each
from largeforge_ray.models.room import Place
from largeforge_ray.models.supervised import SupervisedEngine
from largeforge_ray.types import GenerateRequest, Generation, ScoreRequest, TokenScores

RESTARTS = 20
"""Of a process that was killed: what an engine does to itself is counted inside it."""


class EngineActor:
    """One engine in its own process. Calls in flight are repeated after a restart."""

    def __init__(self, model_dir: str, options: dict[str, Any]) -> None:
        give_way()
        handed = Path(tempfile.mkdtemp(prefix="largeforge-adapters-"))
        self._engine = SupervisedEngine(partial(Engine, model_dir, handed=handed, **options))

    async def start_seconds(self) -> float:
        return self._engine.start_seconds

    async def slots(self) -> int:
        return engine_slots()

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation]:
        return await self._engine.generate(requests)

    async def score(self, requests: Sequence[ScoreRequest]) -> list[TokenScores]:
        return await self._engine.score(requests)

    async def put_adapter(self, files: dict[str, bytes]) -> str:
        return await self._engine.put_adapter(files)

    async def stop(self) -> None:
        self._engine.shutdown()


def start_engine(model_dir: str, *, place: Place | None = None, **options: Any) -> Any:
    """Start an engine actor and return its handle at once; the first call waits for the model.

    ``options`` are those of ``Engine``.
    """
    return model_actor(EngineActor, place).remote(model_dir, options)


def model_actor(cls: type, place: Place | None) -> Any:
    """A class as an actor that holds a model, answers many callers at once and is started again by Ray."""
    import ray

    return ray.remote(cls).options(
        **(place.options() if place else {}),
        num_cpus=1,
        num_gpus=gpus_each(),
        max_restarts=RESTARTS,
        max_task_retries=RESTARTS,
        max_concurrency=1024,
    )

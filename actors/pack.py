"""A pack of trials as an actor that Ray restarts; its trials bring their checkpoints along."""

from __future__ import annotations

from typing import Any

from largeforge_ray.models.room import Place
from largeforge_ray.sweep import Pack, PackJob

RESTARTS = 3


def start_pack(job: PackJob, place: Place | None = None) -> Any:
    """Start a pack and return its handle at once; the first call waits for the model."""
    import ray

    from largeforge_ray.models.hardware import gpus_each

    actor = ray.remote(Pack).options(
        **(place.options() if place else {}),
        num_cpus=1,
        num_gpus=gpus_each(),
        max_restarts=RESTARTS,
        max_task_retries=RESTARTS,
    )
    return actor.remote(job)

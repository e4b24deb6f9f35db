"""How each stage kind makes its artifact: read inputs, fill the folder, return the metrics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from largeforge_ray.config.stages import DatasetStage
from largeforge_ray.data import ingest
from largeforge_ray.flow.context import RunContext
from largeforge_ray.flow.evaluating import make_outcomes
from largeforge_ray.flow.merging import make_merged
from largeforge_ray.flow.plan import PlannedStage
from largeforge_ray.flow.promotion import make_router
from largeforge_ray.flow.routers import make_policy
from largeforge_ray.flow.students import make_student
from largeforge_ray.flow.sweeping import make_sweep
from largeforge_ray.flow.teaching import make_rows
from largeforge_ray.flow.training import make_adapter
from largeforge_ray.models.source import materialise

Metrics = dict[str, Any]


def make_model(context: RunContext, stage: PlannedStage, folder: Path) -> Metrics:
    """Write a model into the store as safetensors."""
    with context.phase("convert"):
        materialise(context.plan.sources[stage.name], folder)
    return {"bytes": sum(p.stat().st_size for p in folder.iterdir())}


def make_dataset(context: RunContext, stage: PlannedStage, folder: Path) -> Metrics:
    """Check and split the user's rows."""
    declared = context.manifest.stage(stage.name)
    assert isinstance(declared, DatasetStage)
    return dict(ingest(context.plan.folder / declared.source, test_share=declared.split.test, target=folder))


STEPS: dict[str, Callable[[RunContext, PlannedStage, Path], Metrics]] = {
    "model": make_model,
    "dataset": make_dataset,
    "teach": make_rows,
    "train": make_adapter,
    "sweep": make_sweep,
    "merge": make_merged,
    "student": make_student,
    "evaluate": make_outcomes,
    "router": make_policy,
    "promote": make_router,
}

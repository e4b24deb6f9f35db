"""The merge stage: base and adapter become one model, by a Ray task."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from largeforge_ray.config.merging import MergeStage
from largeforge_ray.config.training import Training
from largeforge_ray.data import read_rows
from largeforge_ray.errors import ForgeError
from largeforge_ray.flow.context import RunContext
from largeforge_ray.flow.plan import PlannedStage, part_of
from largeforge_ray.train.merge import MergeJob, merge

CHATS = 4


def make_merged(context: RunContext, stage: PlannedStage, folder: Path) -> dict[str, Any]:
    """Write base and adapter as one model, after comparing both on what the adapter was trained on."""
    declared = context.manifest.stage(stage.name)
    assert isinstance(declared, MergeStage)
    trained = context.manifest.stage(declared.adapter)
    assert isinstance(trained, Training)
    rows = islice(read_rows(context.folder(trained.data), part_of(trained, "data")), CHATS)
    job = MergeJob(
        base=str(context.folder("base")),
        adapter=str(context.folder(declared.adapter)),
        target=str(folder),
        chats=tuple((*row["messages"], *(row["chosen"] or ())) for row in rows),
        nf4=trained.precision if declared.dequantize else None,
    )
    context.connect()
    with context.phase("merge"), context.ledger.holding(1):
        figures = _in_a_task(job)
    said = (
        f"largest difference in logits from base and adapter: {figures['merged']:.1e} in float32, "
        f"{figures['written']:.1e} as written; from the base alone: {figures['from_base']:.2f}"
    )
    context.emit(stage.name, "progress", {}, said)
    return {"logits": figures, "bytes": sum(p.stat().st_size for p in folder.iterdir())}


def _in_a_task(job: MergeJob) -> dict[str, float]:
    import ray
    from ray.exceptions import RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # On this machine, where the stage's folder is, which may be a head without CPUs for tasks.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    task = ray.remote(merge).options(num_cpus=0, max_retries=3, scheduling_strategy=here)
    try:
        figures: dict[str, float] = ray.get(task.remote(job))
    except RayTaskError as error:
        # The task's own error is one line; Ray's copy of it is a trace.
        raise (error.cause if isinstance(error.cause, ForgeError) else error) from None
    return figures

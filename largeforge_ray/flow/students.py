"""The student stage: a smaller model to train, made of some of the base's layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from largeforge_ray.config.student import StudentStage
from largeforge_ray.flow.context import RunContext
from largeforge_ray.flow.plan import PlannedStage
from largeforge_ray.models.prune import layers_in, prune
from largeforge_ray.train.whole import copy_beside_weights


def make_student(context: RunContext, stage: PlannedStage, folder: Path) -> dict[str, Any]:
    """Write the chosen layers of the base as a model, beside the base's tokenizer and chat template."""
    declared = context.manifest.stage(stage.name)
    assert isinstance(declared, StudentStage)
    base = context.folder("base")
    total = layers_in(base)
    layers = declared.chosen(total)
    with context.phase("prune"):
        copy_beside_weights(base, folder)
        prune(base, layers, folder)
    said = f"{len(layers)} of the base's {total} layers: {', '.join(map(str, layers))}"
    context.emit(stage.name, "progress", {}, said)
    return {"layers": list(layers), "of": total, "bytes": sum(p.stat().st_size for p in folder.iterdir())}

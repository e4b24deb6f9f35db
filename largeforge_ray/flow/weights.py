"""What the models of a manifest weigh, the base's and those that stages make, before any of them is there."""

from __future__ import annotations

from largeforge_ray.config.manifest import Manifest
from largeforge_ray.config.student import StudentStage
from largeforge_ray.config.training import Training
from largeforge_ray.models.prune import count_layers, pruned_bytes
from largeforge_ray.models.source import ModelSource

GIB = 1024**3


def weigh_models(manifest: Manifest, sources: dict[str, ModelSource]) -> dict[str, float]:
    """GiB in bfloat16 of the base and of each stage that makes a model, by name; 0 if unknown.

    A student of a base that is no folder of safetensors is taken to be as large as the base. Raises
    ``ConfigError`` for layers that the base does not have, ``ModelError`` if none can be taken from it.
    """
    weights = {name: _source_gib(source) for name, source in sources.items()}
    for stage in manifest.stages:
        if isinstance(stage, StudentStage):
            weights[stage.name] = _student_gib(stage, sources["base"], weights["base"])
        elif stage.name in sources:
            continue
        elif stage.artifact_kind == "model":
            weights[stage.name] = weights[stage.model if isinstance(stage, Training) else "base"]
    return weights


def _source_gib(source: ModelSource) -> float:
    if source.gguf is not None:
        # About four bits a weight.
        return source.gguf.stat().st_size * 3 / GIB
    if source.folder is not None:
        return sum(p.stat().st_size for p in source.folder.glob("*.safetensors")) / GIB
    return 0.0


def _student_gib(stage: StudentStage, source: ModelSource, base_gib: float) -> float:
    total = count_layers(source)
    if total is None:
        return base_gib
    layers = stage.chosen(total)
    return base_gib if source.folder is None else pruned_bytes(source.folder, layers) / GIB

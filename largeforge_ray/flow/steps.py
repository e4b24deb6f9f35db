"""How each stage kind makes its artifact: read inputs, fill the folder, return the metrics."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from largeforge_ray.config.stages import DatasetStage, EvaluateStage
from largeforge_ray.data import count_rows, ingest, read_rows
from largeforge_ray.data.rows import part_path
from largeforge_ray.errors import StageError
from largeforge_ray.evaluate import OutcomeRecipe, paired_gain, qualities, score, write_outcomes
from largeforge_ray.flow.context import RunContext
from largeforge_ray.flow.farming import Share, farm
from largeforge_ray.flow.merging import make_merged
from largeforge_ray.flow.plan import PlannedStage, part_of
from largeforge_ray.flow.promotion import make_router
from largeforge_ray.flow.routers import make_policy
from largeforge_ray.flow.students import make_student
from largeforge_ray.flow.sweeping import make_sweep
from largeforge_ray.flow.teaching import make_rows
from largeforge_ray.flow.training import make_adapter
from largeforge_ray.models.source import materialise
from largeforge_ray.types import Sampling

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


def make_outcomes(context: RunContext, stage: PlannedStage, folder: Path) -> Metrics:
    """Every candidate answers every held-out item, greedily."""
    declared = context.manifest.stage(stage.name)
    assert isinstance(declared, EvaluateStage)
    items = part_path(context.folder(declared.items), part_of(declared, "items"))
    unscored = next((r for r in read_rows(items.parent, items.stem) if r["check"] is None), None)
    if unscored:
        raise StageError(
            f"item '{unscored['item_id']}' has no answer to compare with; add 'answer' to its row"
        )
    experts = declared.candidates
    total = count_rows(items.parent, items.stem) * len(experts)
    shares = _expert_shares(context, declared)
    made = farm(context, stage, items, shares, total, ("right", "wrong"))
    rows = write_outcomes(folder, made.rows(), read_rows(items.parent, items.stem))
    quality = {name: qualities(rows, name) for name in experts}
    metrics: Metrics = {"candidates": {}, "gains": {}}
    for name in experts:
        s = score(quality[name], confidence=declared.confidence, seed=declared.seed)
        errors = sum(r["error"] is not None for r in rows if r["expert"] == name)
        metrics["candidates"][name] = {
            "accuracy": s.mean,
            "low": s.low,
            "high": s.high,
            "n": s.n,
            "errors": errors,
        }
        if name != "base" and "base" in quality:
            gain = paired_gain(
                quality[name], quality["base"], confidence=declared.confidence, seed=declared.seed
            )
            fields = asdict(gain)
            metrics["gains"][name] = {"against": "base", "gain": fields.pop("mean"), **fields}
    (folder / "scores.json").write_text(json.dumps(metrics, indent=2), encoding="utf-8")
    return metrics


def _expert_shares(context: RunContext, declared: EvaluateStage) -> list[Share]:
    """The candidates' work, in an order that starts each engine once: the base's, then those of models."""
    shares: list[tuple[bool, Share]] = []
    # One expert after the other: a batch with a single adapted request runs at the adapter's pace.
    for name in declared.candidates:
        planned, model, adapter = context.plan[name], None, None
        if planned.artifact_kind == "adapter":
            adapter = str(context.folder(name))
        elif name != "base":
            model = context.folder(name)
        recipe = OutcomeRecipe(
            experts={name: (planned.key, adapter)},
            task=declared.items.split(".")[0],
            sampling=Sampling(max_tokens=declared.max_tokens, seed=declared.seed),
        )
        shares.append((model is not None, Share(partial(context.engines, model, 1), recipe)))
    return [share for _, share in sorted(shares, key=lambda each: each[0])]


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

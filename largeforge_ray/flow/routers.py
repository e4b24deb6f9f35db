"""The router stage: from labelled prompts or outcomes to a policy and its weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from largeforge_ray.config.routing import THRESHOLDS, RouterStage
from largeforge_ray.config.training import Training
from largeforge_ray.flow.context import RunContext, scratch_root
from largeforge_ray.flow.encoders import find_encoder, write_encoder
from largeforge_ray.flow.lessons import (
    Lesson,
    qualities,
    read_lessons,
    sample,
    territory_prompts,
)
from largeforge_ray.flow.plan import PlannedStage
from largeforge_ray.models.embedder import longest_text
from largeforge_ray.routing import Policies, parse_router, territory_keywords
from largeforge_ray.routing.policies import load_embed, save_background
from largeforge_ray.routing.territory import first_distinct

BACKGROUND_PROMPTS = 512
FREE = {"per_1k_prompt": 0.0, "per_1k_completion": 0.0}


def make_policy(context: RunContext, stage: PlannedStage, folder: Path) -> dict[str, Any]:
    """Write ``router.json``, the embedding and the learned weights; measure them on prompts held out."""
    declared = context.manifest.stage(stage.name)
    assert isinstance(declared, RouterStage)
    names, taught, held_out = read_lessons(context, declared)

    def told(done: int, total: int) -> None:
        context.emit(stage.name, "progress", {"done": done, "total": total})

    with context.phase("encoder"):
        source = find_encoder(declared, context.plan.folder)
        write_encoder(declared, source, scratch_root(context.store), folder, told)
    table = _table(context, declared, names, taught)
    _learn(context, declared, table, taught, folder)
    table["experts"] += embedder_records(context, declared.embedder)
    (folder / "router.json").write_text(json.dumps(table, indent=2, sort_keys=True), encoding="utf-8")
    with context.phase("measure"):
        metrics = _measure(declared, names, held_out, folder)
    accuracies = ", ".join(f"{kind} {accuracy:.2f}" for kind, accuracy in metrics["by_kind"].items())
    said = f"accuracy on {len(held_out)} held-out prompts: {accuracies}"
    context.emit(stage.name, "progress", {"accuracy": metrics["accuracy"]}, said)
    return metrics | {"learnt_from": len(taught)}


def _learn(
    context: RunContext, declared: RouterStage, table: dict[str, Any], taught: Sequence[Lesson], folder: Path
) -> None:
    import numpy as np

    from largeforge_ray.routing.fitting import fit
    from largeforge_ray.routing.learned import Column, Learned, see
    from largeforge_ray.routing.neural import Background

    embed = load_embed(folder)
    with context.phase("embed"):
        seen = [see(lesson.text, embed) for lesson in taught]
    with context.phase("fit"):
        predictors = fit(declared.method, seen, qualities(taught), seed=declared.seed)
    experts = [(e["name"], (e["adapter_key"] or e["model_key"])[:16]) for e in table["experts"]]
    # A label speaks of whoever has that name, an outcome of the artifact that was measured.
    columns = tuple(Column(name, artifact if declared.outcomes else None) for name, artifact in experts)
    Learned(columns, predictors).save(folder)
    kept = sample(taught, BACKGROUND_PROMPTS)
    labels = tuple(experts[int(np.argmax(taught[place].quality))][0] for place in kept)
    save_background(Background(labels, np.stack([seen[place].vector_D for place in kept])), folder)


def _measure(
    declared: RouterStage, names: tuple[str, ...], held_out: Sequence[Lesson], folder: Path
) -> dict[str, Any]:
    from largeforge_ray.routing.measure import HeldOut, measure

    router, policies = parse_router((folder / "router.json").read_bytes()), Policies(folder)
    asked = HeldOut(names, tuple(lesson.text for lesson in held_out), qualities(held_out))
    found = {kind: measure(policies.build(router, kind), router, asked) for kind in policies.kinds}
    by_kind = {kind: one["accuracy"] for kind, one in found.items()}
    return {"policy": declared.policy, "by_kind": by_kind, **found[declared.policy]}


def copy_policy(source: Path, target: Path) -> None:
    """All that a router stage learnt, without its table."""
    table = shutil.ignore_patterns("router.json", "artifact.json")
    shutil.copytree(source, target, ignore=table, dirs_exist_ok=True)


def expert_record(
    context: RunContext,
    name: str,
    prompts: Sequence[str],
    *,
    max_lora_rank: int,
    price: dict[str, float],
    **engine: Any,
) -> dict[str, Any]:
    """A live expert of ``router.json``: the base, or what the stage ``name`` made."""
    planned = context.plan[name]
    adapted = planned.artifact_kind == "adapter"
    return {
        "name": name,
        "state": "live",
        "model_key": context.plan["base"].key if adapted else planned.key,
        "adapter_key": planned.key if adapted else None,
        "engine": {
            "max_model_len": context.manifest.model.max_model_len,
            "max_lora_rank": max_lora_rank,
            **engine,
        },
        "price": price,
        "territory": {"prompts": list(prompts), "keywords": territory_keywords(prompts)},
    }


def embedder_records(context: RunContext, name: str | None) -> list[dict[str, Any]]:
    """The expert of ``router.json`` that embeds with the model of the stage ``name``, if there is one."""
    if name is None:
        return []
    engine = {"max_model_len": longest_text(context.folder(name))}
    facts = {"name": name, "state": "live", "model_key": context.plan[name].key, "embeds": True}
    return [facts | {"engine": engine}]


def _table(
    context: RunContext, declared: RouterStage, names: Sequence[str], taught: Sequence[Lesson]
) -> dict[str, Any]:
    def prompts(place: int, name: str) -> list[str]:
        if name == "base":
            return []
        if declared.prompts is not None:
            return first_distinct(lesson.text for lesson in taught if lesson.quality[place] == 1.0)
        trained = context.manifest.stage(name)
        return territory_prompts(context, trained) if isinstance(trained, Training) else []

    prices = {name: price.model_dump(mode="json") for name, price in declared.prices.items()}
    experts = [
        expert_record(
            context,
            name,
            prompts(place, name),
            max_lora_rank=declared.max_lora_rank,
            price=prices.get(name, FREE),
        )
        for place, name in enumerate(names)
    ]
    policy = {"kind": declared.policy, "fallback": "base", "threshold": THRESHOLDS[declared.policy]}
    return {
        "policy": policy | {"cost_weight": declared.cost_weight},
        "model": {"key": context.plan["base"].key, "path_kind": "model"},
        "experts": experts,
    }

"""The promote stage: preflight, gate, probe, and the routing table that results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from largeforge_ray.config.stages import EvaluateStage, PromoteStage
from largeforge_ray.config.training import Training
from largeforge_ray.data import read_rows
from largeforge_ray.errors import GateError
from largeforge_ray.evaluate import paired_gain, qualities, read_outcomes
from largeforge_ray.flow.context import RunContext
from largeforge_ray.flow.plan import PlannedStage
from largeforge_ray.flow.probing import probe_adapter
from largeforge_ray.promote import check_adapter, decide_gate
from largeforge_ray.routing import territory_keywords

TERRITORY_PROMPTS = 64


def make_router(context: RunContext, stage: PlannedStage, folder: Path) -> dict[str, Any]:
    """Write ``router.json`` with the candidate beside the base model, or raise ``GateError``."""
    declared = context.manifest.stage(stage.name)
    assert isinstance(declared, PromoteStage)
    adapter = context.folder(declared.candidate)
    check_adapter(adapter, max_lora_rank=declared.max_lora_rank)
    rows = read_outcomes(context.folder(declared.gate.outcomes))
    evaluated = context.manifest.stage(declared.gate.outcomes)
    assert isinstance(evaluated, EvaluateStage)
    gain = paired_gain(
        qualities(rows, declared.candidate),
        qualities(rows, "base"),
        confidence=declared.gate.confidence,
        seed=evaluated.seed,
    )
    decision = decide_gate(gain, min_gain=declared.gate.min_gain)
    context.emit(
        stage.name,
        "progress",
        {"gain": gain.mean, "low": gain.low, "high": gain.high},
        f"gate: {decision.reason}",
    )
    if not decision.passed:
        raise GateError(f"'{declared.candidate}' is not promoted: {decision.reason}")
    prompts = _training_prompts(context, declared.candidate)
    probe = probe_adapter(context, stage.name, adapter)
    table = _table(context, declared, prompts)
    (folder / "router.json").write_text(json.dumps(table, indent=2, sort_keys=True), encoding="utf-8")
    return {
        "gain": gain.mean,
        "low": gain.low,
        "high": gain.high,
        "live": [e["name"] for e in table["experts"]],
        "probe": probe,
        "gate": decision.reason,
    }


def _training_prompts(context: RunContext, candidate: str) -> list[str]:
    trained = context.manifest.stage(candidate)
    assert isinstance(trained, Training)
    prompts: dict[str, None] = {}
    for row in read_rows(context.folder(trained.data), "train"):
        prompts[next(m["content"] for m in reversed(row["messages"]) if m["role"] == "user")] = None
        if len(prompts) == TERRITORY_PROMPTS:
            break
    return list(prompts)


def _table(context: RunContext, stage: PromoteStage, prompts: list[str]) -> dict[str, Any]:
    model_key = context.plan["base"].key
    engine = {"max_model_len": context.manifest.model.max_model_len, "max_lora_rank": stage.max_lora_rank}
    price = {"per_1k_prompt": 0.0, "per_1k_completion": 0.0}

    def expert(name: str, adapter_key: str | None, territory: dict[str, Any]) -> dict[str, Any]:
        return {
            "name": name,
            "state": "live",
            "model_key": model_key,
            "adapter_key": adapter_key,
            "engine": engine,
            "price": price,
            "territory": territory,
        }

    keywords = territory_keywords(prompts)
    return {
        "policy": stage.policy.model_dump(mode="json") | {"fallback": "base"},
        "model": {"key": model_key, "path_kind": "model"},
        "experts": [
            expert("base", None, {"prompts": [], "keywords": {}}),
            expert(
                stage.candidate, context.plan[stage.candidate].key, {"prompts": prompts, "keywords": keywords}
            ),
        ],
    }

"""The promote stage: preflight, gate, probe, and the routing table that results."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from largeforge_ray.config.evaluating import EvaluateStage
from largeforge_ray.config.stages import PromoteStage
from largeforge_ray.config.training import Training
from largeforge_ray.errors import GateError
from largeforge_ray.evaluate.outcomes import read_outcomes
from largeforge_ray.flow.context import RunContext
from largeforge_ray.flow.lessons import territory_prompts
from largeforge_ray.flow.plan import PlannedStage
from largeforge_ray.flow.probing import probe_adapter
from largeforge_ray.flow.routers import FREE, copy_policy, embedder_records, expert_record
from largeforge_ray.promote.gate import decide_gate, gate_evidence
from largeforge_ray.promote.preflight import check_adapter
from largeforge_ray.routing import parse_router


def make_router(context: RunContext, stage: PlannedStage, folder: Path) -> dict[str, Any]:
    """Write ``router.json`` with the candidate beside the base model, or raise ``GateError``."""
    declared = context.manifest.stage(stage.name)
    assert isinstance(declared, PromoteStage)
    adapter = context.folder(declared.candidate)
    check_adapter(adapter, max_lora_rank=declared.max_lora_rank)
    gate = declared.gate
    evaluated = context.manifest.stage(gate.outcomes)
    assert isinstance(evaluated, EvaluateStage)
    rows = read_outcomes(context.folder(gate.outcomes))
    evidence = gate_evidence(rows, declared.candidate, gate.against, gate, evaluated.seed)
    decision = decide_gate(gate, evidence)
    context.emit(stage.name, "progress", dict(decision.numbers), f"gate: {decision.reason}")
    if not decision.passed:
        raise GateError(f"'{declared.candidate}' is not promoted: {decision.reason}")
    table = _table(context, declared)
    probe = probe_adapter(context, stage.name, adapter)
    if declared.policy.router is not None:
        copy_policy(context.folder(declared.policy.router), folder)
    (folder / "router.json").write_text(json.dumps(table, indent=2, sort_keys=True), encoding="utf-8")
    return {
        **{name: decision.numbers[name] for name in ("gain", "low", "high")},
        "live": [e["name"] for e in table["experts"]],
        "probe": probe,
        "gate": decision.reason,
        "gates": {declared.candidate: decision.numbers},
    }


def _table(context: RunContext, stage: PromoteStage) -> dict[str, Any]:
    trained = context.manifest.stage(stage.candidate)
    assert isinstance(trained, Training)
    prices = _prices(context, stage)
    prompts = {"base": [], stage.candidate: territory_prompts(context, trained)}
    return {
        "policy": stage.policy.settings() | {"fallback": "base"},
        "model": {"key": context.plan["base"].key, "path_kind": "model"},
        "experts": [
            expert_record(
                context,
                name,
                of_it,
                max_lora_rank=stage.max_lora_rank,
                price=prices.get(name, FREE),
                backend=stage.backend,
                speculation=stage.speculation.model_dump(mode="json") if stage.speculation else None,
            )
            for name, of_it in prompts.items()
        ]
        + embedder_records(context, stage.embedder),
    }


def _prices(context: RunContext, stage: PromoteStage) -> dict[str, dict[str, float]]:
    """By expert, where the policy's router stage says some."""
    if stage.policy.router is None:
        return {}
    router = parse_router((context.folder(stage.policy.router) / "router.json").read_bytes())
    return {expert.name: asdict(expert.price) for expert in router.experts}

"""Run a plan: each missing stage once, in order, with every artifact published whole or not at all."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from largeforge_ray.config.base import OnCluster
from largeforge_ray.config.manifest import Manifest
from largeforge_ray.errors import ForgeError, StageError, StoreError
from largeforge_ray.flow.context import RunContext, Tools, stage_lock
from largeforge_ray.flow.ledger import spent
from largeforge_ray.flow.plan import Plan, PlannedStage
from largeforge_ray.flow.steps import STEPS
from largeforge_ray.models.hardware import gpus_each
from largeforge_ray.models.room import Place
from largeforge_ray.observe.events import EventLog
from largeforge_ray.store import Artifact, Store


@dataclass(frozen=True, slots=True)
class RunResult:
    """A finished run: its id, the artifacts by stage name, and how many stages had to run."""

    run: str
    artifacts: dict[str, Artifact]
    executed: int
    seconds: float


def run_plan(plan: Plan, manifest: Manifest, store: Store, *, tools: Tools) -> RunResult:
    """Execute what is missing. Raises the ``ForgeError`` of the stage that failed."""
    started = time.monotonic()
    run = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.urandom(2).hex()}"
    _record(plan, manifest, store, run)
    context = RunContext(run, plan, manifest, store, tools, EventLog(store, run))
    executed = 0
    try:
        for stage in plan.stages:
            executed += _ensure(context, stage)
    finally:
        context.close_engines()
        context.log.close()
    artifacts = {s.name: context.artifact(s.name) for s in plan.stages}
    return RunResult(run, artifacts, executed, time.monotonic() - started)


def _record(plan: Plan, manifest: Manifest, store: Store, run: str) -> None:
    import yaml

    stages = [asdict(s) for s in plan.stages]
    created = datetime.now(UTC).isoformat(timespec="seconds")
    record = {"run": run, "manifest": plan.manifest, "created": created, "stages": stages}
    store.write_bytes(f"runs/{run}/plan.json", json.dumps(record, indent=2).encode())
    text = yaml.safe_dump(manifest.model_dump(mode="json"), sort_keys=False)
    store.write_bytes(f"runs/{run}/manifest.yaml", text.encode())


def _ensure(context: RunContext, stage: PlannedStage) -> bool:
    """Make the stage's artifact unless it exists; returns whether it had to run."""
    with stage_lock(context.store, stage.key):
        # Asked again under the lock: another run may have made it since the plan.
        if found := context.store.find(stage.artifact_kind, stage.key):
            context.emit(stage.name, "cached", dict(found.metrics), f"{found.kind} {found.key[:16]}")
            return False
        context.emit(stage.name, "started")
        try:
            artifact = _execute(context, stage)
        except ForgeError as error:
            _note_failure(context, stage.name, str(error))
            raise
        except KeyboardInterrupt:
            _note_failure(context, stage.name, "interrupted; run the same command again to go on")
            raise
        except Exception as error:
            # Whatever a library raised, the user gets the stage and one line, the record gets all.
            _note_failure(context, stage.name, f"{type(error).__name__}: {error}")
            raise StageError(f"stage '{stage.name}' failed: {_cause(error)}") from error
        seconds = artifact.cost.get("seconds", 0.0)
        numbers = dict(artifact.metrics) | {"seconds": seconds, "phases": artifact.cost.get("phases", {})}
        context.emit(stage.name, "finished", numbers, f"{artifact.kind} {artifact.key[:16]}")
        return True


def _note_failure(context: RunContext, stage: str, message: str) -> None:
    # On a full disk the failure itself says more than that it cannot be written down.
    with suppress(StoreError):
        context.emit(stage, "failed", message=message)


def _cause(error: Exception) -> str:
    """The last line: errors that crossed a Ray process carry the trace of the other side before it."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if len(lines) > 1 else f"{type(error).__name__}: {error}"


def _place(context: RunContext, stage: PlannedStage) -> Place:
    # The base is planned as a stage that no manifest names.
    declared = next((one for one in context.manifest.stages if one.name == stage.name), None)
    if not isinstance(declared, OnCluster):
        return Place(context.run, stage.name)
    return Place(context.run, stage.name, declared.priority, declared.resources)


def _execute(context: RunContext, stage: PlannedStage) -> Artifact:
    context.phases, context.place = {}, _place(context, stage)
    context.ledger.take()  # what was held between the stages is nobody's
    started = time.monotonic()
    with context.store.staging(stage.artifact_kind, stage.key) as folder:
        step = STEPS[stage.kind]
        metrics = step(context, stage, folder)
        context.stop_board()
        process_s = context.ledger.take()
        cost: dict[str, Any] = {"seconds": round(time.monotonic() - started, 2), "phases": context.phases}
        cost |= spent(process_s, gpus_each() if process_s else 0, context.manifest.prices, metrics)
        artifact = context.store.publish(
            stage.artifact_kind, stage.key, stage.name, stage.parents, stage.config, folder, metrics, cost
        )
    context.store.remove(f"journal/{stage.key[:16]}")
    return artifact

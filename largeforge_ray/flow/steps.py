"""How each stage kind makes its artifact: read inputs, fill the folder, return the metrics."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from largeforge_ray.config.stages import DatasetStage, EvaluateStage, TeachStage
from largeforge_ray.data import count_rows, ingest, read_rows, write_rows
from largeforge_ray.data.rows import part_path
from largeforge_ray.errors import StageError
from largeforge_ray.evaluate import outcome_row, outcome_work, paired_gain, qualities, score, write_outcomes
from largeforge_ray.flow.context import RunContext
from largeforge_ray.flow.merging import make_merged
from largeforge_ray.flow.plan import PlannedStage, part_of
from largeforge_ray.flow.promotion import make_router
from largeforge_ray.flow.sweeping import make_sweep
from largeforge_ray.flow.training import make_adapter
from largeforge_ray.models.source import materialise
from largeforge_ray.store import RowJournal
from largeforge_ray.teach import run_farm, teach_work, teacher_row
from largeforge_ray.teach.rows import kept_chats
from largeforge_ray.types import Sampling

Metrics = dict[str, Any]


def make_model(context: RunContext, stage: PlannedStage, folder: Path) -> Metrics:
    """Write the base model into the store as safetensors."""
    with context.phase("convert"):
        materialise(context.plan.source, folder)
    return {"bytes": sum(p.stat().st_size for p in folder.iterdir())}


def make_dataset(context: RunContext, stage: PlannedStage, folder: Path) -> Metrics:
    """Check and split the user's rows."""
    declared = context.manifest.stage(stage.name)
    assert isinstance(declared, DatasetStage)
    return dict(ingest(context.plan.folder / declared.source, test_share=declared.split.test, target=folder))


def make_rows(context: RunContext, stage: PlannedStage, folder: Path) -> Metrics:
    """Let the teacher answer, keep what the checks accept."""
    declared = context.manifest.stage(stage.name)
    assert isinstance(declared, TeachStage)
    items = part_path(context.folder(declared.prompts), part_of(declared, "prompts"))
    expand = partial(
        teach_work,
        teacher=declared.teacher,
        teacher_key=context.plan["base"].key,
        sampling=declared.sampling,
        samples=declared.samples,
    )
    prompts = count_rows(items.parent, items.stem)
    rows = _farm(
        context, stage, items, [(None, expand)], teacher_row, prompts * declared.samples, ("kept", "dropped")
    )
    write_teacher_rows(folder / "rows.parquet", rows)
    chats = kept_chats(rows, declared.keep)
    reasons = Counter(_reason(r) for r in rows if _reason(r))
    if not chats:
        common = ", ".join(f"{r} ({n})" for r, n in reasons.most_common(3))
        raise StageError(
            f"stage '{stage.name}': none of {len(rows)} answers was kept: {common}; "
            "show the teacher examples, "
            "raise samples, or look at the check"
        )
    write_rows(folder, "train", chats)
    failed = sum(r["error"] is not None for r in rows)
    accepted = sum(r["error"] is None and (declared.keep == "all" or r["verdict"]["kept"]) for r in rows)
    return {
        "form": "chat",
        "prompts": prompts,
        "rows": len(chats),
        "kept": accepted,
        "duplicates": accepted - len(chats),
        "dropped": len(rows) - accepted - failed,
        "failed": failed,
        "reasons": dict(reasons.most_common(20)),
        "tokens": sum(r["completion_tokens"] for r in rows),
    }


def _reason(row: dict[str, Any]) -> str | None:
    if row["error"]:
        return f"failed: {row['error']}"
    verdict = row["verdict"]
    return None if verdict["kept"] else f"{verdict['by']}: {verdict['reason']}"


def write_teacher_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write teacher rows in the shared schema; columns without any value yet are stored as null."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(sorted(rows, key=lambda r: str(r["row_key"]))), path)


def _farm(
    context: RunContext,
    stage: PlannedStage,
    items: Path,
    work: list[tuple[Path | None, Any]],
    to_row: Any,
    total: int,
    verdicts: tuple[str, str],
) -> list[dict[str, Any]]:
    """Run the farm over ``items`` for each of ``work``, with progress; returns all of the journal.

    Work is the folder of a model, None for the base and its adapters, and what expands an item.
    """
    journal = RowJournal(context.store, stage.key)
    done = sum(1 for _ in journal.rows())
    started, counts = time.monotonic(), Counter[str]()

    def on_batch(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            counts["failed" if row["failed"] else verdicts[not row["kept"]]] += 1
            counts["tokens"] += row["tokens"]
        made = counts["failed"] + counts[verdicts[0]] + counts[verdicts[1]]
        rate = round(counts["tokens"] / (time.monotonic() - started), 1)
        numbers = {k: counts[k] for k in (*verdicts, "failed")}
        context.emit(
            stage.name, "progress", {"done": done + made, "total": total, **numbers, "tokens_per_s": rate}
        )

    if done:
        context.emit(
            stage.name, "progress", {"done": done, "total": total}, f"{done} rows were already in the journal"
        )
    for model, expand in work:
        waiting = time.monotonic()
        engine = context.engine(model)
        started += time.monotonic() - waiting
        with context.phase("generation"):
            run_farm(items, expand=expand, to_row=to_row, engine=engine, journal=journal, on_batch=on_batch)
    rows = list(journal.rows())
    if len(rows) != total:
        raise StageError(f"stage '{stage.name}' made {len(rows)} rows of {total}; run the same command again")
    return rows


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
    work = _expert_work(context, declared)
    made = _farm(context, stage, items, work, outcome_row, total, ("right", "wrong"))
    rows = write_outcomes(folder, made, read_rows(items.parent, items.stem))
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


def _expert_work(context: RunContext, declared: EvaluateStage) -> list[tuple[Path | None, Any]]:
    """The candidates' work, in an order that starts each engine once: the base's, then those of models."""
    work = []
    # One expert after the other: a batch with a single adapted request runs at the adapter's pace.
    for name in declared.candidates:
        planned, model, adapter = context.plan[name], None, None
        if planned.artifact_kind == "adapter":
            adapter = str(context.folder(name))
        elif name != "base":
            model = context.folder(name)
        expand = partial(
            outcome_work,
            experts={name: (planned.key, adapter)},
            task=declared.items.split(".")[0],
            sampling=Sampling(max_tokens=declared.max_tokens, seed=declared.seed),
        )
        work.append((model, expand))
    return sorted(work, key=lambda each: each[0] is not None)


STEPS: dict[str, Callable[[RunContext, PlannedStage, Path], Metrics]] = {
    "model": make_model,
    "dataset": make_dataset,
    "teach": make_rows,
    "train": make_adapter,
    "sweep": make_sweep,
    "merge": make_merged,
    "evaluate": make_outcomes,
    "promote": make_router,
}

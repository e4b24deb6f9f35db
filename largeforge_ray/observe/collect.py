"""Gathers a run's ReportData from the store: its plan, its events and the artifacts they name.

Only numbers and the few chosen items are held in memory, whatever the size of the data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from largeforge_ray.errors import CorruptArtifactError, StoreError
from largeforge_ray.observe import data as view
from largeforge_ray.observe import words
from largeforge_ray.observe.ancestry import trace_lineage
from largeforge_ray.observe.events import read_events, run_file
from largeforge_ray.observe.items import compare_items
from largeforge_ray.observe.routers import router_view
from largeforge_ray.observe.spans import stage_views
from largeforge_ray.observe.sweeps import sweep_view

if TYPE_CHECKING:
    from largeforge_ray.store import Artifact, Store
    from largeforge_ray.types import RunEvent

TRAINING = ("train", "sweep")


def collect(store: Store, run: str) -> view.ReportData:
    """Everything the report of a run says.

    Raises:
        StoreError: the store has no such run, or its plan or events cannot be read.
    """
    plan = _read_plan(store, run)
    events = read_events(store, run)
    stages = stage_views(plan["stages"], events)
    artifacts, broken = _find_artifacts(store, stages)
    gathered = _Gathered(plan["stages"], stages, events, artifacts, broken)
    evaluations = tuple(_with_summary(store, gathered, one) for one in gathered.evaluations())
    promotions = gathered.promotions(evaluations)
    comparisons, no_items = _comparisons(store, gathered, evaluations, promotions)
    return view.ReportData(
        run=run,
        manifest=str(plan.get("manifest", "")),
        created=str(plan.get("created", "")),
        state=_run_state(stages),
        total_s=events[-1].time - events[0].time if events else None,
        stages=stages,
        losses=gathered.losses(),
        sweeps=gathered.sweeps(),
        evaluations=evaluations,
        routers=gathered.routers(),
        promotions=promotions,
        funnels=gathered.funnels(),
        comparisons=comparisons,
        lineage=trace_lineage(store, plan["stages"], stages, artifacts),
        costs=gathered.costs(),
        manifest_text=_manifest_text(store, run),
        absent=gathered.absent() | no_items,
    )


class _Gathered:
    """One run's stages with what the store knows of each, read section by section."""

    def __init__(
        self,
        planned: Sequence[Mapping[str, Any]],
        stages: Sequence[view.StageView],
        events: Sequence[RunEvent],
        artifacts: Mapping[str, Artifact],
        broken: Mapping[str, str],
    ) -> None:
        self.stages = stages
        self.artifacts = artifacts
        self.broken = broken
        self._events = events
        self._config = {str(stage["name"]): stage.get("config") or {} for stage in planned}

    def _of_kind(self, *kinds: str) -> list[view.StageView]:
        return [stage for stage in self.stages if stage.kind in kinds]

    def _metrics(self, stage: view.StageView) -> Mapping[str, Any]:
        artifact = self.artifacts.get(stage.name)
        return artifact.metrics if artifact is not None else {}

    def losses(self) -> tuple[view.LossCurve, ...]:
        curves = (
            _loss_curve(
                stage.name,
                self._metrics(stage).get("losses") or self._logged_losses(stage.name),
                self._metrics(stage).get("history") or (),
                _held_out(self._metrics(stage)),
            )
            for stage in self._of_kind(*TRAINING)
        )
        return tuple(curve for curve in curves if curve.points)

    def sweeps(self) -> tuple[view.Sweep, ...]:
        found = (sweep_view(stage.name, self._metrics(stage)) for stage in self._of_kind("sweep"))
        return tuple(sweep for sweep in found if sweep is not None)

    def _logged_losses(self, stage: str) -> list[tuple[Any, Any]]:
        return [
            (event.numbers["step"], event.numbers["loss"])
            for event in self._events
            if event.stage == stage and event.kind == "progress" and {"step", "loss"} <= event.numbers.keys()
        ]

    def evaluations(self) -> tuple[view.Evaluation, ...]:
        found = (_evaluation(stage.name, self._metrics(stage)) for stage in self._of_kind("evaluate"))
        return tuple(evaluation for evaluation in found if evaluation.candidates)

    def routers(self) -> tuple[view.RouterView, ...]:
        found = (router_view(stage.name, self._metrics(stage)) for stage in self._of_kind("router"))
        return tuple(router for router in found if router is not None)

    def promotions(self, evaluations: Sequence[view.Evaluation]) -> tuple[view.Promotion, ...]:
        return tuple(self._promotion(stage, evaluations) for stage in self._of_kind("promote"))

    def _promotion(self, stage: view.StageView, evaluations: Sequence[view.Evaluation]) -> view.Promotion:
        metrics = self._metrics(stage)
        live = tuple(str(name) for name in metrics.get("live") or ())
        candidate = self._candidate(stage) or next((name for name in live if name != "base"), "")
        measured = next((g.interval for one in evaluations for g in one.gains if g.expert == candidate), None)
        decided = _interval(metrics, "gain")
        if decided is not None and decided.confidence is None:
            gate = self._config[stage.name].get("gate") or {}
            decided = replace(decided, confidence=_number(gate, "confidence"))
        return view.Promotion(stage.name, candidate, stage.state, live, decided or measured, stage.message)

    def _candidate(self, stage: view.StageView) -> str:
        """The plan names what a stage reads by key, so that a renamed stage keeps its artifact."""
        config = self._config[stage.name]
        key = str((config.get("inputs") or {}).get("candidate", "")).partition(".")[0]
        named = next((other.name for other in self.stages if key and other.key.startswith(key)), "")
        return named or str(config.get("candidate", ""))

    def funnels(self) -> tuple[view.Funnel, ...]:
        found = (self._funnel(stage) for stage in self._of_kind("teach"))
        return tuple(funnel for funnel in found if funnel.prompts or funnel.samples)

    def _funnel(self, stage: view.StageView) -> view.Funnel:
        metrics, partial = self._metrics(stage), False
        if not metrics:
            progress = (e for e in reversed(self._events) if e.stage == stage.name and e.kind == "progress")
            metrics, partial = next((event.numbers for event in progress), {}), True
        reasons = metrics.get("reasons") or {}
        return view.Funnel(
            stage=stage.name,
            prompts=_count(metrics, "prompts"),
            kept=_count(metrics, "kept"),
            dropped=_count(metrics, "dropped"),
            failed=_count(metrics, "failed"),
            reasons=tuple((str(k), int(v)) for k, v in sorted(reasons.items(), key=lambda r: (-r[1], r[0]))),
            duplicates=_count(metrics, "duplicates"),
            near_duplicates=_count(metrics, "near_duplicates"),
            made=_count(metrics, "rows") if "rows" in metrics else None,
            usd=_number(metrics, "usd"),
            tokens=int(metrics["tokens"]) if _number(metrics, "tokens") is not None else None,
            partial=partial,
        )

    def costs(self) -> tuple[view.StageCost, ...]:
        costs = []
        for stage in self.stages:
            artifact = self.artifacts.get(stage.name)
            if artifact is None:
                continue
            numbers = {str(name): _number(artifact.cost, name) for name in artifact.cost}
            values = {name: number for name, number in numbers.items() if number is not None}
            if values:
                costs.append(view.StageCost(stage.name, values, stage.state != "cached"))
        return tuple(costs)

    def absent(self) -> dict[str, str]:
        """Why a section that depends on one kind of stage would be empty."""
        return {
            "loss": self._reason("a training stage", "logged a loss", *TRAINING),
            "accuracy": self._reason("an evaluate stage", "finished", "evaluate"),
            "funnel": self._reason("a teach stage", "reported any rows", "teach"),
            "cost": "No stage of this run has recorded a cost.",
            "timeline": "This run has logged no events yet.",
        }

    def _reason(self, wanted: str, missing: str, *kinds: str) -> str:
        stages = self._of_kind(*kinds)
        if not stages:
            return f"This run does not have {wanted}."
        for stage in stages:
            if stage.name in self.broken:
                return f"The artifact of stage ‘{stage.name}’ cannot be read: {self.broken[stage.name]}"
        names = ", ".join(f"‘{stage.name}’ ({stage.state})" for stage in stages)
        return f"No stage has {missing} yet: {names}."


def _with_summary(store: Store, gathered: _Gathered, evaluation: view.Evaluation) -> view.Evaluation:
    artifact = gathered.artifacts[evaluation.stage]
    if all(file.path != "evaluation.json" for file in artifact.files):
        return evaluation
    try:
        summary = json.loads((store.fetch(artifact) / "evaluation.json").read_bytes())
    except StoreError:
        return evaluation  # the section on its items says why
    return replace(evaluation, summary=summary)


def _comparisons(
    store: Store,
    gathered: _Gathered,
    evaluations: Sequence[view.Evaluation],
    promotions: Sequence[view.Promotion],
) -> tuple[tuple[view.Comparison, ...], dict[str, str]]:
    """Per evaluation the items of one gain: the promotion candidate's, else the largest."""
    chosen = {promotion.candidate for promotion in promotions}
    found, reason = [], gathered.absent()["accuracy"]
    for evaluation in evaluations:
        artifact = gathered.artifacts[evaluation.stage]
        if not evaluation.gains:
            reason = f"Stage ‘{evaluation.stage}’ compared no expert with another."
            continue
        gain = max(evaluation.gains, key=lambda g: (g.expert in chosen, g.interval.value))
        try:
            comparison = compare_items(store, artifact, evaluation.stage, gain.against, gain.expert)
        except StoreError as error:
            reason = f"The items of stage ‘{evaluation.stage}’ cannot be read: {error}"
            continue
        if comparison.pairs:
            found.append(comparison)
        else:
            reason = f"Both experts of stage ‘{evaluation.stage}’ answered every item perfectly."
    return tuple(found), {"items": reason}


def _read_plan(store: Store, run: str) -> dict[str, Any]:
    path = run_file(run, "plan.json")
    if not store.exists(path):
        raise StoreError(
            f"run {run!r} has no plan.json in store {store.url}; "
            "check the run id with the output of `largeforge run`, and the store with the manifest"
        )
    try:
        plan = json.loads(store.read_bytes(path))
    except ValueError as error:
        raise StoreError(f"{path} in {store.url} is not JSON ({error}); run the manifest again") from error
    if not isinstance(plan, dict) or not isinstance(plan.get("stages"), list):
        raise StoreError(f"{path} in store {store.url} lists no stages; run the manifest again")
    return plan


def _find_artifacts(
    store: Store, stages: Iterable[view.StageView]
) -> tuple[dict[str, Artifact], dict[str, str]]:
    """The stages' artifacts by stage name, and why the others cannot be read, where they are corrupt."""
    artifacts: dict[str, Artifact] = {}
    broken: dict[str, str] = {}
    for stage in stages:
        try:
            artifact = store.find(stage.artifact_kind, stage.key)
        except CorruptArtifactError as error:
            broken[stage.name] = str(error)
            continue
        if artifact is not None:
            artifacts[stage.name] = artifact
    return artifacts, broken


def _manifest_text(store: Store, run: str) -> str:
    path = run_file(run, "manifest.yaml")
    return store.read_bytes(path).decode("utf-8", "replace") if store.exists(path) else ""


def _run_state(stages: Sequence[view.StageView]) -> str:
    states = {stage.state for stage in stages}
    if "failed" in states:
        return "failed"
    return "finished" if states <= {"finished", "cached"} else "running"


def _loss_curve(
    stage: str,
    pairs: Iterable[Sequence[Any]],
    history: Iterable[Mapping[str, Any]],
    held_out: Iterable[Sequence[Any]],
) -> view.LossCurve:
    marks = tuple((float(leg["step"]), f"until here {words.leg(leg)}") for leg in history)
    (points, bad), (measured, _) = _points(pairs), _points(held_out)
    return view.LossCurve(stage, points, bad, marks, measured)


def _points(pairs: Iterable[Sequence[Any]]) -> tuple[tuple[tuple[float, float], ...], int]:
    """Rising steps, each once, and how many had no finite loss: a step that was repeated after a resume
    counts with its last loss."""
    by_step = {float(step): float(loss) for step, loss in pairs}
    finite = sorted((step, loss) for step, loss in by_step.items() if math.isfinite(loss))
    return tuple(finite), len(by_step) - len(finite)


def _held_out(metrics: Mapping[str, Any]) -> list[Sequence[Any]]:
    """Before the first step, on the way where it was measured, and after the last one."""
    ends = {"before": 0, "after": metrics.get("steps")}
    measured = metrics.get("held_out") or {}
    at_ends = [(step, measured[when]["loss"]) for when, step in ends.items() if when in measured]
    return [*(metrics.get("curve") or ()), *at_ends]


def _evaluation(stage: str, metrics: Mapping[str, Any]) -> view.Evaluation:
    candidates, gains = [], []
    for name, numbers in (metrics.get("candidates") or {}).items():
        accuracy = _interval(numbers, "accuracy")
        if accuracy is not None:
            n, errors = _count(numbers, "n"), _count(numbers, "errors")
            candidates.append(view.Candidate(str(name), accuracy, n, errors))
    for name, numbers in (metrics.get("gains") or {}).items():
        gain = _interval(numbers, "gain")
        if gain is not None:
            against = str(numbers.get("against", "base"))
            gains.append(view.Gain(str(name), against, gain, _count(numbers, "n")))
    return view.Evaluation(stage, tuple(candidates), tuple(gains))


def _interval(numbers: Mapping[str, Any], name: str) -> view.Interval | None:
    """None if there is no value; a missing bound collapses onto the value."""
    value = _number(numbers, name)
    if value is None:
        return None
    low, high = _number(numbers, "low"), _number(numbers, "high")
    return view.Interval(
        value,
        value if low is None else low,
        value if high is None else high,
        _number(numbers, "confidence"),
    )


def _number(numbers: Mapping[str, Any], name: str) -> float | None:
    value = numbers.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _count(numbers: Mapping[str, Any], name: str) -> int:
    return int(_number(numbers, name) or 0)

"""The manifest and the rules that hold between its stages."""

from __future__ import annotations

import difflib
from typing import Literal

from pydantic import Field

from largeforge_ray.config.algorithms import Sft
from largeforge_ray.config.base import PARTS, StageBase, Strict
from largeforge_ray.config.evaluating import EvaluateStage
from largeforge_ray.config.merging import MergeStage
from largeforge_ray.config.routing import RouterStage
from largeforge_ray.config.stages import DatasetStage, PromoteStage, Stage
from largeforge_ray.config.teaching import TeachStage
from largeforge_ray.config.tracking import Tracking

SHORTEST_CONTEXT = 16
"""Tokens; what is asked and answered has to fit."""

PRODUCES_ROWS = {"prompts": "dataset", "data": "dataset", "items": "dataset"}
OTHERS = {
    "gate.outcomes": "outcomes",
    "outcomes": "outcomes",
    "policy.router": "router",
    "model": "model",
    "embedder": "model",
}
"""Which artifact kind a reference field must lead to; fields in neither lead to what was trained."""


class Rope(Strict):
    """Rotary positions scaled so that the context becomes ``factor`` times as long.

    ``linear`` is Chen et al. 2023 (arXiv:2306.15595), ``yarn`` Peng et al. 2023 (arXiv:2309.00071),
    ``dynamic`` NTK-aware scaling as there, by the longest context whatever the length of a sequence.
    """

    kind: Literal["linear", "dynamic", "yarn"]
    factor: float = Field(gt=1.0)


class ModelConfig(Strict):
    """Where the base model comes from and how long its context may be.

    ``source`` is ``package:NAME``, a folder, a hub id, or a URL such as ``s3://bucket/folder``.
    """

    source: str = Field(min_length=1)
    revision: str | None = None
    max_model_len: int = Field(1024, ge=SHORTEST_CONTEXT)
    rope: Rope | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False


class Prices(Strict):
    """US dollars for an hour of what a stage's processes hold, so that the report says what it cost."""

    per_cpu_hour: float = Field(0.0, ge=0.0)
    per_gpu_hour: float = Field(0.0, ge=0.0)


class Manifest(Strict):
    """One run's plan: the model, the store, and the stages that lead from one to the other."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,39}$")
    store: str = Field("./forge", min_length=1)
    model: ModelConfig
    tracking: Tracking = Tracking()
    prices: Prices | None = None
    stages: list[Stage] = Field(min_length=1)

    def stage(self, name: str) -> Stage:
        return next(s for s in self.stages if s.name == name)


class ReferenceProblem(ValueError):
    """A rule between stages is broken. ``path`` locates the field as pydantic's ``loc`` does."""

    def __init__(self, path: tuple[str | int, ...], message: str) -> None:
        super().__init__(message)
        self.path = path


def in_dependency_order(stages: list[Stage]) -> list[Stage]:
    """Check names and references; return the stages so that each follows what it reads.

    Raises ``ReferenceProblem`` for the first broken rule.
    """
    index: dict[str, int] = {}
    for i, stage in enumerate(stages):
        if stage.name in index:
            raise ReferenceProblem(("stages", i, "name"), f"two stages are named '{stage.name}'; rename one")
        if stage.name == "base":
            raise ReferenceProblem(
                ("stages", i, "name"), "'base' names the manifest's model; rename the stage"
            )
        index[stage.name] = i
    for i, stage in enumerate(stages):
        if isinstance(stage, EvaluateStage):
            _check_experts(i, stage, index)
        for field, ref in stage.references().items():
            _check_reference(stages, index, i, stage, field, ref)
    return _topological(stages, index)


def _check_reference(
    stages: list[Stage], index: dict[str, int], i: int, stage: StageBase, field: str, ref: str
) -> None:
    path = ("stages", i, *(int(p) if p.isdigit() else p for p in field.split(".")))
    target = ref.split(".")[0]
    if target == stage.name:
        raise ReferenceProblem(path, f"stage '{stage.name}' refers to itself; name the stage it should read")
    if target == "base":
        raise ReferenceProblem(path, f"'{ref}' is the manifest's model and no stage; name a stage here")
    if target not in index:
        near = difflib.get_close_matches(target, [*index, "base"], n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"stages are: {', '.join(index)}"
        raise ReferenceProblem(path, f"'{ref}' names no stage; {hint}")
    source = stages[index[target]]
    _check_kind(path, stage, field, ref, source)
    if target != ref and source.artifact_kind != "dataset":
        raise ReferenceProblem(path, f"'{ref}' names a part, but only datasets have parts; write '{target}'")
    if field in PARTS:
        _check_part(path, source, field, ref)
    if isinstance(stage, PromoteStage) and field == "gate.outcomes":
        _check_gate(path, stage, source)


def _check_experts(i: int, stage: EvaluateStage, index: dict[str, int]) -> None:
    """Else a gate would promote one thing for what another has shown."""
    for place, each in enumerate(stage.candidates):
        if not isinstance(each, str) and each.name in index:
            raise ReferenceProblem(
                ("stages", i, "candidates", place, "name"),
                f"candidate '{each.name}' has the name of a stage; give the expert one of its own",
            )


def _check_gate(path: tuple[str | int, ...], stage: PromoteStage, source: StageBase) -> None:
    against, target = stage.gate.against, source.name
    if against == stage.candidate:
        raise ReferenceProblem(
            (*path[:-1], "against"), f"gate compares '{against}' with itself; name another expert"
        )
    needed = [against, stage.candidate]
    missing = [c for c in needed if isinstance(source, EvaluateStage) and c not in source.names]
    if missing:
        raise ReferenceProblem(
            path,
            f"gate compares {against} with '{stage.candidate}', but '{target}' does not evaluate "
            f"{', '.join(missing)}; add it to {target}.candidates",
        )


def _check_kind(
    path: tuple[str | int, ...], stage: StageBase, field: str, ref: str, source: StageBase
) -> None:
    found = source.artifact_kind
    if isinstance(stage, MergeStage) and (refusal := stage.refusal(source)):
        raise ReferenceProblem(path, refusal)
    if field.endswith(".reward_model") and getattr(source, "algorithm", Sft()).name != "reward":
        raise ReferenceProblem(path, f"'{ref}' is no reward model; name a train stage with algorithm: reward")
    if field in ("model", "algorithm.teacher") and getattr(source, "algorithm", Sft()).name == "reward":
        raise ReferenceProblem(
            path,
            f"'{ref}' is a reward model, which gives scores and no tokens; name a stage of another algorithm",
        )
    if isinstance(stage, PromoteStage) and field == "candidate" and found == "model":
        raise ReferenceProblem(
            path,
            f"'{ref}' is a whole model, and promote takes adapters, which share the engine of the base; "
            "name the train or sweep stage of an adapter",
        )
    if field == "policy.router" and not isinstance(source, RouterStage):
        raise ReferenceProblem(path, f"'{ref}' learns no policy; name a router stage")
    wanted: tuple[str, ...] = (PRODUCES_ROWS.get(field, OTHERS.get(field, "adapter")),)
    if field.startswith("filters."):
        wanted = ("dataset",)
    if field in ("teacher.model", "algorithm.teacher") or field.startswith(("candidates.", "experts.")):
        wanted = ("adapter", "model")
    if found not in wanted:
        needs = f"{field.split('.')[0]} needs a stage that produces {' or '.join(wanted)}"
        raise ReferenceProblem(path, f"'{ref}' produces {found}, but {needs}")


def _check_part(path: tuple[str | int, ...], source: StageBase, field: str, ref: str) -> None:
    if (ref.partition(".")[2] or PARTS[field]) != "test":
        return
    if field == "data":
        raise ReferenceProblem(path, f"'{ref}' holds items to test on; train on '{source.name}.train'")
    if isinstance(source, TeachStage):
        raise ReferenceProblem(
            path,
            f"'{source.name}' makes rows to train on; what it holds out measures a training and has no check "
            "to judge an answer by; name a dataset stage",
        )
    if isinstance(source, DatasetStage) and not source.split.test:
        raise ReferenceProblem(
            path,
            f"'{source.name}' holds no rows out (split.test 0); raise split.test or name another dataset",
        )


def _topological(stages: list[Stage], index: dict[str, int]) -> list[Stage]:
    ordered: list[Stage] = []
    state: dict[str, str] = {}

    def visit(name: str, trail: list[str]) -> None:
        if state.get(name) == "done":
            return
        if name in trail:
            loop = " -> ".join([*trail[trail.index(name) :], name])
            raise ReferenceProblem(
                ("stages", index[name]),
                f"stages refer to each other in a cycle: {loop}; remove one reference",
            )
        for ref in stages[index[name]].references().values():
            visit(ref.split(".")[0], [*trail, name])
        state[name] = "done"
        ordered.append(stages[index[name]])

    for stage in stages:
        visit(stage.name, [])
    return ordered

"""The manifest and the rules that hold between its stages."""

from __future__ import annotations

import difflib

from pydantic import Field

from largeforge_ray.config.base import PARTS, StageBase, Strict
from largeforge_ray.config.stages import EvaluateStage, PromoteStage, Stage, TeachStage

PRODUCES_ROWS = {"prompts": "dataset", "data": "dataset", "items": "dataset"}
"""Which artifact kind a reference field must lead to; candidates lead to adapters, gates to outcomes."""


class ModelConfig(Strict):
    """Where the base model comes from and how long its context may be.

    ``source`` is ``package:NAME``, a folder, a hub id, or a URL such as ``s3://bucket/folder``.
    """

    source: str = Field(min_length=1)
    revision: str | None = None
    max_model_len: int = Field(1024, ge=16)
    allow_pickle: bool = False
    trust_remote_code: bool = False


class Manifest(Strict):
    """One run's plan: the model, the store, and the stages that lead from one to the other."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,39}$")
    store: str = Field("./forge", min_length=1)
    model: ModelConfig
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
    wanted = PRODUCES_ROWS.get(field, "outcomes" if field == "gate.outcomes" else "adapter")
    found = stages[index[target]].artifact_kind
    if found != wanted:
        raise ReferenceProblem(
            path, f"'{ref}' produces {found}, but {field.split('.')[0]} needs a stage that produces {wanted}"
        )
    if target != ref and wanted != "dataset":
        raise ReferenceProblem(path, f"'{ref}' names a part, but only datasets have parts; write '{target}'")
    if field in PARTS:
        _check_part(path, stages[index[target]], field, ref)
    if isinstance(stage, PromoteStage) and field == "gate.outcomes":
        outcomes = stages[index[target]]
        needed = ["base", stage.candidate]
        missing = [c for c in needed if isinstance(outcomes, EvaluateStage) and c not in outcomes.candidates]
        if missing:
            raise ReferenceProblem(
                path,
                f"gate compares base with '{stage.candidate}', but '{target}' does not evaluate "
                f"{', '.join(missing)}; add it to {target}.candidates",
            )


def _check_part(path: tuple[str | int, ...], source: StageBase, field: str, ref: str) -> None:
    if (ref.partition(".")[2] or PARTS[field]) != "test":
        return
    if field == "data":
        raise ReferenceProblem(path, f"'{ref}' holds items to test on; train on '{source.name}.train'")
    if isinstance(source, TeachStage):
        raise ReferenceProblem(
            path, f"'{source.name}' makes rows to train on and holds none out; name a dataset stage"
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

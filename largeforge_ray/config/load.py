"""YAML to ``Manifest``, with the file and line in every error."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from largeforge_ray.config.algorithms import ALGORITHMS
from largeforge_ray.config.base import Split, Strict
from largeforge_ray.config.evaluating import Candidate, ContaminationCheck, EvaluateStage
from largeforge_ray.config.filters import FILTERS
from largeforge_ray.config.gate import Gate
from largeforge_ray.config.manifest import Manifest, ModelConfig, ReferenceProblem, Rope, in_dependency_order
from largeforge_ray.config.merging import MergeStage
from largeforge_ray.config.routing import LEARNERS, RouterStage, Routing
from largeforge_ray.config.speculation import Draft, Eagle, Mtp, Ngram, Suffix
from largeforge_ray.config.stages import DatasetStage, ModelStage, PromoteStage
from largeforge_ray.config.student import StudentStage
from largeforge_ray.config.sweeping import SEARCHES, STOPPERS, SweepStage
from largeforge_ray.config.tasks import LibraryTask, OwnTask
from largeforge_ray.config.teaching import MAKES, Endpoint, Price, Teacher, TeachStage
from largeforge_ray.config.tracking import Mlflow, Tracking, Wandb
from largeforge_ray.config.training import Lora, TrainStage
from largeforge_ray.errors import ConfigError

Path_ = Sequence[str | int]
STAGES: dict[str, type[Strict]] = {
    "dataset": DatasetStage,
    "model": ModelStage,
    "teach": TeachStage,
    "train": TrainStage,
    "sweep": SweepStage,
    "merge": MergeStage,
    "student": StudentStage,
    "evaluate": EvaluateStage,
    "router": RouterStage,
    "promote": PromoteStage,
}
SPECULATIONS: dict[str, type[Strict]] = {
    "ngram": Ngram,
    "suffix": Suffix,
    "draft": Draft,
    "eagle": Eagle,
    "eagle3": Eagle,
    "mtp": Mtp,
}
NAMED: dict[str, dict[str, type[Strict]]] = {
    "algorithm": {**ALGORITHMS},
    "search": SEARCHES,
    "stopping": STOPPERS,
    "make": MAKES,
    "filters": FILTERS,
    "method": LEARNERS,
    "speculation": SPECULATIONS,
    "tasks": {"library": LibraryTask, "own": OwnTask},
}
"""Fields that are one of several schemas, told apart by their ``name`` or ``kind``."""
WHO = {"model": ("stage", "endpoint"), "candidates": ("stage", "expert")}
"""Fields that are a stage's name or a schema, and what tells which."""
NESTED: dict[str, type[Strict]] = {
    "split": Split,
    "teacher": Teacher,
    "endpoint": Endpoint,
    "price": Price,
    "prices": Price,
    "expert": Candidate,
    "contamination": ContaminationCheck,
    "lora": Lora,
    "gate": Gate,
    "policy": Routing,
    "model": ModelConfig,
    "rope": Rope,
    "tracking": Tracking,
    "mlflow": Mlflow,
    "wandb": Wandb,
}


def load_manifest(path: str | Path) -> Manifest:
    """Read and check a manifest file. Raises ``ConfigError`` naming file, line, value and fix."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], n=1)
        raise ConfigError(
            f"manifest '{path}' does not exist"
            + (f"; did you mean '{near[0]}'?" if near else "; check the path")
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"manifest '{path}' cannot be read as UTF-8 text: {error}") from None
    return parse_manifest(text, str(path))


def parse_manifest(text: str, filename: str = "<manifest>") -> Manifest:
    """Check manifest text; ``filename`` appears in errors. Stages come back in dependency order."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_duplicate_keys(node, filename)
        data = yaml.safe_load(text)
    except ConfigError:
        raise
    # PyYAML lets through what Python says of dates and numbers that do not exist, and of endless nesting.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{filename}:{mark.line + 1}" if mark else filename
        raise ConfigError(f"{where}: not valid YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(data, dict):
        raise ConfigError(
            f"{filename}:1: a manifest is a mapping with name, model and stages; found {type(data).__name__}"
        )
    try:
        manifest = Manifest.model_validate(data)
        return manifest.model_copy(update={"stages": in_dependency_order(manifest.stages)})
    except ValidationError as error:
        lines = [f"{filename}:{_line(node, e['loc'])}: {_explain(e, data)}" for e in error.errors()]
        raise ConfigError("\n".join(lines)) from None
    except ReferenceProblem as problem:
        raise ConfigError(f"{filename}:{_line(node, problem.path)}: {problem}") from None


def _refuse_duplicate_keys(node: Any, filename: str) -> None:
    """YAML keeps the last of two equal keys in silence; a user who wrote both meant something else."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise ConfigError(
                    f"{filename}:{key.start_mark.line + 1}: key '{key.value}' is given twice; keep one"
                )
            seen.add(key.value)
            _refuse_duplicate_keys(value, filename)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _refuse_duplicate_keys(value, filename)


def _line(node: Any, loc: Path_) -> int:
    """The line of the deepest part of ``loc`` that the file has; union tags in ``loc`` are passed over."""
    line: int = node.start_mark.line + 1
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == part:
                    line, node = key.start_mark.line + 1, value
                    break
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line


def _explain(error: ErrorDetails, data: dict[str, Any]) -> str:
    loc = _without_tags(error["loc"])
    dotted = ".".join(map(str, loc))
    kind = error["type"]
    value = error["input"]
    if kind == "extra_forbidden":
        known = list(_schema_at(error["loc"]).model_fields)
        near = difflib.get_close_matches(str(loc[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'? " if near else ""
        where = dotted.rpartition(".")[0] or "the manifest"
        return f"unknown key '{loc[-1]}' in {where}; {hint}valid keys: {', '.join(known)}"
    if kind == "missing":
        return f"{dotted} is missing; add it"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        what, tag, known = "stage", "kind", [*STAGES]
        field = next((str(p) for p in reversed(loc) if isinstance(p, str)), "")
        if field in NAMED:
            tag = error["ctx"]["discriminator"].strip("'")
            what, known = field.removesuffix("s"), [*NAMED[field]]
        if kind == "union_tag_not_found":
            return f"{dotted}: the {what} has no {tag}; add one of [{', '.join(known)}]"
        given = value.get(tag) if isinstance(value, dict) else value
        near = difflib.get_close_matches(str(given), known, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        noun = "not a stage kind" if what == "stage" else f"not a known {what}"
        return f"{dotted}: {tag} '{given}' is {noun}; {hint}Supported: [{', '.join(known)}]"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if isinstance(value, dict):
        # A rule between fields: the message names them.
        return f"{dotted}: {message}"
    shown = repr(value) if not isinstance(value, list) else type(value).__name__
    return f"{dotted} = {shown}: {message}"


def _without_tags(loc: Path_) -> list[str | int]:
    """A union puts the tag of its chosen member into ``loc``: after a stage's number, after ``algorithm``,
    after the number of a filter, a task or a candidate, after a teacher's ``model``."""
    kept: list[str | int] = []
    for i, part in enumerate(loc):
        named = next((p for p in reversed(kept) if isinstance(p, str)), None)
        if i == 2 and loc[0] == "stages":
            continue
        if part in NAMED.get(str(named), ()) or part in WHO.get(str(named), ()):
            continue
        kept.append(part)
    return kept


def _schema_at(loc: Path_) -> type[Strict]:
    """The schema whose key the last part of ``loc`` is."""
    for place in reversed(range(len(loc) - 1)):
        part, before = loc[place], loc[place - 1]
        # After a number stands a tag, which may be the name of a field elsewhere.
        if part in NESTED and not (isinstance(before, int) and part in FILTERS):
            return NESTED[str(part)]
        for known in (*NAMED.values(), STAGES):
            if part in known:
                return known[str(part)]
    return Manifest

"""What would run: every stage's key, whether the store already has it, and what it needs.

Keys follow from inputs alone, so the whole plan is known before anything starts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from largeforge_ray.config.algorithms import OnPolicy
from largeforge_ray.config.base import PARTS, StageBase, default_part
from largeforge_ray.config.evaluating import EvaluateStage
from largeforge_ray.config.manifest import SHORTEST_CONTEXT, Manifest, ModelConfig
from largeforge_ray.config.routing import RouterStage
from largeforge_ray.config.stages import DatasetStage, ModelStage, PromoteStage
from largeforge_ray.config.sweeping import SweepStage
from largeforge_ray.config.teaching import Revisions, TeachStage
from largeforge_ray.config.training import DIVIDES_WEIGHTS, PRESETS, Lora, Training
from largeforge_ray.data.ingest import content_identity, form_of
from largeforge_ray.errors import ConfigError, ResourceError
from largeforge_ray.evaluate.gather import identity
from largeforge_ray.flow.doctor import require_sandbox
from largeforge_ray.flow.encoders import find_encoder
from largeforge_ray.flow.weights import weigh_models
from largeforge_ray.models.hardware import Hardware
from largeforge_ray.models.loadable import why_not_loadable
from largeforge_ray.models.prune import count_layers
from largeforge_ray.models.source import ModelSource, locate
from largeforge_ray.models.tokenizer import tokenizer_hash
from largeforge_ray.observe.hosted import check_tracking
from largeforge_ray.promote.preflight import check_servable, check_settings
from largeforge_ray.store import Store, artifact_key
from largeforge_ray.teach.revision import load_constitution
from largeforge_ray.train import check_form
from largeforge_ray.train.words import check_taught, check_vocabulary

ENGINE_GIB, TRAINER_GIB, CLUSTER_GIB = 3.5, 2.5, 1.5
"""Memory beside the weights of an engine (1 GiB of it KV cache), a training worker, and Ray itself."""
ROUTER_GIB = 1.5
"""Of a router stage, which runs beside the engine: the encoder and some ten thousand prompts."""
FARMS = ("teach", "evaluate")
"""Kinds whose rows Ray Data brings to engines; it needs a CPU that no engine holds, or waits for ever."""
WEIGHT_COPIES = {"teach": 1, "evaluate": 1, "promote": 1, "merge": 3, "model": 3, "student": 0}
TRAINED_COPIES, WHOLE_COPIES = 3, 10
"""Of bfloat16 weights in a training of an adapter while it loads, and of all of them: 2 bytes each of weight
and gradient, 16 in float32."""


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """One step of a run. ``key`` and ``parents`` are artifact keys (64 hex)."""

    name: str
    kind: str
    artifact_kind: str
    key: str
    parents: tuple[str, ...]
    inputs: tuple[str, ...]
    cached: bool
    config: dict[str, Any]
    resources: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """All stages in the order they run; the model is the first, under the name ``base``, if one reads it.

    ``sources`` are where it and the model stages' models come from, by stage name.
    """

    manifest: str
    stages: tuple[PlannedStage, ...]
    sources: dict[str, ModelSource]
    folder: Path

    def __getitem__(self, name: str) -> PlannedStage:
        return next(s for s in self.stages if s.name == name)

    @property
    def missing(self) -> tuple[PlannedStage, ...]:
        return tuple(s for s in self.stages if not s.cached)


def part_of(stage: StageBase, name: str) -> str:
    """The dataset part that the reference field ``name`` of ``stage`` means."""
    return getattr(stage, name).partition(".")[2] or PARTS[name]


def make_plan(manifest: Manifest, store: Store, folder: Path) -> Plan:
    """Plan ``manifest``; relative paths are looked up from ``folder``.

    Raises ``ConfigError`` or ``ModelError`` for what cannot work, ``CorruptArtifactError`` for a
    damaged artifact the run would stand on.
    """
    check_tracking(manifest.tracking)
    sources = {"base": locate(manifest.model, folder)}
    for stage in manifest.stages:
        if isinstance(stage, ModelStage):
            sources[stage.name] = locate(_model_config(stage, manifest), folder)
    weights = weigh_models(manifest, sources)
    planned = {"base": _plan_model("base", sources["base"], store, weights["base"])}
    for stage in manifest.stages:
        if isinstance(stage, ModelStage):
            planned[stage.name] = _plan_model(stage.name, sources[stage.name], store, weights[stage.name])
            continue
        planned[stage.name] = _plan_stage(stage, manifest, planned, store, folder, weights)
        _check_taught_here(stage, manifest, sources)
        _check_hidden_here(stage, planned, sources)
        if not planned[stage.name].cached:
            _check_served_here(stage, sources)
    if not any("base" in stage.inputs for stage in planned.values()):
        # Where endpoints teach, nothing loads a model.
        del planned["base"]
    return Plan(manifest.name, tuple(planned.values()), sources, folder)


def _model_config(stage: ModelStage, manifest: Manifest) -> ModelConfig:
    """An embedder takes texts as long as it can, any other model those of the manifest."""
    given = stage.model_dump(include={"source", "revision", "allow_pickle", "trust_remote_code"})
    if any(getattr(other, "embedder", None) == stage.name for other in manifest.stages):
        return ModelConfig(**given, max_model_len=SHORTEST_CONTEXT)
    return ModelConfig(**given, max_model_len=manifest.model.max_model_len)


def _plan_model(name: str, source: ModelSource, store: Store, weights_gib: float) -> PlannedStage:
    key = artifact_key("model", source.identity, [])
    cached = store.find("model", key) is not None
    needs = _resources("model", weights_gib)
    return PlannedStage(name, "model", "model", key, (), (), cached, source.identity, needs)


def _check_taught_here(stage: StageBase, manifest: Manifest, sources: dict[str, ModelSource]) -> None:
    """Token ids of another vocabulary are refused now if both models are folders, else before training."""
    if not isinstance(stage, Training) or not stage.algorithm.taught:
        return
    taught = manifest.stage(stage.data.split(".")[0])
    assert isinstance(taught, TeachStage)
    folders = [sources[n].folder if n in sources else None for n in (taught.teacher.model, stage.model)]
    if None not in folders and folders[0] != folders[1]:
        teacher, student = (tokenizer_hash(f) for f in folders if f is not None)
        check_vocabulary(teacher, student, taught.name)


def _check_hidden_here(
    stage: StageBase, planned: dict[str, PlannedStage], sources: dict[str, ModelSource]
) -> None:
    """Layers that the teacher does not have are refused now if its source tells how many there are."""
    if not isinstance(stage, TeachStage) or stage.hidden is None or not isinstance(stage.teacher.model, str):
        return
    teacher = stage.teacher.model
    adapted = planned[teacher].artifact_kind == "adapter"
    source = sources.get("base" if adapted else teacher)
    layers = count_layers(source) if source is not None else None
    if layers is not None:
        stage.check_layers(layers)


def _check_served_here(stage: StageBase, sources: dict[str, ModelSource]) -> None:
    """A model that its engine does not know is refused now if its folder is here, else when it is served."""
    if not isinstance(stage, PromoteStage | RouterStage):
        return
    asked = [("base", stage.backend)] if isinstance(stage, PromoteStage) else []
    if stage.embedder in sources:
        asked.append((stage.embedder, "vllm"))
    for name, backend in asked:
        source = sources[name]
        if source.folder is None:
            continue
        config = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
        if why := why_not_loadable(config, backend):
            raise ConfigError(f"stage '{stage.name}' cannot serve {source.name}: {why}")


def _plan_stage(
    stage: StageBase,
    manifest: Manifest,
    planned: dict[str, PlannedStage],
    store: Store,
    folder: Path,
    weights: dict[str, float],
) -> PlannedStage:
    config = stage.settings()
    weights_gib = weights[stage.model if isinstance(stage, Training) else "base"]
    if isinstance(stage, DatasetStage):
        # The path is not part of the key: a moved file with the same rows is the same dataset.
        config.pop("source")
        config["content"] = content_identity(folder / stage.source)
        require_sandbox(folder / stage.source)
    if isinstance(stage, PromoteStage):
        trained = manifest.stage(stage.candidate)
        assert isinstance(trained, Training)
        check_settings(stage, trained.model_copy(update={"lora": _resolve_lora(trained, weights_gib)}))
        # It becomes the expert's name.
        config["candidate"] = stage.candidate
    if isinstance(stage, RouterStage):
        config["encoder_source"] = find_encoder(stage, folder).identity
        config["experts"] = list(stage.experts)
    if isinstance(stage, PromoteStage | RouterStage) and stage.embedder is not None:
        config["embedder"] = stage.embedder
    if isinstance(stage, TeachStage) and isinstance(stage.make, Revisions):
        # What it says counts, not what the file is called.
        path = folder / stage.make.constitution if stage.make.constitution else None
        config["make"]["constitution"] = load_constitution(path).model_dump(mode="json")
    if isinstance(stage, Training):
        lora = _resolve_lora(stage, weights_gib)
        config["lora"] = lora.model_dump(mode="json", exclude={"preset"}) if lora else None
        _check_form(stage, manifest, folder)
        _check_length(stage, manifest)
    references = stage.references()
    names = [ref.split(".")[0] for ref in references.values()]
    if stage.uses_model:
        names += ["base"] if stage.reads_base else []
        config["max_model_len"] = manifest.model.max_model_len
    config["inputs"] = {f: _input(f, ref, planned[ref.split(".")[0]].key) for f, ref in references.items()}
    if isinstance(stage, EvaluateStage):
        for other in manifest.stages:
            if other.name in {each.model for each in stage.named} and isinstance(other, Training):
                _check_answers(other)
        # Names stand in the outcome rows, so a renamed candidate is another outcome matrix.
        config["candidates"] = _candidates(stage, planned)
        if stage.items is not None:
            config["task"] = stage.items.partition(".")[0]
        if stage.tasks:
            # What is asked counts, not how a file is called or a default written out.
            config["tasks"] = identity(stage.tasks, folder, stage.answers_in_words)
    parents = tuple(dict.fromkeys(planned[n].key for n in names))
    kind: str = config["kind"]
    key = artifact_key(stage.artifact_kind, config, parents)
    cached = store.find(stage.artifact_kind, key) is not None
    needs = (
        _training_resources(stage, weights_gib, _engines_gib(stage, planned, weights))
        if isinstance(stage, Training)
        else _resources(kind, weights_gib, max(getattr(stage, "engines", 1), getattr(stage, "scorers", 1)))
    )
    inputs = tuple(dict.fromkeys(names))
    return PlannedStage(stage.name, kind, stage.artifact_kind, key, parents, inputs, cached, config, needs)


def _resolve_lora(stage: Training, weights_gib: float) -> Lora | None:
    if stage.lora is None:
        return None
    if stage.lora.preset == "auto" and not weights_gib:
        raise ConfigError(
            f"lora.preset 'auto' of stage '{stage.name}' goes by the model's size, which is not known "
            f"before it is downloaded; name one of {', '.join(PRESETS)}"
        )
    return stage.lora.with_preset(round(weights_gib * 1024**3 / 2))


def _check_form(stage: Training, manifest: Manifest, folder: Path) -> None:
    """Rows that are there already are looked at before anything starts; a stage says what it makes."""
    source = manifest.stage(stage.data.split(".")[0])
    taught = source if isinstance(source, TeachStage) else None
    given = form_of(folder / source.source) if isinstance(source, DatasetStage) else None
    check_form(stage.algorithm, taught.form if taught else given, source.name)
    check_taught(stage.algorithm, taught, source.name)


def _check_length(stage: Training, manifest: Manifest) -> None:
    longest = manifest.model.max_model_len
    if stage.max_tokens > longest:
        raise ConfigError(
            f"max_tokens {stage.max_tokens} of stage '{stage.name}' exceeds model.max_model_len {longest}: "
            "it would learn at positions that are never served; lower max_tokens or raise max_model_len"
        )


def _check_answers(stage: Training) -> None:
    """A whole model has an engine of its own; a reward model answers in none."""
    if stage.artifact_kind == "adapter" or stage.algorithm.name == "reward":
        check_servable(stage)


def _candidates(stage: EvaluateStage, planned: dict[str, PlannedStage]) -> dict[str, str]:
    """Name -> key. Two of one key would be one expert under two names, each answer counted once."""
    names: dict[str, str] = {}
    for name in (each for each in stage.candidates if isinstance(each, str)):
        key = planned[name].key[:16]
        if key in names:
            raise ConfigError(
                f"candidates '{names[key]}' and '{name}' of stage '{stage.name}' are one artifact ({key}): "
                "they have the same settings and data; change a setting such as seed, or leave one out"
            )
        names[key] = name
    return {name: key for key, name in names.items()}


def _input(field_name: str, ref: str, key: str) -> str:
    part = ref.partition(".")[2] or default_part(field_name)
    return f"{key[:16]}.{part}" if part else key[:16]


def _resources(kind: str, weights_gib: float, processes: int = 1) -> dict[str, float]:
    if kind == "dataset":
        return {"cpus": 0, "gpus": 0, "memory_gib": 0.3}
    if kind == "router":
        return {"cpus": 0, "gpus": 0, "memory_gib": ROUTER_GIB}
    beside = {"model": 1.0, "student": 1.0, "merge": 1.5}.get(kind, ENGINE_GIB)
    memory = CLUSTER_GIB + processes * (beside + WEIGHT_COPIES[kind] * weights_gib)
    return {"cpus": 1.0 * processes + (kind in FARMS), "gpus": 0, "memory_gib": round(memory, 1)}


def _engines_gib(stage: Training, planned: dict[str, PlannedStage], weights: dict[str, float]) -> list[float]:
    """What the engines beside a training weigh: one that draws its answers, and that of a teacher which is no
    adapter on it."""
    if not stage.algorithm.answer_tokens:
        return []
    teacher = stage.algorithm.teacher if isinstance(stage.algorithm, OnPolicy) else "base"
    alone = teacher != "base" and planned[teacher].artifact_kind == "model"
    return [weights["base"], *([weights[teacher]] if alone else [])]


def _training_resources(stage: Training, weights_gib: float, engines_gib: list[float]) -> dict[str, float]:
    """All workers on one machine, and the engines beside them; or the one that probes the adapter after them,
    if that needs more."""
    least, _ = stage.bounds
    processes = stage.processes if isinstance(stage, SweepStage) else least
    held = WHOLE_COPIES if stage.lora is None else TRAINED_COPIES
    divided = processes if stage.strategy in DIVIDES_WEIGHTS else 1
    training = processes * (TRAINER_GIB + held * weights_gib / divided)
    beside = sum(ENGINE_GIB + gib for gib in engines_gib)
    probing = ENGINE_GIB + weights_gib if stage.probe and stage.lora else 0.0
    memory = CLUSTER_GIB + max(training + beside, probing)
    cpus = 1.0 * (processes + len(engines_gib))
    return {"cpus": cpus, "gpus": 0, "memory_gib": round(memory, 1)}


def check_resources(plan: Plan, hardware: Hardware) -> None:
    """Refuse a plan this machine cannot hold. Raises ``ResourceError`` naming the stage and the lack."""
    for stage in plan.missing:
        need = stage.resources["memory_gib"]
        if need > hardware.memory_gib:
            raise ResourceError(
                f"stage '{stage.name}' needs about {need:.1f} GiB of memory, "
                f"{hardware.memory_gib:.1f} GiB is available; "
                "close other programs, use a smaller model, or run on a larger machine (RAY_ADDRESS)"
            )
        if stage.resources["cpus"] > hardware.cpus:
            raise ResourceError(
                f"stage '{stage.name}' asks for {stage.resources['cpus']:.0f} CPUs, "
                f"there are {hardware.cpus}; lower {'engines' if stage.kind in FARMS else 'workers'}"
            )
    if plan.missing and hardware.disk_gib < 2.0:
        raise ResourceError(
            f"{hardware.disk_gib:.1f} GiB of disk is free, a run needs 2; free some or move the store"
        )

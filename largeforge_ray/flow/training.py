"""How a train stage makes its adapter: rows to tokens, tokens to steps, a checkpoint to an artifact."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from largeforge_ray.config.algorithms import Features, Grpo, OnPolicy
from largeforge_ray.config.training import Lora, Training, TrainStage
from largeforge_ray.flow.breaks import TrainingBreak
from largeforge_ray.flow.context import RunContext, stop_engine
from largeforge_ray.flow.plan import PlannedStage, part_of
from largeforge_ray.flow.probing import is_probed, probe_adapter
from largeforge_ray.flow.tracking import tracked
from largeforge_ray.models.prune import layers_in
from largeforge_ray.models.tokenizer import tokenizer_hash
from largeforge_ray.observe.trackers import Trackers
from largeforge_ray.store import Artifact, artifact_key
from largeforge_ray.train import TokenSpec, TrainJob, check_form, describe, train, write_tokens
from largeforge_ray.train.words import check_vocabulary, match_layers


def make_adapter(context: RunContext, stage: PlannedStage, folder: Path) -> dict[str, Any]:
    """Train on Ray Train; a killed run goes on from its newest checkpoint."""
    declared = context.manifest.stage(stage.name)
    assert isinstance(declared, TrainStage)
    preset = declared.lora.preset if declared.lora else None
    lora = Lora(**stage.config["lora"]) if declared.lora else None
    declared = declared.model_copy(update={"lora": lora, "algorithm": algorithm_of(context, declared)})
    context.connect()
    context.make_room(declared.processes)
    with context.phase("tokenise"):
        tokens = make_tokens(context, declared)
    counts = tokens.metrics["train"]
    key = reference_key(context, declared, tokens)
    reference = context.store.find("reference", key)
    teacher, teacher_adapter = start_teacher(context, declared)
    job = TrainJob(
        stage=declared,
        model_dir=context.address(declared.model),
        tokens_dir=context.store.address(tokens),
        reference_dir=context.store.address(reference) if reference else None,
        board=context.start_board(),
        engine=rollout_engine(context, declared),
        reward_dir=reward_dir(context, declared),
        teacher=teacher,
        teacher_adapter=teacher_adapter,
    )
    if lora and preset:
        words = f"LoRA preset {preset}: rank {lora.rank}, alpha {lora.alpha:g}, {' and '.join(lora.targets)}"
        context.emit(stage.name, "progress", {}, words)
    with context.store.staging("reference", key) as kept, tracked(context, stage) as trackers:
        break_ = TrainingBreak(context, stage.name, declared.processes)
        notes = _Notes(context, stage.name, declared, counts, trackers, break_.began)
        storage = context.work_address(stage)
        with context.ledger.holding(declared.processes):
            result = train(
                job, storage=storage, target=folder, on_note=notes.take, reference=kept, break_=break_
            )
        if reference is None and any(kept.iterdir()):
            parents = [tokens.key, context.plan[declared.model].key]
            context.store.publish("reference", key, f"{stage.name}-reference", parents, {}, kept)
    if teacher is not None and teacher is not job.engine:
        stop_engine(teacher)
    context.phases["training"] = round(time.monotonic() - notes.began, 2)
    probe = {"probe": probe_adapter(context, stage.name, folder)} if is_probed(declared) else {}
    context.end_work(stage)
    return probe | {
        "algorithm": declared.algorithm.name,
        "steps": result.steps,
        "final_loss": result.losses[-1][1],
        "held_out": result.held_out,
        "curve": result.curve,
        "tokens": round(counts["tokens"] * declared.epochs),
        "rows": counts["rows"],
        "left_out": counts["left_out"],
        "trainable_parameters": notes.trainable,
        "losses": result.losses,
    }


def algorithm_of(context: RunContext, declared: Training) -> Any:
    """The algorithm with what it left to the data filled in. Raises ``DataError`` for rows it does not learn
    from."""
    dataset, algorithm = context.artifact(declared.data.split(".")[0]), declared.algorithm
    check_form(algorithm, dataset.metrics.get("form"), dataset.name)
    if isinstance(algorithm, Features):
        return match_layers(algorithm, dataset.metrics["hidden"], layers_in(context.folder(declared.model)))
    return algorithm


def make_tokens(context: RunContext, declared: Training) -> Any:
    """The dataset as token ids, from the store if an earlier stage or trial made them."""
    name = declared.data.split(".")[0]
    dataset, model = context.artifact(name), context.plan[declared.model]
    longest = declared.max_tokens - declared.algorithm.answer_tokens
    spec = TokenSpec(context.address(declared.model), declared.algorithm, longest)
    part = part_of(declared, "data")
    config = {
        "form": declared.algorithm.form,
        "max_tokens": longest,
        "part": part,
    }
    if declared.algorithm.taught:
        # The teacher's own tokens, and not those of its text.
        config["taught"] = declared.algorithm.taught
        check_vocabulary(
            dataset.metrics.get("tokenizer"), tokenizer_hash(context.folder(declared.model)), name
        )
    if isinstance(declared.algorithm, Grpo):
        # Rows without a check are refused where nothing else judges.
        config["checked"] = declared.algorithm.reward_model is None
    parents = [dataset.key, model.key]
    key = artifact_key("tokens", config, parents)
    if found := context.store.find("tokens", key):
        return found
    source = context.folder(name)
    parts = {"train": part} | ({"test": "test"} if (source / "test.parquet").exists() else {})
    with context.store.staging("tokens", key) as folder:
        counts = {target: write_tokens(source, p, spec, folder, target) for target, p in parts.items()}
        return context.store.publish("tokens", key, f"{name}-tokens", parents, config, folder, counts)


def rollout_engine(context: RunContext, declared: Training) -> Any:
    """The run's engine for what learns from its own answers; None where vLLM is not installed."""
    if not declared.algorithm.answer_tokens:
        return None
    if find_spec("vllm") is None:
        said = "vLLM is not installed: answers are drawn in the trainer, without a cache and so slowly"
        context.emit(declared.name, "progress", {}, said)
        return None
    return context.engine()


def start_teacher(context: RunContext, declared: Training) -> tuple[Any, str | None]:
    """The engine that scores the student's answers, and the teacher's address if it is an adapter. A whole
    model has an engine of its own beside the student's."""
    if not isinstance(declared.algorithm, OnPolicy):
        return None, None
    name = declared.algorithm.teacher
    planned = context.plan[name]
    if planned.artifact_kind == "adapter":
        return context.engine(), context.address(name)
    if name == "base":
        return context.engine(), None
    with context.phase("teacher start"):
        teacher = context.tools.start_engine(
            context.address(name),
            max_model_len=context.manifest.model.max_model_len,
            place=context.place,
        )
        # It asks for the student's engine next, which takes as long to start.
        return teacher, None


def reward_dir(context: RunContext, declared: Training) -> str | None:
    """The address of the reward model that judges, if one does."""
    if not isinstance(declared.algorithm, Grpo) or declared.algorithm.reward_model is None:
        return None
    return context.address(declared.algorithm.reward_model)


def reference_key(context: RunContext, declared: Training, tokens: Artifact) -> str:
    """The key of the log-probabilities of these tokens by the model as it is before training."""
    return artifact_key("reference", {}, [tokens.key, context.plan[declared.model].key])


class _Notes:
    """Turns the workers' notes into run events."""

    def __init__(
        self,
        context: RunContext,
        name: str,
        declared: TrainStage,
        counts: dict[str, Any],
        trackers: Trackers,
        began: Callable[[], None],
    ) -> None:
        self._on_begin = began
        self._context, self._name, self._declared, self._counts = context, name, declared, counts
        self._trackers = trackers
        self._launched = self.began = time.monotonic()
        self.trainable = 0

    def take(self, note: dict[str, Any]) -> None:
        kind = note.pop("kind")
        if kind == "begin":
            self._on_begin()
            self._begin(note)
        else:
            self._emit(note)
        if kind == "step":
            self._trackers.log(note["step"], {k: v for k, v in note.items() if k not in ("step", "steps")})

    def _begin(self, note: dict[str, Any]) -> None:
        self.began, self.trainable = time.monotonic(), note["trainable_parameters"]
        self._context.phases["worker start"] = round(self.began - self._launched, 2)
        for line in describe(self._declared, self._counts, note):
            self._emit({}, line)
        resumed = f"resumed at step {note['step']}" if note["step"] else ""
        self._emit({"done": note["step"], "steps": note["steps"]}, resumed)

    def _emit(self, numbers: dict[str, Any], message: str = "") -> None:
        self._context.emit(self._name, "progress", numbers, message)

"""The worker loop that every algorithm shares: load, train, checkpoint, report."""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from largeforge_ray.config.stages import TrainStage
from largeforge_ray.models.hardware import threads_per_worker, trainer_args
from largeforge_ray.train.sft import build_sft_trainer

BUILDERS = {"sft": build_sft_trainer}


@dataclass(frozen=True, slots=True)
class TrainJob:
    """What a worker needs to know. ``board`` is an actor handle that takes progress notes, or None."""

    stage: TrainStage
    model_dir: str
    data_dir: str
    board: Any = None


def worker_loop(config: dict[str, Any]) -> None:
    """Train on one worker. Ray Train passes ``config`` only to a function with a required parameter."""
    import torch
    import transformers

    job: TrainJob = config["job"]
    stage = job.stage
    quiet(transformers)
    torch.set_num_threads(threads_per_worker(stage.workers))
    transformers.set_seed(stage.seed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(job.model_dir)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        job.model_dir, dtype=torch.bfloat16, use_safetensors=True
    )
    with tempfile.TemporaryDirectory(prefix="largeforge-train-") as scratch:
        reporter = make_reporter(job)
        trainer = BUILDERS[stage.algorithm](
            stage, model, tokenizer, Path(job.data_dir), arguments(stage, scratch), [reporter]
        )
        reporter.describe(trainer)
        with resumable() as checkpoint:
            trainer.train(resume_from_checkpoint=checkpoint)


def quiet(transformers: Any) -> None:
    """Progress is the driver's to show: bars of several workers would overwrite each other."""
    import datasets

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def arguments(stage: TrainStage, scratch: str) -> dict[str, Any]:
    """Arguments of ``transformers.TrainingArguments`` that hold for every algorithm."""
    from ray import train

    workers = train.get_context().get_world_size()
    return trainer_args() | {
        "output_dir": scratch,
        "per_device_train_batch_size": math.ceil(stage.batch_size / workers),
        "learning_rate": stage.learning_rate,
        "num_train_epochs": stage.epochs,
        "lr_scheduler_type": "cosine",
        "warmup_steps": stage.warmup,
        "logging_steps": 1,
        "save_steps": stage.checkpoint_every,
        "save_strategy": "steps",
        "save_total_limit": 1,
        "seed": stage.seed,
        "data_seed": stage.seed,
        "report_to": "none",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "remove_unused_columns": False,
    }


class resumable:
    """The folder of the newest committed checkpoint while in the block, or None."""

    def __enter__(self) -> str | None:
        from ray import train

        checkpoint = train.get_checkpoint()
        self._block = checkpoint.as_directory() if checkpoint else None
        return self._block.__enter__() if self._block else None

    def __exit__(self, *exc: object) -> None:
        if self._block:
            self._block.__exit__(*exc)


def make_reporter(job: TrainJob) -> Any:
    """A callback that posts progress to the board and hands checkpoints to Ray Train."""
    import ray
    from ray import train
    from transformers import TrainerCallback

    class Reporter(TrainerCallback):  # type: ignore[misc]
        started = time.monotonic()
        tokens = 0

        def describe(self, trainer: Any) -> None:
            lengths = [len(ids) for ids in trainer.train_dataset["input_ids"]]
            self.tokens_per_row = sum(lengths) / len(lengths)
            self.parameters = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
            self._post(
                kind="plan", rows=len(lengths), tokens=sum(lengths), trainable_parameters=self.parameters
            )

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.started, self.first_step = time.monotonic(), state.global_step
            self._post(kind="begin", step=state.global_step, steps=state.max_steps)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs is None or "loss" not in logs:
                return
            seconds = time.monotonic() - self.started
            rows = (state.global_step - self.first_step) * args.per_device_train_batch_size * args.world_size
            self._post(
                kind="step",
                step=state.global_step,
                steps=state.max_steps,
                loss=round(float(logs["loss"]), 5),
                learning_rate=float(logs["learning_rate"]),
                epoch=round(float(state.epoch), 3),
                tokens_per_s=round(rows * self.tokens_per_row / seconds, 1),
            )

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            losses = [[h["step"], round(h["loss"], 5)] for h in state.log_history if "loss" in h]
            metrics = {
                "step": state.global_step,
                "steps": state.max_steps,
                "losses": losses,
                "trainable_parameters": self.parameters,
            }
            # Only rank 0 wrote the folder, but every rank must report or the others wait for ever.
            checkpoint = (
                train.Checkpoint.from_directory(str(folder))
                if train.get_context().get_world_rank() == 0
                else None
            )
            train.report(metrics, checkpoint=checkpoint)

        def _post(self, **note: Any) -> None:
            if job.board is not None and train.get_context().get_world_rank() == 0:
                ray.get(job.board.post.remote(note))

    return Reporter()

"""Assemble a Ray Train run and bring its adapter home."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from largeforge_ray.errors import ForgeError, StageError
from largeforge_ray.models.hardware import detect
from largeforge_ray.train.background import run_beside
from largeforge_ray.train.loop import TrainJob, worker_loop

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
REFERENCE_FILE = "reference.safetensors"


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What the last checkpoint says: ``losses`` as ``[step, loss]``, ``held_out`` before and after."""

    steps: int
    losses: list[list[float]]
    held_out: dict[str, dict[str, float]]


def build_trainer(job: TrainJob, storage: Path) -> Any:
    """A ``TorchTrainer`` whose run, started again on the same storage, continues where it was."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    gpus = detect().gpus > 0
    workers = job.stage.workers
    return TorchTrainer(
        worker_loop,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=gpus,
            resources_per_worker={"CPU": 1} | ({"GPU": 1} if gpus else {}),
        ),
        run_config=RunConfig(
            name="train",
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=3),
            checkpoint_config=CheckpointConfig(num_to_keep=job.stage.keep_checkpoints),
        ),
    )


def train(
    job: TrainJob,
    *,
    storage: Path,
    target: Path,
    on_note: Callable[[dict[str, Any]], None],
    reference: Path | None = None,
) -> TrainResult:
    """Train, call ``on_note`` with each progress note, and write the adapter into ``target``.

    The reference log-probabilities, if the algorithm cached any, go into the folder ``reference``.

    Raises ``StageError`` if the run fails for good; a ``ForgeError`` of a worker passes through.
    """
    storage.mkdir(parents=True, exist_ok=True)
    result = _fit(build_trainer(job, storage), job.board, on_note)
    if result.error is not None:
        raise _cause(result.error)
    if result.checkpoint is None:
        raise StageError("training ended without a checkpoint; look at the worker's log in the dashboard")
    with result.checkpoint.as_directory() as folder:
        for name in ADAPTER_FILES:
            shutil.copyfile(Path(folder) / name, target / name)
        if reference is not None and (Path(folder) / REFERENCE_FILE).exists():
            shutil.copyfile(Path(folder) / REFERENCE_FILE, reference / REFERENCE_FILE)
        facts = json.loads((Path(folder) / "progress.json").read_text(encoding="utf-8"))
    return TrainResult(facts["step"], facts["losses"], facts["held_out"])


def _fit(trainer: Any, board: Any, on_note: Callable[[dict[str, Any]], None]) -> Any:
    import ray
    from ray.train import TrainingFailedError

    def read_board() -> None:
        if board is not None:
            for note in ray.get(board.take.remote()):
                on_note(note)

    try:
        return run_beside(trainer.fit, read_board)
    except TrainingFailedError as error:
        raise _cause(error) from None


def _cause(error: BaseException) -> BaseException:
    """The worker's own ``ForgeError`` if there is one: its message is the one that helps."""
    for failure in getattr(error, "worker_failures", {}).values():
        inner: BaseException | None = failure
        while inner is not None:
            if isinstance(inner, ForgeError):
                return inner
            inner = getattr(inner, "cause", None) or inner.__cause__
    return StageError(f"training failed: {error}")

"""Assemble a Ray Train run and bring its product home."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from largeforge_ray.errors import ForgeError, StageError
from largeforge_ray.models.hardware import gpus_each
from largeforge_ray.store.address import for_arrow
from largeforge_ray.train.background import run_beside
from largeforge_ray.train.checkpoint import PRODUCT
from largeforge_ray.train.loop import LEAVE, TrainJob, worker_loop
from largeforge_ray.train.meeting import torch_config

MAX_FAILURES = 3
RESIZE_S = 30.0
"""Seconds between looks at whether the cluster has room for more workers."""
REFERENCE_FILE = "reference.safetensors"


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What the kept checkpoint says: ``losses`` as ``[step, loss]``, ``held_out`` before and after,
    ``curve`` as ``[step, held-out loss]``."""

    steps: int
    losses: list[list[float]]
    held_out: dict[str, dict[str, float]]
    curve: list[list[float]]


class Break(Protocol):
    """When a training gives its place to others for a while."""

    def wanted(self) -> bool | None:
        """Asked again and again: True when one is from now on, False when it is no more, else None."""

    def wait(self) -> None:
        """The workers are gone. Returns when others may start."""


def build_trainer(job: TrainJob, storage: str, most: int) -> Any:
    """A ``TorchTrainer`` whose run, started again on the same storage, continues where it was. ``storage`` is
    an address that every node can write to. It has ``most`` workers, or fewer where the stage allows them."""
    from ray import train
    from ray.train import CheckpointConfig, FailureConfig, RunConfig
    from ray.train.torch import TorchTrainer

    # The annotations are those of the class that this name stood for before elastic training.
    scaling: Any = train.ScalingConfig
    gpus = gpus_each() > 0
    least, _ = job.stage.bounds
    path, files = for_arrow(storage)
    kept = CheckpointConfig(num_to_keep=job.stage.keep_checkpoints)
    if job.stage.keep == "best":
        # Ray Train keeps the newest beside the best, for a killed run to go on from.
        kept = CheckpointConfig(job.stage.keep_checkpoints, "held_out", "min")
    return TorchTrainer(
        worker_loop,
        train_loop_config={"job": job},
        torch_config=torch_config("nccl" if gpus else "gloo"),
        scaling_config=scaling(
            num_workers=most if least == most else (least, most),
            elastic_resize_monitor_interval_s=RESIZE_S,
            use_gpu=gpus,
            resources_per_worker={"CPU": 1} | ({"GPU": 1} if gpus else {}) | job.stage.resources,
        ),
        run_config=RunConfig(
            name="train",
            storage_path=path,
            storage_filesystem=files,
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=kept,
        ),
    )


def train(
    job: TrainJob,
    *,
    storage: str,
    target: Path,
    on_note: Callable[[dict[str, Any]], None],
    reference: Path | None = None,
    break_: Break | None = None,
) -> TrainResult:
    """Train, call ``on_note`` with each progress note, and write the product into ``target``.

    The reference log-probabilities, if the algorithm cached any, go into the folder ``reference``. For a
    ``break_`` the workers go at their next checkpoint, and from there others go on after it.

    Raises ``StageError`` if the run fails for good; a ``ForgeError`` of a worker passes through.
    """
    import ray

    if "://" not in storage:
        Path(storage).mkdir(parents=True, exist_ok=True)
    least, most = job.stage.bounds
    while True:
        result = _fit(build_trainer(job, storage, most), job.board, on_note, break_)
        if result.error is not None:
            raise _cause(result.error)
        if result.checkpoint is None:
            raise StageError("training ended without a checkpoint; look at the worker's log in the dashboard")
        if break_ is None or not (result.metrics or {}).get("left"):
            break
        break_.wait()
        ray.get(job.board.pin.remote(LEAVE, False))
        # Ray Train goes by what the nodes have, and would wait for what the others hold now.
        free = cast(Any, ray).available_resources().get("GPU" if gpus_each() else "CPU", 0)
        most = min(most, max(least, int(free)))
    chosen = result.checkpoint
    if job.stage.keep == "best":
        chosen = min(result.best_checkpoints, key=lambda made: made[1]["held_out"])[0]
    with chosen.as_directory() as folder:
        shutil.copytree(Path(folder) / PRODUCT, target, dirs_exist_ok=True)
        if reference is not None and (Path(folder) / REFERENCE_FILE).exists():
            shutil.copyfile(Path(folder) / REFERENCE_FILE, reference / REFERENCE_FILE)
        facts = json.loads((Path(folder) / "progress.json").read_text(encoding="utf-8"))
    return TrainResult(**({"steps": facts.pop("step")} | facts))


def _fit(trainer: Any, board: Any, on_note: Callable[[dict[str, Any]], None], break_: Break | None) -> Any:
    import ray
    from ray.train import TrainingFailedError

    def read_board() -> None:
        if board is not None:
            for note in ray.get(board.take.remote()):
                on_note(note)
            if break_ is not None and (wanted := break_.wanted()) is not None:
                board.pin.remote(LEAVE, wanted)

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

"""Assemble a Ray Train run and bring its adapter home."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from largeforge_ray.errors import ForgeError, StageError
from largeforge_ray.models.hardware import detect
from largeforge_ray.train.loop import TrainJob, worker_loop

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class TrainResult:
    """The last checkpoint's metrics: steps, losses ``[[step, loss], ...]``, trainable parameters."""

    steps: int
    losses: list[list[float]]
    trainable_parameters: int


def build_trainer(job: TrainJob, storage: Path) -> Any:
    """A ``TorchTrainer`` whose run, started again on the same storage, continues where it was."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    gpus = detect().gpus > 0
    return TorchTrainer(
        worker_loop,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=job.stage.workers,
            use_gpu=gpus,
            resources_per_worker={"CPU": 1} | ({"GPU": 1} if gpus else {}),
        ),
        run_config=RunConfig(
            name="train",
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=3),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )


def train(
    job: TrainJob, *, storage: Path, target: Path, on_note: Callable[[dict[str, Any]], None]
) -> TrainResult:
    """Train, call ``on_note`` with each progress note, and write the adapter into ``target``.

    Raises ``StageError`` if the run fails for good; a ``ForgeError`` of a worker passes through.
    """
    storage.mkdir(parents=True, exist_ok=True)
    result = _fit_while_reading(build_trainer(job, storage), job.board, on_note)
    if result.error is not None:
        raise _cause(result.error)
    if result.checkpoint is None:
        raise StageError("training ended without a checkpoint; look at the worker's log in the dashboard")
    with result.checkpoint.as_directory() as folder:
        for name in ADAPTER_FILES:
            shutil.copyfile(Path(folder) / name, target / name)
    _make_portable(target / "adapter_config.json")
    m = result.metrics
    return TrainResult(m["step"], m["losses"], m["trainable_parameters"])


def _make_portable(config: Path) -> None:
    """Take this machine's model path out of the adapter: lineage names the base."""
    import json

    settings = json.loads(config.read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = None
    config.write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")


def _fit_while_reading(trainer: Any, board: Any, on_note: Callable[[dict[str, Any]], None]) -> Any:
    """``fit`` blocks, so it runs in a thread while this one reads the board and hears Ctrl-C."""
    import ray

    outcome: dict[str, Any] = {}

    def fit() -> None:
        try:
            outcome["result"] = trainer.fit()
        except BaseException as error:  # handed to the caller's thread, which raises it
            outcome["error"] = error

    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_S)
        if board is not None:
            for note in ray.get(board.take.remote()):
                on_note(note)
    if "error" in outcome:
        raise _cause(outcome["error"])
    return outcome["result"]


def _cause(error: BaseException) -> BaseException:
    """The worker's own ``ForgeError`` if there is one: its message is the one that helps."""
    for failure in getattr(error, "worker_failures", {}).values():
        inner: BaseException | None = failure
        while inner is not None:
            if isinstance(inner, ForgeError):
                return inner
            inner = getattr(inner, "cause", None) or inner.__cause__
    return StageError(f"training failed: {error}")

"""How a sweep stage makes its adapter: tokens, packs, trials. The best of them is the stage's."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from largeforge_ray.config.sweeping import SweepStage
from largeforge_ray.config.training import Lora
from largeforge_ray.flow.context import RunContext
from largeforge_ray.flow.plan import PlannedStage
from largeforge_ray.flow.training import find_reference, make_tokens
from largeforge_ray.observe import words
from largeforge_ray.store import artifact_key
from largeforge_ray.sweep import PackJob, Trial, run_sweep
from largeforge_ray.train import ADAPTER_FILES, check_form, run_beside


def make_sweep(context: RunContext, stage: PlannedStage, folder: Path) -> dict[str, Any]:
    """Sweep with Ray Tune; a killed sweep goes on with the trials that have not ended."""
    declared = context.manifest.stage(stage.name)
    assert isinstance(declared, SweepStage)
    declared = declared.model_copy(update={"lora": Lora(**stage.config["lora"])})
    dataset = context.artifact(declared.data.split(".")[0])
    check_form(declared.algorithm, dataset.metrics.get("form"), dataset.name)
    with context.phase("ray start"):
        context.tools.connect()
    with context.phase("tokenise"):
        tokens = make_tokens(context, declared)
    reference = find_reference(context, tokens)
    job = PackJob(
        declared,
        str(context.folder("base")),
        str(context.store.fetch(tokens)),
        str(context.store.fetch(reference)) if reference else None,
    )
    hosts = [context.tools.start_pack(job) for _ in range(declared.processes)]
    storage = context.work_folder(stage)
    board = context.tools.start_board()
    heard = _Heard(context, stage.name, declared, board)
    with context.phase("trials"):
        trials = run_beside(lambda: run_sweep(declared, hosts, storage=storage, board=board), heard.read)
    keys = [_publish(context, stage, declared, trial) for trial in trials]
    best = trials[0]
    for name in ADAPTER_FILES:
        shutil.copyfile(best.folder / name, folder / name)
    table = [_row(trial, key) for trial, key in zip(trials, keys, strict=True)]
    (folder / "trials.json").write_text(json.dumps(table, indent=2), encoding="utf-8")
    shutil.rmtree(storage)
    return {
        "algorithm": declared.algorithm.name,
        "trials": table,
        "best": best.point,
        "held_out": best.figures,
        "steps": best.step,
        "final_loss": best.losses[-1][1],
        "losses": best.losses,
        "rows": tokens.metrics["train"]["rows"],
        "tokens": tokens.metrics["train"]["tokens"],
    }


class _Heard:
    """Turns the trials' notes into run events: how far all of them are together."""

    def __init__(self, context: RunContext, name: str, declared: SweepStage, board: Any) -> None:
        self._context, self._name, self._board = context, name, board
        self._trials = declared.trials
        self._measures = declared.measures
        self._tokens, self._began, self._heard = 0.0, time.monotonic(), 0

    def read(self) -> None:
        import ray

        for note in ray.get(self._board.take.remote()):
            self._tokens += note.pop("tokens")
            ended = note.pop("done")
            self._heard += 1
            rate = round(self._tokens / (time.monotonic() - self._began), 1)
            numbers = {"done": self._heard, "total": self._trials * self._measures, "tokens_per_s": rate}
            said = f"{words.point(note['point'])}: held-out loss {note['held_out']:.4f}" if ended else ""
            # The bar is the whole sweep's; a trial's own steps would move it to and fro.
            note = {k: v for k, v in note.items() if k not in ("step", "steps")} | {"at": note["step"]}
            self._context.emit(self._name, "progress", numbers | note, said)


def _row(trial: Trial, key: str) -> dict[str, Any]:
    return {
        "point": trial.point,
        "held_out": trial.held_out,
        "step": trial.step,
        "stopped": trial.stopped,
        "seconds": trial.seconds,
        "key": key,
    }


def _publish(context: RunContext, stage: PlannedStage, declared: SweepStage, trial: Trial) -> str:
    """Keep a trial's adapter under the key that a train stage with its settings has."""
    training = declared.trial(trial.point, name=stage.name)
    config = training.settings() | {
        "lora": training.lora.model_dump(mode="json", exclude={"preset"}),
        "max_model_len": context.manifest.model.max_model_len,
        "inputs": stage.config["inputs"],
    }
    if trial.stopped:
        config["stopped_at"] = trial.step
    key = artifact_key("adapter", config, stage.parents)
    metrics = {
        "algorithm": declared.algorithm.name,
        "steps": trial.step,
        "final_loss": trial.losses[-1][1],
        "held_out": trial.figures,
        "losses": trial.losses,
    }
    with context.store.staging("adapter", key) as folder:
        for name in ADAPTER_FILES:
            shutil.copyfile(trial.folder / name, folder / name)
        name = f"{stage.name}-{'-'.join(f'{k}{v}' for k, v in trial.point.items())}"
        context.store.publish(
            "adapter", key, name, stage.parents, config, folder, metrics, {"seconds": trial.seconds}
        )
    return key

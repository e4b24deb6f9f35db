"""How a sweep stage makes its adapter: tokens, packs, trials. The best of them is the stage's."""

from __future__ import annotations

import json
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

from largeforge_ray.config.sweeping import SweepStage
from largeforge_ray.config.training import Lora
from largeforge_ray.flow.breaks import Packs
from largeforge_ray.flow.context import RunContext
from largeforge_ray.flow.plan import PlannedStage
from largeforge_ray.flow.probing import is_probed, probe_adapter
from largeforge_ray.flow.tracking import tracked
from largeforge_ray.flow.training import algorithm_of, make_tokens, reference_key
from largeforge_ray.observe import words
from largeforge_ray.observe.trackers import Trackers
from largeforge_ray.store import artifact_key
from largeforge_ray.sweep import PackJob, Trial, run_sweep
from largeforge_ray.train import PRODUCT, run_beside


def make_sweep(context: RunContext, stage: PlannedStage, folder: Path) -> dict[str, Any]:
    """Sweep with Ray Tune; a killed sweep goes on with the trials that have not ended."""
    declared = context.manifest.stage(stage.name)
    assert isinstance(declared, SweepStage)
    found = {"lora": Lora(**stage.config["lora"]), "algorithm": algorithm_of(context, declared)}
    declared = declared.model_copy(update=found)
    context.connect()
    context.make_room(declared.processes)
    with context.phase("tokenise"):
        tokens = make_tokens(context, declared)
    reference = context.store.find("reference", reference_key(context, declared, tokens))
    job = PackJob(
        declared,
        context.address("base"),
        context.store.address(tokens),
        context.store.address(reference) if reference else None,
    )
    storage, board = context.work_address(stage), context.start_board()
    start = partial(context.tools.start_pack, job, context.place)
    packs = Packs(context, stage.name, board, start, declared.processes)
    with context.phase("trials"), tracked(context, stage) as trackers:
        heard = _Heard(context, stage.name, declared, board, trackers)

        def meanwhile() -> None:
            heard.read()
            packs.heed()

        trials = run_beside(
            lambda: run_sweep(declared, board, storage=storage, kept=context.work_folder(stage)), meanwhile
        )
        # Not in an interrupted sweep, whose trials are still under way: what is theirs ends with the process.
        packs.close()
    keys = [_publish(context, stage, declared, trial) for trial in trials]
    # One that was stopped has not been at its last, small steps, and holds no reference for the probe.
    best = min(trials, key=lambda t: (t.stopped, t.held_out))
    shutil.copytree(best.folder / PRODUCT, folder, dirs_exist_ok=True)
    table = [_row(trial, key) for trial, key in zip(trials, keys, strict=True)]
    (folder / "trials.json").write_text(json.dumps(table, indent=2), encoding="utf-8")
    probe = {"probe": probe_adapter(context, stage.name, folder)} if is_probed(declared) else {}
    context.end_work(stage)
    return probe | {
        "algorithm": declared.algorithm.name,
        "trials": table,
        "best": best.point,
        "held_out": best.figures,
        "steps": best.step,
        "final_loss": best.losses[-1][1],
        "losses": best.losses,
        "history": best.history,
        "rows": tokens.metrics["train"]["rows"],
        "tokens": tokens.metrics["train"]["tokens"],
    }


class _Heard:
    """Turns the trials' notes into run events: how far all of them are together, and who took over whom."""

    def __init__(
        self, context: RunContext, name: str, declared: SweepStage, board: Any, trackers: Trackers
    ) -> None:
        self._context, self._name, self._board, self._trackers = context, name, board, trackers
        self._trials, self._measures = declared.trials, declared.measures
        self._tokens, self._began = 0.0, time.monotonic()
        self._measured: dict[str, int] = {}
        self._histories: dict[str, list[dict[str, Any]]] = {}

    def read(self) -> None:
        import ray

        for note in ray.get(self._board.take.remote()):
            self._emit(note, self._said(note))
            figures = {"held_out": note["held_out"], "loss": note["loss"]}
            self._trackers.log(note["step"], figures, note["trial"], {"point": note["point"]})

    def _said(self, note: dict[str, Any]) -> str:
        trial, history = note["trial"], note["history"]
        if history != self._histories.get(trial, []):
            self._histories[trial] = history
            return f"trial {trial} took over {words.leg(history[-1])}: {words.point(note['point'])}"
        return f"{words.point(note['point'])}: held-out loss {note['held_out']:.4f}" if note["done"] else ""

    def _emit(self, note: dict[str, Any], said: str) -> None:
        self._tokens += note["tokens"]
        # A trial that took another over is as far as that one was.
        self._measured[note["trial"]] = round(note["step"] / note["steps"] * self._measures)
        numbers = {
            "done": sum(self._measured.values()),
            "total": self._trials * self._measures,
            "tokens_per_s": round(self._tokens / (time.monotonic() - self._began), 1),
            "at": note["step"],
        }
        # The bar is the whole sweep's; a trial's own steps would move it to and fro.
        numbers |= {k: note[k] for k in ("held_out", "loss", "trial", "point")}
        self._context.emit(self._name, "progress", numbers, said)


def _row(trial: Trial, key: str) -> dict[str, Any]:
    return {
        "trial": trial.name,
        "point": trial.point,
        "held_out": trial.held_out,
        "step": trial.step,
        "stopped": trial.stopped,
        "seconds": trial.seconds,
        "history": trial.history,
        "key": key,
    }


def _publish(context: RunContext, stage: PlannedStage, declared: SweepStage, trial: Trial) -> str:
    """Keep a trial's adapter under the key that a train stage with its settings has.

    One that was stopped, or went on from another's weights, is no such training: its key says so.
    """
    training = declared.trial(trial.point, name=stage.name)
    assert training.lora is not None
    config = training.settings() | {
        "lora": training.lora.model_dump(mode="json", exclude={"preset"}),
        "max_model_len": context.manifest.model.max_model_len,
        "inputs": stage.config["inputs"],
    }
    if trial.stopped:
        config["stopped_at"] = trial.step
    if trial.history:
        config["history"] = trial.history
    key = artifact_key("adapter", config, stage.parents)
    metrics = {
        "algorithm": declared.algorithm.name,
        "steps": trial.step,
        "final_loss": trial.losses[-1][1],
        "held_out": trial.figures,
        "losses": trial.losses,
        "history": trial.history,
    }
    with context.store.staging("adapter", key) as folder:
        shutil.copytree(trial.folder / PRODUCT, folder, dirs_exist_ok=True)
        name = f"{stage.name}-{'-'.join(f'{k}{v}' for k, v in trial.point.items())}"
        context.store.publish(
            "adapter", key, name, stage.parents, config, folder, metrics, {"seconds": trial.seconds}
        )
    return key

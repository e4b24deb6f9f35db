"""A sweep as Ray Tune sees it: trials without resources of their own that ride in packs.

A trial is a process that only forwards: it asks its pack for the next measurement, hands Tune the
result and keeps the checkpoint. So Tune's searchers and schedulers stop and restore single trials while
the weights they train lie beside each other on one base.
"""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from largeforge_ray.config.sweeping import Asha, Grid, Median, Optuna, Range, SweepStage
from largeforge_ray.errors import StageError

METRIC = "held_out"
TRIAL_BYTES = 200 * 1024**2
"""A process that imports Ray and forwards."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One finished trial. ``folder`` holds its checkpoint, an adapter among it.

    ``held_out`` is the loss on held-out rows; ``stopped`` says that a scheduler ended it early.
    """

    point: dict[str, Any]
    held_out: float
    step: int
    stopped: bool
    seconds: float
    losses: list[list[float]]
    figures: dict[str, dict[str, float]]
    folder: Path


def run_sweep(
    stage: SweepStage,
    hosts: list[Any],
    *,
    storage: Path,
    board: Any = None,
) -> list[Trial]:
    """Run or go on with a sweep. ``hosts`` are handles of pack actors; ``board`` hears every measurement.

    Raises ``StageError`` if a trial failed for good, naming it and its cause.
    """
    from ray import tune

    path = storage / "sweep"
    # What a killed trial's process raised, Tune logs with its trace although it restarts the trial.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    given = tune.with_parameters(trial_class(), hosts=hosts, stage=stage, board=board)
    # No CPU, or trials would wait for those the packs hold; Tune wants some resource to be named.
    trainable = tune.with_resources(given, {"CPU": 0, "memory": TRIAL_BYTES})
    tuner = _restored(path, trainable)
    if tuner is None:
        tuner = tune.Tuner(
            trainable,
            param_space=_param_space(stage),
            tune_config=tune.TuneConfig(
                metric=METRIC,
                mode="min",
                search_alg=_search(stage),
                scheduler=_scheduler(stage),
                num_samples=1 if isinstance(stage.search, Grid) else stage.search.trials,
                max_concurrent_trials=stage.parallel,
                reuse_actors=True,
                trial_name_creator=lambda trial: f"trial-{trial.trial_id}",
                trial_dirname_creator=lambda trial: f"trial-{trial.trial_id}",
            ),
            run_config=tune.RunConfig(
                name=path.name,
                storage_path=str(path.parent),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=3),
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1, num_to_keep=1),
            ),
        )
    grid = tuner.fit()
    if grid.num_errors:
        raise StageError(f"{grid.num_errors} of {len(grid)} trials failed: {grid.errors[0]}")
    return sorted((_trial(grid[i]) for i in range(len(grid))), key=lambda t: t.held_out)


def _restored(path: Path, trainable: Any) -> Any:
    """The sweep that was killed there, or None if none was, or it was killed before its first trial."""
    from ray import tune

    if not tune.Tuner.can_restore(str(path)):
        return None
    try:
        return tune.Tuner.restore(str(path), trainable, resume_errored=True)
    except (EOFError, pickle.UnpicklingError):
        # Tune does not write its own record in one piece; without it nothing has run yet.
        shutil.rmtree(path)
        return None


def _trial(result: Any) -> Trial:
    metrics, folder = result.metrics, Path(result.checkpoint.path)
    facts = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
    return Trial(
        point=json.loads(metrics["point"]),
        held_out=metrics[METRIC],
        step=metrics["step"],
        stopped=metrics["step"] < metrics["steps"],
        seconds=round(metrics["time_total_s"], 2),
        losses=facts["losses"],
        figures=facts["held_out"],
        folder=folder,
    )


def _param_space(stage: SweepStage) -> dict[str, Any]:
    from ray import tune

    if isinstance(stage.search, Grid):
        return {"point": tune.grid_search(stage.combinations())}
    return {"point": {path: _domain(path, values) for path, values in stage.space.items()}}


def _domain(path: str, values: Any) -> Any:
    from ray import tune

    if not isinstance(values, Range):
        return tune.choice(values)
    if path in ("rank", "lora.rank"):
        low, high = int(values.low), int(values.high) + 1
        return tune.lograndint(low, high) if values.log else tune.randint(low, high)
    return tune.loguniform(values.low, values.high) if values.log else tune.uniform(values.low, values.high)


def _search(stage: SweepStage) -> Any:
    from ray.tune.search.basic_variant import BasicVariantGenerator

    if not isinstance(stage.search, Optuna):
        return BasicVariantGenerator(random_state=stage.seed)
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)

    return OptunaSearch(seed=stage.seed)


def _scheduler(stage: SweepStage) -> Any:
    from ray.tune import schedulers

    s = stage.stopping
    if isinstance(s, Asha):
        return schedulers.ASHAScheduler(
            max_t=stage.measures, grace_period=s.grace, reduction_factor=s.reduction
        )
    if isinstance(s, Median):
        return schedulers.MedianStoppingRule(grace_period=s.grace, time_attr="training_iteration")
    return None


def trial_class() -> Any:
    """Tune's ``Trainable`` around one lane of a pack."""
    import ray
    from ray import tune

    class LaneTrial(tune.Trainable):
        def setup(self, config: dict[str, Any], **given: Any) -> None:
            self._hosts: list[Any] = given["hosts"]
            self._stage: SweepStage = given["stage"]
            self._board = given["board"]
            self._files: dict[str, bytes] | None = None
            self._enter(config)

        def _enter(self, config: dict[str, Any]) -> None:
            self._point = dict(config["point"])
            self._training = self._stage.trial(self._point)
            counts = ray.get([host.trials.remote() for host in self._hosts])
            self._host = self._hosts[counts.index(min(counts))]
            self._name = f"lane{self.trial_id.replace('_', '')}"
            ray.get(self._host.join.remote(self._name, self._training))

        def step(self) -> dict[str, Any]:
            made: dict[str, Any]
            try:
                made, self._files = ray.get(self._host.advance.remote(self._name))
            except KeyError:
                # The pack was restarted: bring it what this trial last kept.
                ray.get(self._host.join.remote(self._name, self._training, self._files))
                made, self._files = ray.get(self._host.advance.remote(self._name))
            if self._board is not None:
                self._board.post.remote(made | {"trial": self.trial_id, "point": self._point})
            return made | {"point": json.dumps(self._point)}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            for name, content in (self._files or {}).items():
                (Path(checkpoint_dir) / name).write_bytes(content)

        def load_checkpoint(self, checkpoint_dir: Any) -> None:
            self._files = {p.name: p.read_bytes() for p in Path(checkpoint_dir).iterdir() if p.is_file()}
            ray.get(self._host.join.remote(self._name, self._training, self._files))

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.cleanup()
            self._files = None
            self._enter(new_config)
            return True

        def cleanup(self) -> None:
            ray.get(self._host.leave.remote(self._name))

    return LaneTrial

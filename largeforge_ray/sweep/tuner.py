"""A sweep as Ray Tune sees it: trials without resources of their own that ride in packs.

Tune's searchers and schedulers stop, restore and copy single trials while the weights they train lie
beside each other on one base.
"""

from __future__ import annotations

import json
import logging
import pickle
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from largeforge_ray.config.sweeping import Asha, Grid, Median, Optuna, Pbt, Range, SweepStage
from largeforge_ray.errors import StageError
from largeforge_ray.store.address import for_arrow
from largeforge_ray.sweep.lane_trial import TRIAL_FILE, trial_class

METRIC = "held_out"
TRIAL_BYTES = 200 * 1024**2
"""A process that imports Ray and forwards."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One finished trial. ``folder`` holds its checkpoint, an adapter among it.

    ``held_out`` is the loss on held-out rows; ``stopped`` says that a scheduler ended it early.
    ``history`` lists what it took over, first to last: up to ``step`` its weights were those of ``trial``,
    trained with ``point``. Empty if it trained alone.
    """

    name: str
    point: dict[str, Any]
    held_out: float
    step: int
    stopped: bool
    seconds: float
    losses: list[list[float]]
    history: list[dict[str, Any]]
    figures: dict[str, dict[str, float]]
    folder: Path


def run_sweep(
    stage: SweepStage,
    board: Any,
    *,
    storage: str,
    kept: Path,
) -> list[Trial]:
    """Run or go on with a sweep. The ``board`` has the packs pinned as ``PACKS``, actor handles by number, of
    which some may go and others come, and hears every measurement.

    ``storage`` is an address that every node can write to; the trials' folders are below ``kept``, if that is
    not this machine's.

    Raises ``StageError`` if a trial failed for good, naming it and its cause.
    """
    from ray import tune

    path, files = for_arrow(f"{storage}/sweep")
    # What a killed trial's process raised, Tune logs with its trace although it restarts the trial.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    given = tune.with_parameters(trial_class(), stage=stage, board=board)
    # No CPU, or trials would wait for those the packs hold; Tune wants some resource to be named.
    trainable = tune.with_resources(given, {"CPU": 0, "memory": TRIAL_BYTES})
    tuner = _restored(path, files, trainable)
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
                name="sweep",
                storage_path=path.removesuffix("/sweep"),
                storage_filesystem=files,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=3),
                checkpoint_config=tune.CheckpointConfig(
                    checkpoint_frequency=1,
                    # A trial that has yet to start may be about to go on from an older one of another trial.
                    num_to_keep=None if isinstance(stage.stopping, Pbt) else 1,
                ),
            ),
        )
    grid = tuner.fit()
    if grid.num_errors:
        raise StageError(f"{grid.num_errors} of {len(grid)} trials failed: {grid.errors[0]}")
    return sorted((_trial(grid[i], kept) for i in range(len(grid))), key=lambda t: t.held_out)


def _restored(path: str, files: Any, trainable: Any) -> Any:
    """The sweep that was killed there, or None if none was, or it was killed before its first trial."""
    from pyarrow.fs import LocalFileSystem
    from ray import tune

    if not tune.Tuner.can_restore(path, storage_filesystem=files):
        return None
    try:
        return tune.Tuner.restore(path, trainable, resume_errored=True, storage_filesystem=files)
    except (EOFError, pickle.UnpicklingError):
        # Tune does not write its own record in one piece; without it nothing has run yet.
        (files or LocalFileSystem()).delete_dir(path)
        return None


def _trial(result: Any, kept: Path) -> Trial:
    metrics, checkpoint = result.metrics, result.checkpoint
    folder = Path(checkpoint.path)
    if checkpoint.filesystem.type_name != "local":
        folder = Path(checkpoint.to_directory(str(kept / Path(result.path).name)))
    facts, told = (
        json.loads((folder / file).read_text(encoding="utf-8")) for file in ("progress.json", TRIAL_FILE)
    )
    return Trial(
        name=told["trial"],
        point=json.loads(metrics["point"]),
        held_out=metrics[METRIC],
        step=metrics["step"],
        stopped=metrics["step"] < metrics["steps"],
        seconds=round(metrics["time_total_s"], 2),
        losses=facts["losses"],
        history=told["history"],
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
    if isinstance(s, Pbt):
        return schedulers.PopulationBasedTraining(
            time_attr="training_iteration",
            perturbation_interval=s.every,
            quantile_fraction=s.quantile,
            hyperparam_mutations={"point": {path: _mutation(path, stage.space[path]) for path in s.mutate}},
            custom_explore_fn=partial(_within, stage.space),
            log_config=False,
        )
    return None


def _mutation(path: str, values: Any) -> Any:
    """Of a list the neighbour of a value, of a range 0.8 or 1.2 times it; one time in four a fresh draw."""
    return _domain(path, values) if isinstance(values, Range) else values


def _within(space: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """A mutated config whose values are in their ranges, which the factors may leave."""
    ends = {path: values for path, values in space.items() if isinstance(values, Range)}
    point: dict[str, Any] = config["point"]
    held = {p: min(max(point[p], ends[p].low), ends[p].high) if p in ends else point[p] for p in point}
    return config | {"point": held}

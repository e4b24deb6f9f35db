"""Trackers that are services of their own, MLflow and Weights & Biases, each an optional package."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from largeforge_ray.errors import ConfigError

if TYPE_CHECKING:
    from largeforge_ray.config.tracking import Mlflow, Tracking, Wandb
    from largeforge_ray.observe.trackers import Tracked

SEND_EVERY_S = 2.0
MOST_AT_ONCE = 500
"""MLflow's servers take a thousand metrics in a request."""
GIVE_UP_S = 20
TAG = "largeforge.tracked"


def check_tracking(tracking: Tracking) -> None:
    """Raises ``ConfigError`` if a tracker is asked for and its package or its key is not there."""
    for name, wanted, package in (
        ("mlflow", tracking.mlflow, "mlflow-skinny"),
        ("wandb", tracking.wandb, "wandb"),
    ):
        if wanted and importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"tracking.{name} needs the package '{name}', which is not installed; "
                f"pip install {package}, or remove tracking.{name}"
            )
    if tracking.wandb and tracking.wandb.mode == "online" and not os.environ.get("WANDB_API_KEY"):
        raise ConfigError(
            "tracking.wandb is online and the environment has no WANDB_API_KEY; "
            "set it, or set tracking.wandb.mode: offline"
        )


class MlflowRun:
    """One MLflow run, found again by its tag when a training is resumed."""

    def __init__(self, config: Mlflow, of: Tracked) -> None:
        # Its own patience with a server that is down is minutes for each call.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(GIVE_UP_S))
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=config.uri)
        self._run_id = self._find(config.experiment, of)
        self._waiting: list[Any] = []
        self._sent = time.monotonic()

    def _find(self, experiment: str, of: Tracked) -> str:
        from mlflow.entities import Param

        there = self._client.get_experiment_by_name(experiment)
        home = there.experiment_id if there else self._client.create_experiment(experiment)
        found = self._client.search_runs([home], f"tags.`{TAG}` = '{of.name}'", max_results=1)
        if found:
            return str(found[0].info.run_id)
        run_id = self._client.create_run(home, run_name=of.name, tags={TAG: of.name}).info.run_id
        self._client.log_batch(run_id, params=[Param(k, str(v)) for k, v in flat(of.settings)])
        return str(run_id)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        self._waiting += [Metric(name, number, now, step) for name, number in numbers.items()]
        if len(self._waiting) >= MOST_AT_ONCE or time.monotonic() - self._sent > SEND_EVERY_S:
            self._send()

    def _send(self) -> None:
        waiting, self._waiting, self._sent = self._waiting, [], time.monotonic()
        self._client.log_batch(self._run_id, metrics=waiting)

    def close(self) -> None:
        self._send()
        self._client.set_terminated(self._run_id)


class WandbRun:
    """One W&B run; its id follows from what is tracked, so a resumed training goes on in it."""

    def __init__(self, config: Wandb, of: Tracked, folder: Path) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=config.project,
            mode=config.mode,
            id=of.name.replace("/", "-"),
            name=of.name,
            group=of.run,
            config=dict(flat(of.settings)),
            dir=str(folder),
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off", init_timeout=GIVE_UP_S),
        )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        self._run.finish()


def flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings by dotted path."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value
